//! CSV: a row for each detection; pictures without any, and failed ones, have one row.

use std::io::Write;

use super::super::exit::JobError;
use super::super::survey::Survey;
use super::{Exported, io_error, lines, thousandths};

const HEAD: [&str; 12] = [
    "image",
    "width",
    "height",
    "class",
    "label",
    "score",
    "x1",
    "y1",
    "x2",
    "y2",
    "error",
    "image_b64",
];

pub(super) fn export(survey: &Survey, out: &mut impl Write) -> Result<Exported, JobError> {
    let mut exported = Exported::default();
    let mut table = csv::Writer::from_writer(out);
    let wrong = |error: csv::Error| io_error(error.into());
    table.write_record(HEAD).map_err(wrong)?;
    lines(survey, |line| {
        let text = |number: Option<u32>| number.map_or_else(String::new, |n| n.to_string());
        let (width, height) = (text(line.width), text(line.height));
        let base64 = line.image_b64.unwrap_or_default();
        let mut row = |found: [String; 7], error: &str| {
            let [class, label, score, x1, y1, x2, y2] = &found;
            table
                .write_record([
                    &line.image,
                    &width,
                    &height,
                    class,
                    label,
                    score,
                    x1,
                    y1,
                    x2,
                    y2,
                    error,
                    &base64,
                ])
                .map_err(wrong)
        };
        if let Some(error) = line.error {
            exported.failed += 1;
            return row(Default::default(), &error.code);
        }
        exported.pictures += 1;
        let detections = line.detections.unwrap_or_default();
        if detections.is_empty() {
            return row(Default::default(), "");
        }
        for found in detections {
            exported.detections += 1;
            let [x1, y1, x2, y2] = found.bbox.map(|side| thousandths(side).to_string());
            let class = found.class.to_string();
            row([class, found.label, found.score.to_string(), x1, y1, x2, y2], "")?;
        }
        Ok(())
    })?;
    table.flush().map_err(io_error)?;
    Ok(exported)
}
