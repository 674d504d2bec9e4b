//! What happens when model, settings or pictures change between runs.

mod common;

use std::fs;
use std::path::Path;

use common::binary::{Haul, by_image, fill, folder, model, parts, success, testdata};

#[test]
fn another_model_or_threshold_is_refused_by_name() {
    let photos = folder(4);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).exits(0);
    for (flags, says) in [
        (&["--conf", "0.5"][..], "conf was 0.25, is 0.5"),
        (&["--iou", "0.5"], "iou was 0.7, is 0.5"),
        (&["--max-det", "7"], "max_det was 300, is 7"),
        (&["--classes", "boat"], "classes was null, is ["),
        (&["--agnostic"], "agnostic was false, is true"),
        (&["--square"], "square was false, is true"),
        (&["--exclude", "*.bmp"], "exclude was [], is [\"*.bmp\"]"),
        (&["--limit", "2"], "limit was null, is 2"),
        (&["--max-images", "2"], "max_images was 100, is 2"),
        (&["--identity", "size"], "identity was \"mtime\", is \"size\""),
    ] {
        Haul::run(photos.path(), &out).args(flags).exits(2).says(says);
    }
    // Another checkpoint: the same weights with one bit of metadata changed are other bytes.
    let mut bytes = fs::read(model()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let other = root.path().join("other.safetensors");
    fs::write(&other, bytes).unwrap();
    let run =
        Haul::new("run").arg("-m").arg(&other).arg("-i").arg(photos.path()).arg("-o").arg(&out);
    run.args(["--imgsz", "64"]).exits(2).says("weights was");
    // What is not in the fingerprint may change.
    Haul::run(photos.path(), &out).args(["--workers", "1", "--memory-budget", "2GiB"]).exits(0);
    // And a way out is named, and works.
    Haul::run(photos.path(), &out).args(["--conf", "0.5", "--new"]).exits(0);
    Haul::run(photos.path(), &out).args(["--conf", "0.5"]).exits(0);
}

#[test]
fn a_picture_changed_or_gone_since_the_plan_is_an_error_line() {
    let photos = folder(6);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let plan =
        Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path()).arg("-o").arg(&out);
    plan.args(["--imgsz", "64"]).exits(0).says("6 pictures");
    fs::copy(testdata("pictures/sea.jpg"), photos.path().join("0/00003.jpg")).unwrap();
    fs::remove_file(photos.path().join("1/00001.png")).unwrap();
    fs::remove_file(photos.path().join("2/00002.jpg")).unwrap();
    fs::create_dir(photos.path().join("2/00002.jpg")).unwrap();
    fill(photos.path(), 6..9);
    Haul::new("resume").arg(&out).exits(3);
    let lines = by_image(&out);
    assert_eq!(lines.len(), 6, "what came after the plan is not in it");
    let code = |image: &str| lines[image].error.as_ref().map(|error| error.code.as_str());
    assert_eq!(code("0/00003.jpg"), Some("changed"));
    assert_eq!(code("1/00001.png"), Some("gone"));
    assert_eq!(code("2/00002.jpg"), Some("changed"));
    assert_eq!(code("0/00000.jpg"), None);
    Haul::new("verify").arg(&out).exits(3);
}

#[test]
fn an_input_that_is_no_longer_there_blames_no_picture() {
    let root = tempfile::tempdir().unwrap();
    let (photos, out) = (root.path().join("photos"), root.path().join("out"));
    fs::create_dir(&photos).unwrap();
    fill(&photos, 0..40);
    let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(&photos).arg("-o").arg(&out);
    plan.args(["--imgsz", "64", "--max-images", "4"]).exits(0);
    // As when a disk is not mounted: the folder is there, and empty.
    fs::rename(&photos, root.path().join("away")).unwrap();
    fs::create_dir(&photos).unwrap();
    Haul::new("resume").arg(&out).exits(1).says("is it still mounted?");
    assert!(!out.join("part-00000000.jsonl").exists());
    assert!(fs::read_dir(out.join("_manifest/failed")).unwrap().count() > 0);
    Haul::new("status").arg(&out).exits(75);
    fs::remove_dir(&photos).unwrap();
    fs::rename(root.path().join("away"), &photos).unwrap();
    Haul::new("resume").arg(&out).exits(0);
    assert_eq!(success(&out)["ok"], 40);
}

