//! Parity with Ultralytics on real photographs: from JPEG files to boxes.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::binary::{Haul, lines};
use common::parity_data;
use haul::engine::{Precision, choose};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    image: String,
    width: u32,
    height: u32,
    detections: Vec<Box>,
}

#[derive(Clone, Copy, Deserialize)]
struct Box {
    class: u32,
    score: f64,
    #[serde(rename = "box")]
    bbox: [f64; 4],
}

fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let area = |r: [f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    w * h / (area(a) + area(b) - w * h)
}

/// How many of `these` above 0.30 have no partner among `those`, and how many there are.
fn lonely(these: &[Box], those: &[Box]) -> (usize, usize) {
    let mut taken = vec![false; those.len()];
    let mut alone = 0;
    let above: Vec<&Box> = these.iter().filter(|one| one.score >= 0.30).collect();
    for one in &above {
        let partner = those.iter().enumerate().position(|(index, other)| {
            !taken[index]
                && one.class == other.class
                && (one.score - other.score).abs() <= 0.03
                && iou(one.bbox, other.bbox) >= 0.95
        });
        match partner {
            Some(index) => taken[index] = true,
            None => alone += 1,
        }
    }
    (alone, above.len())
}

#[test]
fn boxes_on_photographs_are_those_of_ultralytics() {
    let Some(data) = parity_data() else { return };
    partners(&data, "f32", 1);
}

#[test]
fn boxes_in_bf16_are_nearly_those_of_ultralytics() {
    let Some(data) = parity_data() else { return };
    if choose(Precision::Bf16, None, None).is_err() {
        println!("skipped: this CPU has no bf16");
        return;
    }
    partners(&data, "bf16", 4);
}

/// Both ways, at most so many of a hundred detections may have no partner.
fn partners(data: &Path, precision: &str, percent: usize) {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    Haul::new("run")
        .args(["--precision", precision, "--conf", "0.25", "--model"])
        .arg(data.join("weights/yolov8n.pt"))
        .arg("--input")
        .arg(data.join("coco/images"))
        .arg("--output")
        .arg(&out)
        .exits(0);
    let golden = std::fs::read_to_string(data.join("golden/yolov8n_coco79_conf025.jsonl")).unwrap();
    let golden: BTreeMap<String, Golden> = golden
        .lines()
        .map(|line| serde_json::from_str::<Golden>(line).unwrap())
        .map(|golden| (golden.image.clone(), golden))
        .collect();
    let (mut missing, mut theirs, mut extra, mut ours) = (0, 0, 0, 0);
    let lines = lines(&out);
    assert_eq!(lines.len(), golden.len());
    for line in lines {
        let golden = &golden[&line.image];
        assert_eq!((line.width, line.height), (Some(golden.width), Some(golden.height)));
        let found: Vec<Box> = line
            .detections
            .unwrap()
            .into_iter()
            .map(|found| Box { class: found.class, score: found.score, bbox: found.bbox })
            .collect();
        let (alone, all) = lonely(&golden.detections, &found);
        (missing, theirs) = (missing + alone, theirs + all);
        let (alone, all) = lonely(&found, &golden.detections);
        (extra, ours) = (extra + alone, ours + all);
    }
    println!(
        "{precision}: {missing} of {theirs} golden detections have no partner, {extra} of ours {ours}"
    );
    assert!(theirs > 300);
    assert!(
        missing * 100 <= percent * theirs,
        "{missing} of {theirs} golden detections have no partner"
    );
    assert!(extra * 100 <= percent * ours, "{extra} of our {ours} detections have no partner");
}
