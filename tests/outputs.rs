//! The forms that results are given away in.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use common::binary::{Haul, by_image, testdata};
use serde_json::Value;

/// A folder with our pictures, a broken one, and one whose name is not UTF-8.
fn mixed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["balloons.jpg", "empty.jpg", "phone.jpg", "table.png"] {
        fs::copy(testdata("pictures").join(name), dir.path().join(name)).unwrap();
    }
    let whole = fs::read(testdata("pictures/sea.jpg")).unwrap();
    fs::write(dir.path().join("cut.jpg"), &whole[..whole.len() / 2]).unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"odd-\xff.jpg"));
    fs::copy(testdata("pictures/stamp.jpg"), odd).unwrap();
    dir
}

fn exported(out: &Path, form: &str) -> String {
    Haul::new("export").arg(out).args(["--to", form]).exits(0).stdout
}

/// The rules of MegaDetector's own validator for version 1.6, and what its description asks.
fn check_megadetector(results: &Value) {
    let root = results.as_object().unwrap();
    assert_eq!(root.keys().collect::<Vec<_>>(), ["detection_categories", "images", "info"]);
    assert_eq!(results["info"]["format_version"], "1.6");
    assert!(results["info"]["detector"].is_string());
    let categories = results["detection_categories"].as_object().unwrap();
    for (id, name) in categories {
        assert!(id.parse::<u32>().unwrap() > 0, "0 is kept for `empty`");
        assert!(!name.as_str().unwrap().trim().is_empty());
    }
    for image in results["images"].as_array().unwrap() {
        assert!(image["file"].is_string(), "{image}");
        let Some(detections) = image["detections"].as_array() else {
            assert!(image["detections"].is_null() && image["failure"].is_string(), "{image}");
            continue;
        };
        assert!(image.get("failure").is_none(), "{image}");
        for found in detections {
            assert!(categories.contains_key(found["category"].as_str().unwrap()), "{found}");
            assert!(found["conf"].is_f64(), "{found}");
            let sides = found["bbox"].as_array().unwrap();
            assert_eq!(sides.len(), 4);
            assert!(sides.iter().all(|v| (0.0..=1.0).contains(&v.as_f64().unwrap())), "{found}");
        }
    }
}

#[test]
fn megadetector_gets_every_picture_with_boxes_in_units_of_it() {
    let (photos, dir) = (mixed(), tempfile::tempdir().unwrap());
    let out = dir.path().join("out");
    Haul::run(photos.path(), &out).args(["--imgsz", "320", "--precision", "f32"]).exits(3);
    let ran = Haul::new("export").arg(&out).args(["--to", "megadetector"]).exits(0);
    assert!(ran.stderr.contains("1 failed pictures with their error"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 names are not UTF-8"), "{}", ran.stderr);
    let results: Value = serde_json::from_str(&ran.stdout).unwrap();
    check_megadetector(&results);

    let lines = by_image(&out);
    let images = results["images"].as_array().unwrap();
    assert_eq!(images.len(), lines.len());
    let mut boxes = 0;
    for (image, line) in images.iter().zip(lines.values()) {
        assert_eq!(image["file"], line.image.as_str());
        assert_eq!(image.get("image_b64").and_then(Value::as_str), line.image_b64.as_deref());
        if line.image == "cut.jpg" {
            assert_eq!(image["failure"], "image access failure: truncated");
            continue;
        }
        let (width, height) = (line.width.unwrap(), line.height.unwrap());
        assert_eq!((&image["width"], &image["height"]), (&width.into(), &height.into()));
        let theirs = image["detections"].as_array().unwrap();
        let ours = line.detections.as_ref().unwrap();
        assert_eq!(theirs.len(), ours.len());
        for (their, our) in theirs.iter().zip(ours) {
            boxes += 1;
            let category = their["category"].as_str().unwrap();
            assert_eq!(category.parse::<u32>().unwrap(), our.class + 1);
            assert_eq!(results["detection_categories"][category], our.label.as_str());
            assert_eq!(their["conf"].as_f64().unwrap(), our.score);
            let side = |index: usize| their["bbox"][index].as_f64().unwrap();
            let (w, h) = (f64::from(width), f64::from(height));
            let pixels =
                [side(0) * w, side(1) * h, (side(0) + side(2)) * w, (side(1) + side(3)) * h];
            for (pixel, expected) in pixels.into_iter().zip(our.bbox) {
                assert!((pixel - expected).abs() < 2e-6 * w.max(h), "{their} {our:?}");
            }
        }
    }
    assert!(boxes > 5, "{boxes}");
    assert_eq!(exported(&out, "megadetector"), ran.stdout, "the same bytes each time");
}
