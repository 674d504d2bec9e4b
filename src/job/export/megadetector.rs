//! MegaDetector's batch results, version 1.6, as Timelapse, AddaxAI and its own tools read them.
//!
//! Written from the published description (lila.science/megadetector-output-format): an `info`,
//! the categories, and one entry for each picture in plan order, failed ones included. Category ids
//! are class numbers plus one, since "0" is kept for "empty". Nothing in it depends on when or
//! where it is written.

use std::io::Write;

use serde::Serialize;

use super::super::exit::JobError;
use super::super::line::{Detection, LineError};
use super::super::survey::Survey;
use super::{Exported, io_error, lines};

/// The version of the form. A text: from 1.6 on numbers are refused.
const FORMAT_VERSION: &str = "1.6";

#[derive(Serialize)]
struct Info<'a> {
    format_version: &'a str,
    detector: &'a str,
    detector_metadata: Metadata<'a>,
}

/// What readers take as their first thresholds is the job's own: there is nothing below it.
#[derive(Serialize)]
struct Metadata<'a> {
    image_size: &'a serde_json::Value,
    sha256: &'a serde_json::Value,
    typical_detection_threshold: &'a serde_json::Value,
    conservative_detection_threshold: &'a serde_json::Value,
}

#[derive(Serialize)]
struct Image {
    file: String,
    /// Ours, and ignored by readers: the name, where `file` cannot say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    /// `null` beside a failure; readers refuse an empty list there.
    detections: Option<Vec<Box>>,
}

#[derive(Serialize)]
struct Box {
    category: String,
    conf: f64,
    bbox: [f64; 4],
}

pub(super) fn export(survey: &Survey, out: &mut impl Write) -> Result<Exported, JobError> {
    let mut exported = Exported::default();
    let job = &survey.job;
    let model = job.settings.model.as_deref().and_then(|path| path.file_name());
    let detector = model.map(|name| name.to_string_lossy()).unwrap_or_default();
    let (nothing, fact) = (serde_json::Value::Null, |name: &str| job.fingerprint.get(name));
    let info = Info {
        format_version: FORMAT_VERSION,
        detector: &detector,
        detector_metadata: Metadata {
            image_size: fact("imgsz").unwrap_or(&nothing),
            sha256: fact("weights").unwrap_or(&nothing),
            typical_detection_threshold: fact("conf").unwrap_or(&nothing),
            conservative_detection_threshold: fact("conf").unwrap_or(&nothing),
        },
    };
    out.write_all(b"{\"info\":").map_err(io_error)?;
    json(out, &info)?;
    out.write_all(b",\n\"detection_categories\":{").map_err(io_error)?;
    let labels = job.fingerprint["labels"].as_array().cloned().unwrap_or_default();
    for (class, label) in (0u32..).zip(&labels) {
        let comma = if class > 0 { "," } else { "" };
        write!(out, "{comma}\n\"{}\":", category(class)).map_err(io_error)?;
        json(out, &name(class, label.as_str().unwrap_or_default()))?;
    }
    out.write_all(b"\n},\n\"images\":[").map_err(io_error)?;
    lines(survey, |line| {
        let comma: &[u8] = if exported.pictures + exported.failed > 0 { b",\n" } else { b"\n" };
        out.write_all(comma).map_err(io_error)?;
        let (width, height) = (line.width, line.height);
        let size = [width.unwrap_or(1), height.unwrap_or(1)].map(f64::from);
        let detections = match (&line.error, line.detections) {
            (Some(_), _) => {
                exported.failed += 1;
                None
            }
            (None, found) => {
                exported.pictures += 1;
                let found = found.unwrap_or_default();
                exported.detections += found.len() as u64;
                Some(found.iter().map(|one| boxed(one, size)).collect())
            }
        };
        exported.not_utf8 += u64::from(line.image_b64.is_some());
        let failure = line.error.as_ref().map(failure);
        let (file, image_b64) = (line.image, line.image_b64);
        json(out, &Image { file, image_b64, width, height, failure, detections })
    })?;
    out.write_all(b"\n]}\n").map_err(io_error)?;
    Ok(exported)
}

fn category(class: u32) -> String {
    (u64::from(class) + 1).to_string()
}

/// The label; a blank one, which the form does not allow, gives way to the number.
fn name(class: u32, label: &str) -> String {
    if label.trim().is_empty() { format!("class {class}") } else { label.to_owned() }
}

/// Corner and size in units of the picture, six decimals, inside it.
fn boxed(found: &Detection, [width, height]: [f64; 2]) -> Box {
    let unit = |value: f64| (value * 1e6).round() / 1e6;
    let span = |from: f64, to: f64, side: f64| {
        let start = unit(from / side).clamp(0.0, 1.0);
        (start, unit((unit(to / side) - start).clamp(0.0, 1.0 - start)))
    };
    let [x1, y1, x2, y2] = found.bbox;
    let ((x, w), (y, h)) = (span(x1, x2, width), span(y1, y2, height));
    Box { category: category(found.class), conf: found.score, bbox: [x, y, w, h] }
}

/// MegaDetector has two failures, and tools look at how they begin; our code follows.
fn failure(error: &LineError) -> String {
    let kind = match error.code.as_str() {
        // The file could be read, and the program could not bear it.
        "internal" | "quarantined" => "inference failure",
        _ => "image access failure",
    };
    format!("{kind}: {}", error.code)
}

fn json(out: &mut impl Write, value: &impl Serialize) -> Result<(), JobError> {
    serde_json::to_writer(out, value).map_err(|error| io_error(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_stay_inside_and_ids_begin_at_one() {
        let found = |bbox| Detection { class: 0, label: "a".into(), score: 1.0, bbox };
        let one = boxed(&found([0.0, 33.333, 3.0, 100.0]), [3.0, 100.0]);
        assert_eq!((one.category.as_str(), one.bbox), ("1", [0.0, 0.33333, 1.0, 0.66667]));
        // Scores are floating point for readers that ask for the type.
        assert!(serde_json::to_string(&one).unwrap().contains("\"conf\":1.0,"));
        for step in 0..=1000 {
            let x = f64::from(step) * 0.007;
            let [x, _, w, _] = boxed(&found([x, 0.0, 7.0, 1.0]), [7.0, 1.0]).bbox;
            assert!(x + w <= 1.0 + 1e-12 && w >= 0.0, "{x} {w}");
        }
    }

    #[test]
    fn failures_begin_as_megadetectors_do() {
        let error = |code: &str| LineError {
            code: code.into(),
            stage: "decode".into(),
            message: String::new(),
        };
        assert_eq!(failure(&error("gone")), "image access failure: gone");
        assert_eq!(failure(&error("truncated")), "image access failure: truncated");
        assert_eq!(failure(&error("internal")), "inference failure: internal");
        assert_eq!((name(3, " "), name(3, "ant")), ("class 3".to_owned(), "ant".to_owned()));
    }
}
