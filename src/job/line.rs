//! One picture, one JSON line: the only place that knows how it is written.
//!
//! The bytes are a promise (`docs/line.schema.json`): fields in this order, scores with at most 6
//! decimals, boxes with at most 3 (6 where they are normalised), trailing zeros trimmed, no exponent, no minus zero. Every front
//! end prints lines through here.

use std::io::Write;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::plan::{key_of, key_text};
use crate::pool::Found;
use crate::store::Key;

/// The version of the line; part of a job's fingerprint.
pub const LINE_SCHEMA: &str = "haul.line/1";

/// The schema itself, in JSON Schema's words.
pub const LINE_SCHEMA_JSON: &str = include_str!("../../docs/line.schema.json");

/// The published schema, ready to check lines against.
#[derive(Debug)]
pub struct LineSchema(jsonschema::JSONSchema);

impl LineSchema {
    /// Compiles [`LINE_SCHEMA_JSON`].
    ///
    /// # Panics
    /// Never: a test compiles the same text.
    #[must_use]
    pub fn new() -> LineSchema {
        let schema = serde_json::from_str(LINE_SCHEMA_JSON).expect("it is JSON. This is a bug.");
        LineSchema(
            jsonschema::JSONSchema::compile(&schema).expect("it is a schema. This is a bug."),
        )
    }

    /// Checks one line.
    ///
    /// # Errors
    /// The first thing that breaks the schema.
    pub fn check(&self, line: &serde_json::Value) -> Result<(), String> {
        let first = match self.0.validate(line) {
            Ok(()) => return Ok(()),
            Err(mut errors) => errors.next().map(|error| error.to_string()),
        };
        Err(first.unwrap_or_else(|| "it breaks the schema".to_owned()))
    }
}

impl Default for LineSchema {
    fn default() -> LineSchema {
        LineSchema::new()
    }
}

/// What the sides of a job's boxes are counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoxUnit {
    /// Pixels of the upright picture.
    #[default]
    Pixels,
    /// Its width and height: 0 to 1.
    Normalized,
}

impl FromStr for BoxUnit {
    type Err = ();

    fn from_str(name: &str) -> Result<BoxUnit, ()> {
        match name {
            "pixels" => Ok(BoxUnit::Pixels),
            "normalized" => Ok(BoxUnit::Normalized),
            _ => Err(()),
        }
    }
}

/// One detected object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detection {
    /// Class index.
    pub class: u32,
    /// The class's name in the model.
    pub label: String,
    /// Confidence, 0 to 1.
    pub score: f64,
    /// x1, y1, x2, y2 in the job's [`BoxUnit`].
    #[serde(rename = "box")]
    pub bbox: [f64; 4],
}

/// Why a picture has no detections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineError {
    /// A stable word for programs: `truncated`, `gone`, ….
    pub code: String,
    /// Where it happened: `fetch` or `decode`.
    pub stage: String,
    /// A fixed sentence for people.
    pub message: String,
}

/// A line as readers see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The full key relative to the input, U+FFFD where it is not UTF-8.
    pub image: String,
    /// The key's bytes in base64, only where `image` is not the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_b64: Option<String>,
    /// Pixels across, upright.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels down, upright.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// `--truncated accept` took an incomplete file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<bool>,
    /// What was found, by score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detections: Option<Vec<Detection>>,
    /// Or why nothing could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LineError>,
}

impl Line {
    /// Reads a line back.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Line, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// The key the line is about.
    ///
    /// # Errors
    /// When `image_b64` is not base64.
    pub fn key(&self) -> Result<Key, String> {
        key_of(self.image.clone(), self.image_b64.clone())
    }
}

/// Appends the line of a picture that was read.
pub fn write_detections(
    line: &mut Vec<u8>,
    key: &Key,
    (width, height): (u32, u32),
    truncated: bool,
    found: impl IntoIterator<Item = Found>,
    labels: &[String],
    unit: BoxUnit,
) {
    begin(line, key);
    put(line, format_args!(",\"width\":{width},\"height\":{height}"));
    if truncated {
        line.extend(b",\"truncated\":true");
    }
    line.extend(b",\"detections\":[");
    for (index, one) in found.into_iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        put(line, format_args!("{{\"class\":{},\"label\":", one.class));
        quote(line, labels.get(one.class as usize).map_or("", String::as_str));
        line.extend(b",\"score\":");
        decimal(line, f64::from(one.score), 6);
        line.extend(b",\"box\":[");
        for (index, side) in one.bbox.into_iter().enumerate() {
            if index > 0 {
                line.push(b',');
            }
            let side = f64::from(side);
            match unit {
                BoxUnit::Pixels => decimal(line, side, 3),
                BoxUnit::Normalized => {
                    let whole = f64::from(if index % 2 == 0 { width } else { height });
                    decimal(line, (side / whole).clamp(0.0, 1.0), 6);
                }
            }
        }
        line.extend(b"]}");
    }
    line.extend(b"]}\n");
}

/// Appends the line of a picture that could not be read.
pub fn write_error(line: &mut Vec<u8>, key: &Key, code: &str, stage: &str, message: &str) {
    begin(line, key);
    for (name, value) in
        [(",\"error\":{\"code\":", code), (",\"stage\":", stage), (",\"message\":", message)]
    {
        line.extend(name.as_bytes());
        quote(line, value);
    }
    line.extend(b"}}\n");
}

/// The most bytes a line can have with so many detections of labels no longer than this.
#[must_use]
pub(super) fn longest_line(max_det: usize, longest_label: usize) -> u64 {
    // A key has at most 4,096 bytes, each at most 6 as JSON text and 4/3 in base64.
    (4096 * 8 + max_det * (128 + 6 * longest_label)) as u64
}

