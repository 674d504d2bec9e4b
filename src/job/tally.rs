//! Counting a part's lines, and holding them against the plan.

use std::collections::BTreeMap;

use super::line::{Line, Meta};
use super::plan::Batch;
/// What the lines of a part add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines with detections.
    pub ok: u64,
    /// Lines with an error.
    pub failed: u64,
    /// Detections by label.
    pub classes: BTreeMap<String, u64>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts a part's lines, and checks that they are those of the mini-batch.
    ///
    /// # Errors
    /// A sentence naming the first line that is not.
    pub fn of_part(part: &[u8], batch: &Batch) -> Result<Tally, String> {
        let mut lines = part.split_inclusive(|&b| b == b'\n');
        let mut tally = Tally::default();
        for (index, object) in batch.objects.iter().enumerate() {
            let at = index + 1;
            let text = lines.next().ok_or_else(|| format!("line {at} is missing"))?;
            let text = text.strip_suffix(b"\n").ok_or_else(|| format!("line {at} is torn"))?;
            let line = Line::parse(text).map_err(|error| format!("line {at}: {error}"))?;
            let key = line.key().map_err(|error| format!("line {at}: {error}"))?;
            if key != object.key {
                return Err(format!("line {at} is about `{key}`, the plan says `{}`", object.key));
            }
            if line.meta.as_ref().map(Meta::to_text) != object.meta {
                return Err(format!("line {at} has not the meta that the plan has for `{key}`"));
            }
            tally.add(&line);
        }
        match lines.next() {
            Some(_) => Err("it has more lines than the plan".to_owned()),
            None => Ok(tally),
        }
    }

    /// Adds another count to this one.
    pub fn merge(&mut self, other: Tally) {
        self.ok += other.ok;
        self.failed += other.failed;
        for (label, count) in other.classes {
            *self.classes.entry(label).or_default() += count;
        }
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }

    fn add(&mut self, line: &Line) {
        if let Some(error) = &line.error {
            self.failed += 1;
            *self.errors.entry(error.code.clone()).or_default() += 1;
        } else {
            self.ok += 1;
        }
        for detection in line.detections.iter().flatten() {
            *self.classes.entry(detection.label.clone()).or_default() += 1;
        }
    }
}
