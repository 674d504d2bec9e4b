//! Inputs that are more than a folder: SageMaker's manifests.

mod common;

use std::fs;
use std::path::Path;

use common::binary::{Haul, by_image, concatenated, fill, lines};

fn images(output: &Path) -> Vec<String> {
    lines(output).into_iter().map(|line| line.image).collect()
}

/// Six pictures in `photos/`: 0/00000.jpg, 0/00003.jpg, 1/00001.png, ….
fn photos() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fill(&root.path().join("photos"), 0..6);
    root
}

#[test]
fn a_manifest_is_a_list_below_its_prefix() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    fs::copy(at("photos/0/00000.jpg"), at("photos/0/plain")).unwrap();
    fs::write(
        at("m.json"),
        r#"[{"prefix":"photos/"}, "1/00001.png", "0/plain", "0/00000.jpg", "./0/00000.jpg",
            "not/there.jpg", "0"]"#,
    )
    .unwrap();
    Haul::run(at("m.json"), &at("out"))
        .exits(3)
        .says("1 named twice in the list")
        .says("1 folders named in the list");
    assert_eq!(images(&at("out")), ["0/00000.jpg", "0/plain", "1/00001.png", "not/there.jpg"]);
    let missing = &by_image(&at("out"))["not/there.jpg"];
    assert_eq!(missing.error.as_ref().unwrap().code, "gone");
    Haul::new("verify").arg(at("out")).exits(3);

    // The same pictures in a list of lines give the same lines.
    let list = "0/00000.jpg\n0/plain\n1/00001.png\nnot/there.jpg\n";
    fs::write(at("photos/list.txt"), list).unwrap();
    Haul::run(at("photos/list.txt"), &at("lines")).exits(3);
    assert_eq!(concatenated(&at("out")), concatenated(&at("lines")));

    // A prefix may end in the middle of a name, and be a URL of this machine.
    let prefix = format!("file://{}/0/0000", at("photos").display());
    fs::write(at("m.manifest"), format!(r#"[{{"prefix":"{prefix}"}}, "3.jpg", "0.jpg"]"#)).unwrap();
    Haul::run(at("m.manifest"), &at("part")).exits(0);
    assert_eq!(images(&at("part")), ["00000.jpg", "00003.jpg"]);
}

#[test]
fn a_manifest_that_has_changed_says_how() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    let write = |text: &str| fs::write(at("m.json"), text).unwrap();
    let run = || Haul::run(at("m.json"), &at("out"));
    write(r#"[{"prefix":"photos/0/"}, "00000.jpg"]"#);
    run().exits(0);
    run().exits(0).says("nothing is new");
    write(r#"[{"prefix":"photos/0/"}, "00003.jpg", "00000.jpg"]"#);
    run().exits(2).says("1 new, 0 changed and 0 gone");
    write(r#"[{"prefix":"photos/1/"}, "00000.jpg"]"#);
    run().exits(2).says("names pictures in").says("photos/1`").says("photos/0`");
    Haul::new("resume").arg(at("out")).exits(2).says("put the prefix back");
}

#[test]
fn a_malformed_manifest_writes_nothing() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    for (text, expected) in [
        (r#"[{"prefix":"photos/"}, "0/00000.jpg", 7]"#, "element 3: invalid type: integer `7`"),
        (r#"[{"prefix":"s3://bucket/photos/"}, "a.jpg"]"#, "is on S3"),
        (r#"{"source-ref":"s3://b/a.jpg"}"#, "AugmentedManifestFile"),
    ] {
        fs::write(at("m.json"), text).unwrap();
        Haul::run(at("m.json"), &at("out")).exits(2).says(expected);
        assert!(!at("out").exists(), "{text}");
    }
    fs::write(at("m.json"), r#"[{"prefix":"photos/"}]"#).unwrap();
    Haul::run(at("m.json"), &at("out")).exits(5).says("no picture found");
}
