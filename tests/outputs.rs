//! The forms that results are given away in.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use common::binary::{Haul, by_image, concatenated, folder, parts, success, testdata};
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

/// All lines of an output whose parts are compressed, as `cat part-* | zcat` would give them.
fn unpacked(out: &Path, compress: &str) -> Vec<u8> {
    let (packed, mut lines) = (concatenated(out), Vec::new());
    match compress {
        "gzip" => flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut lines).unwrap(),
        _ => zstd::Decoder::new(&packed[..]).unwrap().read_to_end(&mut lines).unwrap(),
    };
    lines
}

fn small(input: &Path, out: &Path, compress: &str) -> Haul {
    Haul::run(input, out).args(["--max-images", "3", "--precision", "f32", "--compress", compress])
}

fn job(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("_manifest/job.json")).unwrap()).unwrap()
}

#[test]
fn compressed_parts_hold_the_same_lines_and_every_reader_takes_them() {
    let (photos, dir) = (folder(10), tempfile::tempdir().unwrap());
    let plain = dir.path().join("none");
    small(photos.path(), &plain, "none").exits(0);
    assert!(job(&plain)["fingerprint"].get("compress").is_none());
    let lines = concatenated(&plain);
    for (compress, suffix) in [("gzip", ".jsonl.gz"), ("zstd", ".jsonl.zst")] {
        let out = dir.path().join(compress);
        small(photos.path(), &out, compress).exits(0);
        assert!(unpacked(&out, compress) == lines);
        assert!(job(&out)["fingerprint"]["compress"].as_str().unwrap().starts_with(compress));
        let there = parts(&out);
        assert_eq!(there.len(), 4);
        assert!(there.keys().all(|name| name.ends_with(suffix)), "{:?}", there.keys());
        // What `sha256sum part-*` prints has the digest that the marker says.
        let sums: String = there
            .iter()
            .map(|(name, bytes)| format!("{}  {name}\n", haul::store::sha256(bytes)))
            .collect();
        assert_eq!(success(&out)["parts_sha256"], haul::store::sha256(sums.as_bytes()));

        Haul::new("verify").arg(&out).exits(0);
        for form in ["csv", "coco", "megadetector"] {
            assert_eq!(exported(&out, form), exported(&plain, form));
        }
        // A crash between part and record, and one before the part: the same bytes again.
        fs::remove_file(out.join("_SUCCESS.json")).unwrap();
        fs::remove_file(out.join("_manifest/done/00000001.json")).unwrap();
        fs::remove_file(out.join("_manifest/done/00000002.json")).unwrap();
        fs::remove_file(out.join(format!("part-00000002{suffix}"))).unwrap();
        small(photos.path(), &out, compress)
            .arg("-v")
            .exits(0)
            .says("mini-batch 1: adopted its part");
        assert!(parts(&out) == there);
        Haul::new("verify").arg(&out).exits(0);
        // Parts cannot change their form on the way; a new job's may.
        small(photos.path(), &out, "none").exits(2).says("compress was \"");
        small(photos.path(), &out, "none").arg("--new").exits(0);
        assert!(parts(&out) == parts(&plain));
    }
    small(photos.path(), &dir.path().join("x"), "bzip2").exits(2).says("none, gzip or zstd");
}

#[test]
fn damaged_and_foreign_compressed_parts_are_named() {
    let (photos, dir) = (folder(6), tempfile::tempdir().unwrap());
    for (compress, suffix) in [("gzip", ".jsonl.gz"), ("zstd", ".jsonl.zst")] {
        let out = dir.path().join(compress);
        let again = || small(photos.path(), &out, compress);
        let verify = |code| Haul::new("verify").arg(&out).exits(code);
        again().exits(0);
        let part = out.join(format!("part-00000001{suffix}"));
        let record = out.join("_manifest/done/00000001.json");
        let (whole, kept) = (fs::read(&part).unwrap(), fs::read_to_string(&record).unwrap());

        // Bytes behind the data, with a record that agrees: only reading it shows them.
        for behind in [&whole[..], b"more"] {
            let longer = [&whole[..], behind].concat();
            let digest = [&whole, &longer].map(|bytes| haul::store::sha256(bytes));
            fs::write(&part, &longer).unwrap();
            fs::write(&record, kept.replace(&digest[0], &digest[1])).unwrap();
            assert!(verify(1).stderr.contains("bytes follow the end of its compressed data"));
            Haul::new("export").arg(&out).args(["--to", "csv"]).exits(1).says("bytes follow");
        }
        fs::write(&record, &kept).unwrap();

        // Without a record it would be adopted, so it must be what is planned and no more.
        fs::remove_file(&record).unwrap();
        fs::remove_file(out.join("_SUCCESS.json")).unwrap();
        let huge = vec![b' '; 64 << 20];
        let bomb = match compress {
            "gzip" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
                encoder.write_all(&huge).unwrap();
                encoder.finish().unwrap()
            }
            _ => zstd::encode_all(&huge[..], 3).unwrap(),
        };
        for (bytes, says) in [
            (bomb, "it unpacks to more than the"),
            (whole[..whole.len() - 1].to_vec(), "it cannot be unpacked as"),
            (b"{\"image\":\"x\"}\n".to_vec(), "it cannot be unpacked as"),
        ] {
            fs::write(&part, bytes).unwrap();
            let ran = again().exits(2).says(says).says(&format!("part-00000001{suffix}"));
            assert!(ran.stderr.contains("--new"), "{}", ran.stderr);
        }
        fs::write(&part, &whole).unwrap();

        // A part in another form is nobody's here, whatever it holds.
        fs::write(out.join("part-00000001.jsonl"), b"").unwrap();
        again().exits(2).says("part-00000001.jsonl` is not this job's");
        assert!(verify(1).stderr.contains("part-00000001.jsonl` is not this job's"));
        fs::remove_file(out.join("part-00000001.jsonl")).unwrap();
        again().exits(0);
        verify(0);
    }
}

