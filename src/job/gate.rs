//! `--gate`: what a complete job must hold.
//!
//! ```text
//! gate     = metric operator number [ "%" ]
//! metric   = "pictures" | "errors" | "error" CODE | "detections" | "class" LABEL
//! operator = "<" | "<=" | ">" | ">=" | "==" | "!="
//! ```
//!
//! It is read from the right, so that a label may hold anything, spaces and operators too.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::exit::{Exit, JobError};
use crate::store::one_line;

/// Every code that an error line can have. A gate on another one could never be broken.
const CODES: [&str; 15] = [
    "archived",
    "broken_link",
    "changed",
    "corrupt",
    "denied",
    "empty",
    "gone",
    "internal",
    "not_an_image",
    "outside_link",
    "quarantined",
    "too_large",
    "truncated",
    "unreadable",
    "unsupported",
];

/// What there is to measure, for messages.
const METRICS: &str = "pictures, errors, error CODE, detections and class LABEL";

/// What a complete job adds up to.
#[derive(Clone, Copy, Debug)]
pub struct Totals<'a> {
    /// Planned pictures.
    pub pictures: u64,
    /// Failed pictures.
    pub failed: u64,
    /// Failed pictures by code.
    pub errors: &'a BTreeMap<String, u64>,
    /// Detections by label.
    pub classes: &'a BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Metric {
    Pictures,
    Errors,
    Error(String),
    Detections,
    Class(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// Longer ones first: `<=` also begins with `<`.
const OPERATORS: [(&str, Operator); 6] = [
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

/// A condition on a complete job.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    text: String,
    metric: Metric,
    operator: Operator,
    bound: f64,
    /// Of the planned pictures, in percent.
    share: bool,
}

/// How a gate came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateResult {
    /// The gate as it was given.
    pub expression: String,
    /// What was measured; percent where the gate says so.
    #[serde(serialize_with = "whole_without_point")]
    pub value: f64,
    /// Whether the gate holds.
    pub holds: bool,
    /// `value` in words.
    #[serde(skip)]
    pub measured: String,
}

impl Gate {
    /// Reads a gate.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming what is wrong with it and what there is instead.
    pub fn parse(text: &str) -> Result<Gate, JobError> {
        let text = text.trim();
        let wrong = |what: String| JobError::Usage(format!("--gate `{text}`: {what}"));
        let (rest, share) = match text.strip_suffix('%') {
            Some(rest) => (rest.trim_end(), true),
            None => (text, false),
        };
        let digits = rest.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &rest[digits.len()..];
        let bound: f64 = number.parse().map_err(|_| {
            wrong(
                "it ends in no number; a gate is METRIC OPERATOR NUMBER, as in `errors < 2%`"
                    .into(),
            )
        })?;
        let before = digits.trim_end();
        let (metric, operator) = OPERATORS
            .iter()
            .find_map(|(sign, operator)| Some((before.strip_suffix(sign)?.trim_end(), *operator)))
            .ok_or_else(|| {
                wrong(format!("before {number} belongs an operator: <, <=, >, >=, == or !="))
            })?;
        let metric = match metric.split_once(char::is_whitespace) {
            None if metric == "pictures" => Metric::Pictures,
            None if metric == "errors" => Metric::Errors,
            None if metric == "detections" => Metric::Detections,
            Some(("error", code)) if CODES.contains(&code.trim()) => {
                Metric::Error(code.trim().to_owned())
            }
            Some(("error", code)) => {
                let code = code.trim();
                return Err(wrong(format!(
                    "there is no error `{code}`; there are {}",
                    CODES.join(", ")
                )));
            }
            Some(("class", label)) => Metric::Class(label.trim().to_owned()),
            _ => return Err(wrong(format!("there is no metric `{metric}`; there are {METRICS}"))),
        };
        if share && !matches!(metric, Metric::Errors | Metric::Error(_)) {
            return Err(wrong("% means of the planned pictures, and goes with errors only".into()));
        }
        if share && bound > 100.0 {
            return Err(wrong("a share lies between 0 and 100 %".into()));
        }
        Ok(Gate { text: text.to_owned(), metric, operator, bound, share })
    }

