//! COCO: one object with images, categories and annotations, as pycocotools loads it.
//!
//! Image and annotation ids count from 1 in plan order; category ids are the model's class numbers.

use std::io::Write;

use serde_json::json;

use super::super::exit::JobError;
use super::super::survey::Survey;
use super::{Exported, io_error, lines, thousandths};

pub(super) fn export(survey: &Survey, out: &mut impl Write) -> Result<Exported, JobError> {
    let mut exported = Exported::default();
    out.write_all(b"{\"images\":[").map_err(io_error)?;
    lines(survey, |line| {
        if line.error.is_some() {
            exported.failed += 1;
            return Ok(());
        }
        exported.pictures += 1;
        let image = json!({
            "id": exported.pictures, "file_name": line.image,
            "width": line.width, "height": line.height,
        });
        item(out, exported.pictures, &image)
    })?;
    out.write_all(b"\n],\"categories\":[").map_err(io_error)?;
    let labels = survey.job.fingerprint["labels"].as_array().cloned().unwrap_or_default();
    for (id, name) in (0u64..).zip(&labels) {
        item(out, id + 1, &json!({ "id": id, "name": name }))?;
    }
    out.write_all(b"\n],\"annotations\":[").map_err(io_error)?;
    let mut image = 0;
    lines(survey, |line| {
        let Some(detections) = line.detections else { return Ok(()) };
        image += 1;
        for found in detections {
            exported.detections += 1;
            let [x1, y1, x2, y2] = found.bbox.map(thousandths);
            // The line's three decimals, not the noise of subtracting them.
            let (width, height) = (thousandths(x2 - x1), thousandths(y2 - y1));
            let annotation = json!({
                "id": exported.detections, "image_id": image, "category_id": found.class,
                "bbox": [x1, y1, width, height], "area": thousandths(width * height),
                "iscrowd": 0, "score": found.score,
            });
            item(out, exported.detections, &annotation)?;
        }
        Ok(())
    })?;
    out.write_all(b"\n]}\n").map_err(io_error)?;
    Ok(exported)
}

fn item(out: &mut impl Write, number: u64, value: &serde_json::Value) -> Result<(), JobError> {
    let comma: &[u8] = if number > 1 { b",\n" } else { b"\n" };
    out.write_all(comma).map_err(io_error)?;
    serde_json::to_writer(out, value).map_err(|error| io_error(error.into()))
}