#[test]
fn a_grown_folder_is_named_and_since_does_just_the_new_ones() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fill(&photos, 0..5);
    let night = |n: usize| root.path().join(format!("outputs/night-{n}"));
    Haul::run(&photos, &night(1)).exits(0);
    Haul::run(&photos, &night(1)).exits(0).says("nothing is new");

    fill(&photos, 5..8);
    fs::remove_file(photos.join("1/00001.png")).unwrap();
    fs::copy(testdata("pictures/sea.jpg"), photos.join("0/00000.jpg")).unwrap();
    let ran = Haul::run(&photos, &night(1)).exits(2);
    let ran = ran.says("has 3 new, 1 changed and 1 gone pictures since the plan");
    ran.says("--since").says("--new");
    // `resume` never lists a finished plan again.
    Haul::new("resume").arg(night(1)).exits(0);

    let since = |from: &Path, n: usize| Haul::run(&photos, &night(n)).arg("--since").arg(from);
    since(&night(1), 2).exits(0);
    let images = |n: usize| by_image(&night(n)).into_keys().collect::<Vec<_>>();
    assert_eq!(images(2), ["0/00000.jpg", "0/00006.jpg", "1/00007.png", "2/00005.jpg"]);
    since(&night(1), 2).exits(0).says("nothing is new");

    // The third night: by the last output alone, and by the folder of them all.
    fill(&photos, 8..9);
    since(&night(2), 3).exits(0);
    assert_eq!(images(3), ["2/00008.jpg"]);
    let slash = format!("{}/", root.path().join("outputs").display());
    fill(&photos, 9..10);
    since(Path::new(&slash), 4).exits(0);
    assert_eq!(images(4), ["0/00009.jpg"]);
    // Nothing new is fine.
    since(Path::new(&slash), 5).exits(0);
    assert_eq!(success(&night(5))["planned"], 0);
    Haul::new("verify").arg(night(5)).exits(0);

    // An unfinished one is left out of a folder, and refused by name.
    fs::remove_dir_all(night(5)).unwrap();
    fs::remove_file(night(4).join("_SUCCESS.json")).unwrap();
    since(Path::new(&slash), 6).exits(0).says("night-4");
    assert_eq!(images(6), ["0/00009.jpg"]);
    since(&night(4), 7).exits(2).says("haul resume");
    since(&photos.join("0"), 7).exits(0).says("done: 9 planned");
}

#[test]
fn since_a_plan_that_has_lost_a_segment_is_an_error() {
    let photos = folder(70);
    let root = tempfile::tempdir().unwrap();
    let (out, next) = (root.path().join("out"), root.path().join("next"));
    Haul::run(photos.path(), &out).args(["--max-images", "1"]).exits(0);
    let since = || Haul::run(photos.path(), &next).arg("--since").arg(&out);
    for segment in ["plan-00000000.jsonl", "plan-00000001.jsonl"] {
        let path = out.join("_manifest").join(segment);
        let text = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        since().exits(1).says(segment).says("is missing");
        assert!(!next.join("_manifest/job.json").exists());
        fs::write(&path, text).unwrap();
    }
    since().exits(0).says("0 planned");
}

#[test]
fn new_deletes_only_what_haul_wrote() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).exits(0);
    fs::write(out.join("notes.txt"), b"mine").unwrap();
    Haul::run(photos.path(), &out).args(["--new", "--conf", "0.9"]).exits(0);
    assert_eq!(fs::read(out.join("notes.txt")).unwrap(), b"mine");
    // An empty listing does not cost the results that are there.
    let empty = tempfile::tempdir().unwrap();
    Haul::run(empty.path(), &out).arg("--new").exits(5);
    Haul::new("verify").arg(&out).exits(0);

    let other = root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), b"x").unwrap();
    Haul::run(photos.path(), &other).exits(2).says("thesis.tex");
    assert!(other.join("thesis.tex").exists());
}