    /// Checks that the job can have what the gate counts. `kept` is what `--classes` leaves.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the class and those that there are.
    pub fn check_class(&self, labels: &[String], kept: Option<&[u32]>) -> Result<(), JobError> {
        let Metric::Class(wanted) = &self.metric else { return Ok(()) };
        let all = (0..labels.len() as u32).collect::<Vec<u32>>();
        let names = |ids: &[u32]| -> Vec<&str> {
            ids.iter().filter_map(|&id| labels.get(id as usize)).map(String::as_str).collect()
        };
        let kept = names(kept.unwrap_or(&all));
        if kept.contains(&wanted.as_str()) {
            return Ok(());
        }
        let (text, kept, all) = (&self.text, kept.join(", "), labels.join(", "));
        Err(JobError::Usage(if labels.contains(wanted) {
            format!("--gate `{text}`: --classes leaves `{wanted}` out, and keeps {kept}")
        } else {
            format!("--gate `{text}`: the model has no class `{wanted}`; it has {all}")
        }))
    }

    /// The gate as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is about all failed pictures, and so decides whether there may be any.
    fn speaks_for_failures(&self) -> bool {
        self.metric == Metric::Errors
    }

    fn measure(&self, totals: &Totals<'_>) -> GateResult {
        let count = match &self.metric {
            Metric::Pictures => totals.pictures,
            Metric::Errors => totals.failed,
            Metric::Error(code) => totals.errors.get(code).copied().unwrap_or(0),
            Metric::Detections => totals.classes.values().sum(),
            Metric::Class(label) => totals.classes.get(label).copied().unwrap_or(0),
        };
        let pictures = totals.pictures;
        // One division of whole numbers, so that 2 of 100 is the same number as `2`.
        let value = match self.share {
            false => count as f64,
            true if pictures == 0 => 0.0,
            true => (100 * count) as f64 / pictures as f64,
        };
        let holds = match self.operator {
            Operator::Less => value < self.bound,
            Operator::LessOrEqual => value <= self.bound,
            Operator::Greater => value > self.bound,
            Operator::GreaterOrEqual => value >= self.bound,
            Operator::Equal => value == self.bound,
            Operator::NotEqual => value != self.bound,
        };
        let measured = match self.share {
            false => count.to_string(),
            true => format!("{}%, {count} of {pictures}", (value * 1e6).round() / 1e6),
        };
        GateResult { expression: self.text.clone(), value, holds, measured }
    }
}

impl std::fmt::Display for GateResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.holds { "holds" } else { "DOES NOT HOLD" };
        let expression = one_line(&self.expression);
        write!(f, "gate {verdict}: {expression} (measured: {})", self.measured)
    }
}

/// Holds a complete job against its gates: how each came out, and the exit code that comes of it.
///
/// A gate on `errors` says how many pictures may fail, so where one is given and all gates hold,
/// failed pictures alone are no exit 3 any more.
#[must_use]
pub fn judge(gates: &[Gate], totals: &Totals<'_>) -> (Vec<GateResult>, Exit) {
    let results: Vec<GateResult> = gates.iter().map(|gate| gate.measure(totals)).collect();
    let allowed = totals.failed == 0 || gates.iter().any(Gate::speaks_for_failures);
    let exit = match (results.iter().all(|result| result.holds), allowed) {
        (false, _) => Exit::Gate,
        (true, true) => Exit::Done,
        (true, false) => Exit::SomeFailed,
    };
    (results, exit)
}

