//! What a job's output depends on. Another fingerprint on the same output is refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::exit::JobError;
use super::line::{BoxUnit, LINE_SCHEMA};
use super::manifest::Job;
use super::spec::{Input, Spec};
use crate::engine::NUMERICS_VERSION;
use crate::picture::{DECODERS, Truncated};
use crate::store::IdentityKind;

/// Named values that decide output bytes.
pub type Fingerprint = BTreeMap<String, Value>;

/// What the model adds to a fingerprint.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Digest of the checkpoint's file.
    pub sha256: String,
    /// Class names by index.
    pub labels: Vec<String>,
    /// Longest side of the input, a multiple of 32: asked for, or the model's own.
    pub imgsz: u32,
    /// Classes to keep, resolved to indices.
    pub classes: Option<Vec<u32>>,
    /// The engine's numeric class.
    pub numeric_class: String,
}

/// The name of the arithmetic in a fingerprint.
const NUMERIC_CLASS: &str = "numeric_class";

/// The numeric class of a job that exists.
#[must_use]
pub(super) fn numeric_class(job: &Job) -> Option<&str> {
    job.fingerprint.get(NUMERIC_CLASS)?.as_str()
}

/// The class names of a job that exists.
#[must_use]
pub(super) fn labels(job: &Job) -> Vec<String> {
    let labels = job.fingerprint.get("labels").cloned().unwrap_or_default();
    serde_json::from_value(labels).unwrap_or_default()
}

/// What `--classes` left of them, if it was given.
#[must_use]
pub(super) fn kept_classes(job: &Job) -> Option<Vec<u32>> {
    serde_json::from_value(job.fingerprint.get("classes")?.clone()).ok()
}

/// The fingerprint of a job.
#[must_use]
pub(super) fn fingerprint(spec: &Spec, model: &ModelFacts) -> Fingerprint {
    let input = match &spec.input {
        Input::Stdin => "-".to_owned(),
        Input::S3(location) => location.to_string(),
        Input::Path(path) => {
            path.components().collect::<std::path::PathBuf>().display().to_string()
        }
    };
    let decode = json!({
        "decoders": DECODERS,
        "truncated": match spec.inference.limits.truncated {
            Truncated::Reject => "reject",
            Truncated::Accept => "accept",
        },
    });
    let identity = match spec.identity {
        IdentityKind::Mtime => "mtime",
        IdentityKind::Size => "size",
        IdentityKind::Sha256 => "sha256",
        IdentityKind::Etag => "etag",
    };
    let fields = [
        ("weights", json!(model.sha256)),
        ("labels", json!(model.labels)),
        (NUMERIC_CLASS, json!(model.numeric_class)),
        ("numerics_version", json!(NUMERICS_VERSION)),
        ("conf", json!(spec.inference.conf)),
        ("iou", json!(spec.inference.iou)),
        ("max_det", json!(spec.inference.max_det)),
        ("classes", json!(model.classes)),
        ("agnostic", json!(spec.inference.agnostic)),
        ("imgsz", json!(model.imgsz)),
        ("square", json!(spec.inference.square)),
        ("decode", decode),
        ("line_schema", json!(LINE_SCHEMA)),
        ("input", json!(input)),
        ("key_column", json!(spec.key_column)),
        ("include", json!(spec.include)),
        ("exclude", json!(spec.exclude)),
        ("hidden", json!(spec.hidden)),
        ("follow_symlinks", json!(spec.follow_symlinks)),
        ("identity", json!(identity)),
        ("limit", json!(spec.limit)),
        ("sample", json!(spec.sample.map(|sample| sample.pictures))),
        ("seed", json!(spec.sample.map(|sample| sample.seed))),
        ("since", json!(spec.since)),
        ("max_payload_bytes", json!(spec.caps.payload)),
        ("max_images", json!(spec.caps.pictures)),
        ("max_pixels", json!(spec.inference.limits.max_pixels)),
        ("max_file_bytes", json!(spec.inference.max_file)),
        ("max_picture_memory", json!(spec.inference.limits.max_memory)),
    ];
    // Only where they are asked for, so that the fingerprints of all other jobs stay as they were.
    let asked = [
        ("compress", spec.compress.fingerprint().map(|text| json!(text))),
        ("boxes", (spec.inference.boxes == BoxUnit::Normalized).then(|| json!("normalized"))),
        ("retry", spec.retry.as_ref().map(|retry| json!(retry.output))),
    ];
    let asked = asked.into_iter().filter_map(|(name, value)| Some((name, value?)));
    fields.into_iter().chain(asked).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Refuses a fingerprint that is not the job's.
///
/// # Errors
/// [`JobError::Fingerprint`] naming each field that differs, with both values.
pub(super) fn check(job: &Fingerprint, ours: &Fingerprint, output: &str) -> Result<(), JobError> {
    let nothing = Value::Null;
    let names: std::collections::BTreeSet<&String> = job.keys().chain(ours.keys()).collect();
    let mut differences = Vec::new();
    for name in names {
        let (was, is) = (job.get(name).unwrap_or(&nothing), ours.get(name).unwrap_or(&nothing));
        if was != is {
            differences.push(format!("{name} was {}, is {}", brief(was), brief(is)));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    // `haul retry` has no --new: its output is easily deleted.
    let ways = match job.contains_key("retry") {
        true => "use another --output",
        false => "use another --output, or --new to start over",
    };
    Err(JobError::Fingerprint(format!(
        "`{output}` holds a job with other settings: {} ({ways})",
        differences.join("; ")
    )))
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_with_both_values() {
        let a = Fingerprint::from([("conf".into(), json!(0.25)), ("iou".into(), json!(0.7))]);
        let mut b = a.clone();
        check(&a, &b, "out").unwrap();
        b.insert("conf".into(), json!(0.5));
        b.remove("iou");
        let error = check(&a, &b, "out").unwrap_err().to_string();
        assert!(error.contains("conf was 0.25, is 0.5; iou was 0.7, is null"), "{error}");
    }
}