fn begin(line: &mut Vec<u8>, key: &Key) {
    let (text, base64) = key_text(key);
    line.extend(b"{\"image\":");
    quote(line, &text);
    if let Some(code) = base64 {
        line.extend(b",\"image_b64\":");
        quote(line, &code);
    }
}

fn quote(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("writing a string to a Vec fails. This is a bug.");
}

fn put(line: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    line.write_fmt(arguments).expect("writing to a Vec fails. This is a bug.");
}

fn decimal(line: &mut Vec<u8>, value: f64, places: usize) {
    let start = line.len();
    put(line, format_args!("{value:.places$}"));
    while line.last() == Some(&b'0') {
        line.pop();
    }
    if line.last() == Some(&b'.') {
        line.pop();
    }
    if &line[start..] == b"-0" {
        line.truncate(start);
        line.push(b'0');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64, places: usize) -> String {
        let mut text = Vec::new();
        decimal(&mut text, value, places);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn numbers_are_trimmed() {
        let cases = [
            (0.931_921, 6, "0.931921"),
            (0.5, 6, "0.5"),
            (1.0, 6, "1"),
            (0.0, 3, "0"),
            (-0.0, 3, "0"),
            (-0.000_1, 3, "0"),
            (100.0, 3, "100"),
            (1e-7, 6, "0"),
            (6.009, 3, "6.009"),
            (99_999.999_9, 3, "100000"),
            (1e9, 3, "1000000000"),
        ];
        for (value, places, expected) in cases {
            assert_eq!(number(value, places), expected);
        }
    }

    #[test]
    fn the_line_is_the_one_in_the_design() {
        let mut line = Vec::new();
        let found = Found { class: 0, score: 0.931_921, bbox: [6.009, 166.607, 154.483, 262.237] };
        let labels = ["person".to_owned()];
        let (key, unit) = (Key::from("a/b.jpg"), BoxUnit::Pixels);
        write_detections(&mut line, &key, (640, 427), false, [found], &labels, unit);
        write_error(&mut line, &Key::new(*b"\xff\n.jpg"), "truncated", "decode", "It ends early.");
        let expected = concat!(
            r#"{"image":"a/b.jpg","width":640,"height":427,"detections":[{"class":0,"label":"person","#,
            r#""score":0.931921,"box":[6.009,166.607,154.483,262.237]}]}"#,
            "\n",
            "{\"image\":\"\u{fffd}\\n.jpg\",\"image_b64\":\"/wouanBn\",\"error\":{\"code\":\"truncated\",",
            r#""stage":"decode","message":"It ends early."}}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line.clone()).unwrap(), expected);
        let schema = LineSchema::new();
        for text in line.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
            let value: serde_json::Value = serde_json::from_slice(text).unwrap();
            schema.check(&value).unwrap();
            assert!(Line::parse(text).unwrap().key().is_ok());
        }
        assert_eq!(
            Line::parse(line.split(|&b| b == b'\n').nth(1).unwrap()).unwrap().key().unwrap(),
            Key::new(*b"\xff\n.jpg")
        );
    }

    #[test]
    fn normalised_boxes_are_shares_of_the_picture_and_stay_in_it() {
        let written = |bbox| {
            let (mut line, key) = (Vec::new(), Key::from("a"));
            let found = Found { class: 0, score: 0.5, bbox };
            let unit = BoxUnit::Normalized;
            write_detections(&mut line, &key, (640, 427), false, [found], &[], unit);
            let value = serde_json::from_slice(&line).unwrap();
            LineSchema::new().check(&value).unwrap();
            value["detections"][0]["box"].to_string()
        };
        assert_eq!(
            written([6.009, 166.607, 154.483, 262.237]),
            "[0.009389,0.39018,0.24138,0.614138]"
        );
        assert_eq!(written([0.0, 0.0, 640.0, 427.0]), "[0,0,1,1]");
        assert_eq!(written([-1.0, -0.0, 641.0, 428.0]), "[0,0,1,1]");
    }

    #[test]
    fn the_schema_refuses_what_is_not_a_line() {
        let schema = LineSchema::new();
        let bad = [
            r#"{}"#,
            r#"{"image":"a"}"#,
            r#"{"image":"a","width":1,"height":1}"#,
            r#"{"image":"a","width":0,"height":1,"detections":[]}"#,
            r#"{"image":"a","width":1,"height":1,"detections":[],"error":{"code":"x","stage":"decode","message":"m"}}"#,
            r#"{"image":"a","width":1,"height":1,"detections":[{"class":-1,"label":"","score":0.5,"box":[0,0,1,1]}]}"#,
            r#"{"image":"a","width":1,"height":1,"detections":[{"class":1,"label":"","score":1.5,"box":[0,0,1,1]}]}"#,
            r#"{"image":"a","width":1,"height":1,"detections":[{"class":1,"label":"","score":0.5,"box":[0,0,1]}]}"#,
            r#"{"image":"a","error":{"code":"Not A Word","stage":"decode","message":"m"}}"#,
            r#"{"image":"a","extra":1,"error":{"code":"gone","stage":"fetch","message":"m"}}"#,
        ];
        for text in bad {
            assert!(schema.check(&serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_longest_line_is_long_enough() {
        let labels = ["\u{1}".repeat(20)];
        let bbox = [-123_456.78; 4];
        let found = (0..300).map(|_| Found { class: 0, score: 0.123_456, bbox });
        let mut line = Vec::new();
        let key = Key::new(vec![1; 4096]);
        let unit = BoxUnit::Pixels;
        write_detections(&mut line, &key, (100_000, 100_000), true, found, &labels, unit);
        assert!(line.len() as u64 <= longest_line(300, 20), "{}", line.len());
    }
}