/// Counts as JSON writes counts, shares with their decimals.
fn whole_without_point<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 {
        serializer.serialize_u64(*value as u64)
    } else {
        serializer.serialize_f64(*value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, pictures: u64, failed: u64) -> (bool, String) {
        let errors = BTreeMap::from([("truncated".to_owned(), failed)]);
        let classes = BTreeMap::from([("boat".to_owned(), 3), ("a <= b".to_owned(), 4)]);
        let totals = Totals { pictures, failed, errors: &errors, classes: &classes };
        let result = Gate::parse(text).unwrap().measure(&totals);
        (result.holds, result.measured)
    }

    #[test]
    fn each_metric_and_operator() {
        for (text, expected, measured) in [
            ("pictures >= 50", true, "50"),
            ("pictures>50", false, "50"),
            ("errors == 1", true, "1"),
            (" errors  !=  1 ", false, "1"),
            ("errors < 2%", false, "2%, 1 of 50"),
            ("errors <= 2 %", true, "2%, 1 of 50"),
            ("errors < 2.0001%", true, "2%, 1 of 50"),
            ("error truncated <= 0.5", false, "1"),
            ("error empty == 0", true, "0"),
            ("error truncated <= 2.0%", true, "2%, 1 of 50"),
            ("detections >= 7", true, "7"),
            ("class boat > 3", false, "3"),
            ("class a <= b < 5", true, "4"),
        ] {
            assert_eq!(holds(text, 50, 1), (expected, measured.to_owned()), "{text}");
        }
    }

    #[test]
    fn shares_are_exact_where_they_can_be() {
        for (failed, pictures, percent) in [(21, 1000, "2.1"), (7, 10_000, "0.07"), (1, 8, "12.5")]
        {
            let (equal, measured) = holds(&format!("errors == {percent}%"), pictures, failed);
            assert!(equal, "{measured}");
        }
        assert_eq!(holds("errors < 0.001%", 0, 0), (true, "0%, 0 of 0".to_owned()));
    }

    #[test]
    fn what_is_no_gate_is_said() {
        for (text, expected) in [
            ("errors", "it ends in no number"),
            ("errors < many", "it ends in no number"),
            ("errors < .", "it ends in no number"),
            ("errors = 2", "an operator: <, <=, >, >=, == or !="),
            ("errors < -1", "before 1 belongs an operator"),
            ("< 2", "there is no metric ``"),
            ("speed > 2", "there is no metric `speed`; there are pictures, errors, error CODE"),
            ("pictures of me > 2", "there is no metric `pictures of me`"),
            ("error cut < 2", "there is no error `cut`; there are archived, broken_link"),
            ("detections > 2%", "goes with errors only"),
            ("errors < 101%", "between 0 and 100 %"),
        ] {
            let error = Gate::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
            assert!(error.contains(&format!("--gate `{text}`")), "{error}");
        }
    }

    #[test]
    fn a_class_must_be_one_that_can_be_found() {
        let labels = ["boat".to_owned(), "traffic light".to_owned()];
        let gate = Gate::parse("class traffic light == 0").unwrap();
        gate.check_class(&labels, None).unwrap();
        gate.check_class(&labels, Some(&[1])).unwrap();
        let error = gate.check_class(&labels, Some(&[0])).unwrap_err().to_string();
        assert!(error.contains("--classes leaves `traffic light` out, and keeps boat"), "{error}");
        let error = gate.check_class(&labels[..1], None).unwrap_err().to_string();
        assert!(error.contains("no class `traffic light`; it has boat"), "{error}");
    }

    #[test]
    fn gates_on_errors_speak_for_failed_pictures_and_no_others_do() {
        let exit = |gates: &[&str], failed: u64| {
            let gates: Vec<Gate> = gates.iter().map(|text| Gate::parse(text).unwrap()).collect();
            let errors = BTreeMap::from([("empty".to_owned(), failed)]);
            let classes = BTreeMap::new();
            let totals = Totals { pictures: 10, failed, errors: &errors, classes: &classes };
            judge(&gates, &totals).1
        };
        assert_eq!(exit(&[], 0), Exit::Done);
        assert_eq!(exit(&[], 1), Exit::SomeFailed);
        assert_eq!(exit(&["errors < 20%"], 1), Exit::Done);
        assert_eq!(exit(&["errors < 20%"], 2), Exit::Gate);
        assert_eq!(exit(&["error empty <= 1"], 1), Exit::SomeFailed);
        assert_eq!(exit(&["pictures >= 1"], 1), Exit::SomeFailed);
        assert_eq!(exit(&["errors < 20%", "pictures >= 11"], 1), Exit::Gate);
        assert_eq!(exit(&["errors < 20%", "errors == 0"], 1), Exit::Gate);
    }

    #[test]
    fn every_code_of_a_picture_can_be_named() {
        let page = include_str!("../../README.md");
        let table = page.split("| code | the picture |").nth(1).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let mut seen = 0;
        for code in rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split(',')) {
            let code = code.trim().trim_matches('`');
            assert!(CODES.contains(&code), "{code}");
            seen += 1;
        }
        assert!(seen >= 13, "{seen}");
    }
}