/// Every number of a text, and what stands between them.
fn numbers(text: &str) -> (Vec<f64>, String) {
    let (mut found, mut rest) = (Vec::new(), String::new());
    let ours = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
    for piece in text.split_inclusive(|c| !ours(c)) {
        let number = piece.trim_end_matches(|c| !ours(c));
        match number.parse::<f64>() {
            Ok(value) => {
                found.push(value);
                rest.push('#');
                rest.push_str(&piece[number.len()..]);
            }
            Err(_) => rest.push_str(piece),
        }
    }
    (found, rest)
}

#[test]
fn exports_are_the_same_whatever_the_unit_of_the_boxes() {
    let (photos, dir) = (mixed(), tempfile::tempdir().unwrap());
    let run = |unit: &str| {
        let out = dir.path().join(unit);
        let options = ["--imgsz", "320", "--precision", "f32", "--boxes", unit];
        Haul::run(photos.path(), &out).args(options).exits(3);
        Haul::new("verify").arg(&out).exits(3);
        out
    };
    let (pixels, normalized) = (run("pixels"), run("normalized"));
    assert!(job(&pixels)["fingerprint"].get("boxes").is_none());
    assert_eq!(job(&normalized)["fingerprint"]["boxes"], "normalized");
    let (ours, theirs) = (by_image(&pixels), by_image(&normalized));
    let mut boxes = 0;
    for (name, line) in &ours {
        let other = &theirs[name];
        let Some(found) = &line.detections else {
            assert_eq!(line, other);
            continue;
        };
        let (width, height) = (line.width.unwrap(), line.height.unwrap());
        let sides = [width, height, width, height].map(f64::from);
        for (one, two) in found.iter().zip(other.detections.as_ref().unwrap()) {
            boxes += 1;
            assert_eq!((one.class, one.score), (two.class, two.score));
            for ((share, pixels), side) in two.bbox.iter().zip(one.bbox).zip(sides) {
                assert!((0.0..=1.0).contains(share), "{two:?}");
                let within = 0.6e-6 + 0.000_6 / side;
                assert!((share - pixels / side).abs() < within, "{one:?} {two:?}");
            }
        }
    }
    assert!(boxes > 5, "{boxes}");

    // Half a millionth of 640 pixels, or half a thousandth of one in 120, and both twice.
    for (form, within) in [("csv", 0.0015), ("megadetector", 1e-5)] {
        let (one, two) = (numbers(&exported(&pixels, form)), numbers(&exported(&normalized, form)));
        assert_eq!(one.1, two.1, "{form}");
        assert!(one.0.len() == two.0.len() && one.0.len() > 5 * boxes, "{form}");
        for (one, two) in one.0.iter().zip(&two.0) {
            assert!((one - two).abs() <= within, "{form}: {one} {two}");
        }
    }
    let coco = |out: &Path| -> Value { serde_json::from_str(&exported(out, "coco")).unwrap() };
    let (one, two) = (coco(&pixels), coco(&normalized));
    assert_eq!((&one["images"], &one["categories"]), (&two["images"], &two["categories"]));
    let annotations = |coco: &Value| coco["annotations"].as_array().unwrap().clone();
    assert_eq!(annotations(&one).len(), annotations(&two).len());
    for (one, two) in annotations(&one).iter().zip(annotations(&two)) {
        assert_eq!((&one["image_id"], &one["score"]), (&two["image_id"], &two["score"]));
        for index in 0..4 {
            let side = |annotation: &Value| annotation["bbox"][index].as_f64().unwrap();
            assert!((side(one) - side(&two)).abs() < 0.003, "{one} {two}");
        }
    }
    let yolo = |out: &Path, name: &str| {
        let to = dir.path().join(name);
        Haul::new("export").arg(out).args(["--to", "yolo", "--dest"]).arg(&to).exits(0);
        numbers(&fs::read_to_string(to.join("balloons.txt")).unwrap())
    };
    let (one, two) = (yolo(&pixels, "labels-a"), yolo(&normalized, "labels-b"));
    assert_eq!((one.1, one.0.len()), (two.1, two.0.len()));
    assert!(one.0.iter().zip(&two.0).all(|(one, two)| (one - two).abs() <= 1e-5));
    Haul::run(photos.path(), &pixels)
        .args(["--imgsz", "320", "--precision", "f32", "--boxes", "normalized"])
        .exits(2)
        .says("boxes was null, is \"normalized\"");
}