#[test]
fn new_says_what_stands_in_its_way_before_it_deletes() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).exits(0);
    let before = parts(&out);
    fs::write(out.join("_manifest/done/notes.txt"), b"mine").unwrap();
    fs::write(out.join("_manifest/done/.nfs0001"), b"the server's").unwrap();
    Haul::run(photos.path(), &out).args(["--new", "--conf", "0.9"]).exits(2).says("notes.txt");
    assert!(out.join("_SUCCESS.json").exists());
    assert_eq!(parts(&out), before);
    fs::remove_file(out.join("_manifest/done/notes.txt")).unwrap();
    Haul::run(photos.path(), &out).exits(0);
    Haul::run(photos.path(), &out).args(["--new", "--conf", "0.9"]).exits(0);
    assert_eq!(fs::read(out.join("_manifest/done/.nfs0001")).unwrap(), b"the server's");
}

#[test]
fn a_finished_output_that_lost_something_is_not_called_done() {
    let photos = folder(70);
    let root = tempfile::tempdir().unwrap();
    for lost in ["_manifest/done/00000001.json", "_manifest/plan-00000001.jsonl"] {
        let out = root.path().join("out");
        Haul::run(photos.path(), &out).args(["--max-images", "1", "--imgsz", "32"]).exits(0);
        fs::remove_file(out.join(lost)).unwrap();
        let says = "is something missing?";
        Haul::new("status").arg(&out).exits(1).says(says);
        Haul::new("resume").arg(&out).args(["--gate", "errors == 0"]).exits(1).says(says);
        let export = || Haul::new("export").arg(&out).args(["--to", "csv", "--dest"]);
        export().arg(root.path().join("boxes.csv")).exits(1).says(says);
        assert!(!root.path().join("boxes.csv").exists());
        Haul::new("verify").arg(&out).exits(1);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_link_that_is_pointed_elsewhere_is_another_input() {
    let (one, two) = (folder(3), folder(3));
    let root = tempfile::tempdir().unwrap();
    let (link, out) = (root.path().join("current"), root.path().join("out"));
    std::os::unix::fs::symlink(one.path(), &link).unwrap();
    Haul::run(&link, &out).exits(0);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(two.path(), &link).unwrap();
    Haul::run(&link, &out).exits(2).says("names pictures in").says(two.path().to_str().unwrap());
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(one.path(), &link).unwrap();
    Haul::run(&link, &out).exits(0);
}

#[test]
fn drawing_changes_no_line_and_no_plan() {
    let photos = folder(2);
    // No JPEG can be so wide.
    let wide = image::GrayImage::from_pixel(70_000, 8, image::Luma([90]));
    wide.save(photos.path().join("wide.png")).unwrap();
    let root = tempfile::tempdir().unwrap();
    let (plain, drawn) = (root.path().join("plain"), root.path().join("drawn"));
    Haul::run(photos.path(), &plain).exits(0);
    let seen = root.path().join("seen");
    Haul::run(photos.path(), &drawn).arg("--annotate").arg(&seen).exits(0);
    assert_eq!(parts(&plain), parts(&drawn));
    let inside = photos.path().join("seen");
    let other = root.path().join("other");
    Haul::run(photos.path(), &other)
        .arg("--annotate")
        .arg(&inside)
        .exits(2)
        .says("lies in --input");
    assert!(!inside.exists() && !other.join("_manifest/job.json").exists());
}

#[test]
fn a_job_of_a_newer_haul_is_left_alone() {
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).exits(0);
    let path = out.join("_manifest/job.json");
    let text = fs::read_to_string(&path).unwrap().replace("haul.manifest/1", "haul.manifest/99");
    fs::write(&path, text.replacen('{', "{\"unheard_of\": 1,", 1)).unwrap();
    for command in ["resume", "status", "verify"] {
        Haul::new(command).arg(&out).exits(2).says("its schema is haul.manifest/99");
    }
    Haul::run(photos.path(), &out).exits(2).says("its schema is haul.manifest/99");
}
