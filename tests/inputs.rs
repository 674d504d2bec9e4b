//! Inputs that are more than a folder: SageMaker's manifests, tables, samples; and
//! transform requests, which name them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::binary::{Haul, by_image, concatenated, fill, lines, testdata};
use haul::job::Sample;
use haul::store::{Key, Listed, LocalSource, Select, Skip, Source as _, SourceOptions};

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
    // What is planned does not depend on it any more.
    Haul::new("resume").arg(at("out")).exits(0);
}

#[test]
fn a_malformed_manifest_writes_nothing() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    for (text, expected) in [
        (r#"[{"prefix":"photos/"}, "0/00000.jpg", 7]"#, "element 3: invalid type: integer `7`"),
        (r#"[{"prefix":"s3://"}, "a.jpg"]"#, "names no bucket"),
        (r#"{"source-ref":"s3://b/a.jpg"}"#, "AugmentedManifestFile"),
    ] {
        fs::write(at("m.json"), text).unwrap();
        Haul::run(at("m.json"), &at("out")).exits(2).says(expected);
        assert!(!at("out").exists(), "{text}");
    }
    fs::write(at("m.json"), r#"[{"prefix":"photos/"}]"#).unwrap();
    Haul::run(at("m.json"), &at("out")).exits(5).says("no picture found");
}

#[test]
fn a_table_carries_its_other_columns_to_the_lines() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    let text = "\u{feff}site,Path,note\r\nB,./1/00001.png,\"a \"\"b\"\", c\"\r\nA,0/00000.jpg,\r\n\r\n\
                A,0/00000.jpg,\r\nC,not/there.jpg,é\r\n";
    fs::write(at("photos/t.csv"), text).unwrap();
    Haul::run(at("photos/t.csv"), &at("out")).exits(3).says("1 named twice in the list");
    let found = String::from_utf8(concatenated(&at("out"))).unwrap();
    let ends: Vec<&str> =
        found.lines().map(|line| line.split_once(",\"meta\"").unwrap().1).collect();
    let expected = [
        r#":{"site":"A","note":""}}"#,
        r#":{"site":"B","note":"a \"b\", c"}}"#,
        r#":{"site":"C","note":"é"}}"#,
    ];
    assert_eq!(ends, expected);
    Haul::new("verify").arg(at("out")).exits(3);
    for form in ["csv", "coco"] {
        let dest = at(form);
        Haul::new("export").arg(at("out")).args(["--to", form, "--dest"]).arg(dest).exits(0);
    }

    // But for meta the lines are those of a list.
    let list = "0/00000.jpg\n1/00001.png\nnot/there.jpg\n";
    fs::write(at("photos/list.txt"), list).unwrap();
    Haul::run(at("photos/list.txt"), &at("lines")).exits(3);
    let without: String = found
        .lines()
        .map(|line| format!("{}}}\n", line.split_once(",\"meta\"").unwrap().0))
        .collect();
    assert_eq!(without.as_bytes(), concatenated(&at("lines")));
    assert!(
        !fs::read_to_string(at("lines/_manifest/plan-00000000.jsonl")).unwrap().contains("meta")
    );
    assert!(!fs::read_to_string(at("lines/_manifest/job.json")).unwrap().contains("\"meta"));

    // What a crash left is adopted, if it has the planned meta.
    let unfinish = || {
        fs::remove_file(at("out/_SUCCESS.json")).unwrap();
        fs::remove_file(at("out/_manifest/done/00000000.json")).unwrap();
    };
    unfinish();
    Haul::new("resume").arg(at("out")).exits(3);
    assert_eq!(found.as_bytes(), concatenated(&at("out")));
    unfinish();
    fs::write(at("out/part-00000000.jsonl"), found.replace("\"site\":\"B\"", "\"site\":\"X\""))
        .unwrap();
    Haul::new("resume").arg(at("out")).exits(2).says("line 2 has not the meta that the plan has");
}

#[test]
fn another_meta_is_a_changed_picture() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    let write = |text: &str| fs::write(at("photos/t.csv"), text).unwrap();
    let run = |out: &str| Haul::run(at("photos/t.csv"), &at(out));
    write("image,site\n0/00000.jpg,A\n0/00003.jpg,A\n");
    run("out").exits(0);
    run("out").exits(0).says("nothing is new");
    write("image,site\n0/00000.jpg,A\n0/00003.jpg,B\n");
    run("out").exits(2).says("0 new, 1 changed and 0 gone");
    run("next").arg("--since").arg(at("out")).exits(0);
    assert_eq!(images(&at("next")), ["0/00003.jpg"]);
    run("out").args(["--key-column", "image"]).exits(2).says("key_column was null, is \"image\"");
}

#[test]
fn lists_go_on_after_any_key() {
    struct All;
    impl Select for All {
        fn file(&self, _: &Key) -> Result<(), Skip> {
            Ok(())
        }
        fn folder(&self, _: &Key) -> Result<(), Skip> {
            Ok(())
        }
    }
    let root = photos();
    let names = ["a", "a/b", "a!", "a0", "ab", "é", "A", "0/00000.jpg", "a b"];
    let doubled = || names.iter().chain(&names[2..4]).chain(&names[3..4]);
    let rows: String = doubled().map(|n| format!("{n},of {n}\n")).collect();
    fs::write(root.path().join("t.csv"), format!("key,meta\n{rows}")).unwrap();
    let elements: Vec<_> = doubled().map(|name| format!("\"{name}\"")).collect();
    let text = format!("[{{\"prefix\":\"./\"}},{}]", elements.join(","));
    fs::write(root.path().join("m.json"), text).unwrap();
    let lines: String = doubled().map(|name| format!("{name}\n")).collect();
    fs::write(root.path().join("l.txt"), lines).unwrap();
    for name in ["t.csv", "m.json", "l.txt"] {
        let options = SourceOptions::default();
        let source = LocalSource::open(&root.path().join(name), options).unwrap();
        let list = |after: Option<&Key>| -> Vec<Listed> {
            source.list(&All, after).unwrap().map(Result::unwrap).collect()
        };
        let whole = list(None);
        let doubles = whole.iter().filter(|item| **item == Listed::Skipped(Skip::Duplicate));
        assert_eq!((whole.len(), doubles.count()), (names.len() + 3, 3));
        let objects = || {
            whole.iter().enumerate().filter_map(|(index, item)| match item {
                Listed::Object(object) => Some((index, object)),
                Listed::Skipped(_) => None,
            })
        };
        assert_eq!(objects().count(), names.len());
        assert!(objects().is_sorted_by(|a, b| a.1.key < b.1.key));
        for (index, object) in objects() {
            let meta = (name == "t.csv").then(|| format!("{{\"meta\":\"of {}\"}}", object.key));
            assert_eq!(object.meta.as_deref(), meta.as_deref());
            // All that comes after it, its own doubles too: nothing is counted twice or never.
            assert_eq!(list(Some(&object.key)), whole[index + 1..], "{name} after {}", object.key);
        }
    }
}

#[test]
fn a_table_that_contradicts_itself_writes_nothing() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    let run = || Haul::run(at("t.csv"), &at("out"));
    for (text, expected) in [
        ("image,site\nb,1\na,1\nb,1\na,2\n", "rows 3 and 5 are both about `a`"),
        ("image,site\na,1\nb\n", "row 3 has 1 fields, the header has 2"),
        ("site\n1\n", "--key-column NAME"),
    ] {
        fs::write(at("t.csv"), text).unwrap();
        run().exits(2).says(expected);
        assert!(!at("out").exists(), "{text}");
    }
    run().args(["--key-column", "where"]).exits(2).says("no column `where`");
    let folder = Haul::run(at("photos"), &at("out"));
    folder.args(["--key-column", "site"]).exits(2).says("--input is no .csv file");
}

#[test]
fn a_sample_is_a_choice_that_anybody_can_draw_again() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    fill(&at("photos"), 6..40);
    let run = |out: &str| Haul::run(at("photos"), &at(out));
    run("whole").exits(0);
    let all = images(&at("whole"));
    let sample = |seed, pictures: usize| {
        let sample = Sample { pictures: 0, seed };
        let mut ranked: Vec<_> = all.iter().collect();
        ranked.sort_by_key(|image| sample.rank(&Key::from(image.as_str())));
        ranked.truncate(pictures);
        ranked.sort();
        ranked.into_iter().cloned().collect::<Vec<_>>()
    };
    let more = ["--max-images", "2"];
    run("ten").args(["--sample", "10"]).args(more).exits(0).says("not planned: 30 not chosen by");
    assert_eq!(images(&at("ten")), sample(0, 10));
    run("seed").args(["--sample", "10", "--seed", "9"]).exits(0);
    assert_eq!(images(&at("seed")), sample(9, 10));
    assert_ne!(images(&at("seed")), images(&at("ten")));
    run("first").args(["--sample", "10", "--limit", "3"]).exits(0);
    assert_eq!(images(&at("first")), sample(0, 10)[..3]);
    run("all").args(["--sample", "41"]).exits(0);
    assert_eq!(concatenated(&at("all")), concatenated(&at("whole")));

    // What was not chosen is not new; another sample is another job.
    run("ten").args(["--sample", "10"]).args(more).exits(0).says("nothing is new");
    let other = run("ten").args(["--sample", "10", "--seed", "1"]).args(more);
    other.exits(2).says("seed was 0, is 1");
    run("ten").args(more).exits(2).says("sample was 10, is null");

    // Since the first ten: a sample of the other thirty.
    let since = |out| run(out).arg("--since").arg(at("ten")).args(["--sample", "20"]);
    since("rest").exits(0).says("10 already in the outputs").says("10 not chosen by --sample");
    let rest = sample(0, 30).into_iter().filter(|image| !sample(0, 10).contains(image));
    assert_eq!(images(&at("rest")), rest.collect::<Vec<_>>());

    run("none").args(["--sample", "0"]).exits(2).says("--sample is 0");
    run("none").args(["--seed", "1"]).exits(2).says("there is no --sample");
}

fn transform_json() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/transform.json")
}

#[test]
fn the_transform_request_runs_as_the_documents_say() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let quick = ["--imgsz", "64", "--output"];
    let run = Haul::new("run").arg(transform_json()).args(quick).arg(&out).arg("-v");
    run.exits(0).says("TransformJobName, TransformResources ignored");
    // The same as flags.
    let flags = root.path().join("flags");
    Haul::run(testdata("pictures"), &flags).args(["--max-payload-mb", "6"]).exits(0);
    assert_eq!(concatenated(&out), concatenated(&flags));
    assert!(lines(&out).len() > 10);
}

#[test]
fn a_transform_request_prints_as_a_job_file_that_means_the_same() {
    let root = tempfile::tempdir().unwrap();
    let printed = Haul::new("run").arg(transform_json()).arg("--print-config").exits(0).stdout;
    let toml: toml::Table = printed.parse().unwrap();
    assert_eq!(toml["batch_timeout"].as_str(), Some("600s"));
    assert_eq!(toml["max_payload_mb"].as_float(), Some(6.0));
    assert!(toml["model"].as_str().unwrap().ends_with("/testdata/model/shapes.safetensors"));
    assert!(toml["output"].as_str().unwrap().ends_with("/out/transform"));
    let job = root.path().join("job.toml");
    fs::write(&job, &printed).unwrap();
    let again = Haul::new("run").arg(&job).arg("--print-config").exits(0).stdout;
    assert_eq!(again, printed);
}

#[test]
fn a_transform_request_for_s3_runs_on_folders_with_flags() {
    let root = photos();
    let at = |name: &str| root.path().join(name);
    let request = r#"{
        "ModelName": "m",
        "TransformInput": {"DataSource": {"S3DataSource": {
            "S3DataType": "ManifestFile", "S3Uri": "s3://bucket/list.manifest"}}},
        "TransformOutput": {"S3OutputPath": "s3://bucket/out"}
    }"#;
    fs::write(at("transform.json"), request).unwrap();
    fs::copy(testdata("model/shapes.safetensors"), at("m.safetensors")).unwrap();
    let run = |command: &str| Haul::new(command).arg(at("transform.json")).args(["--imgsz", "64"]);
    let places = [at("photos").into_os_string(), "--output".into(), at("out").into_os_string()];
    run("plan").arg("--input").args(&places).exits(0).says("6 pictures");
    run("run").arg("--input").args(&places).exits(0);
    assert_eq!(images(&at("out")).len(), 6);

    // The same file with places of this machine.
    fs::write(at("list.manifest"), r#"[{"prefix":"photos/0/"}, "00000.jpg"]"#).unwrap();
    fs::write(at("transform.json"), request.replace("s3://bucket/", "")).unwrap();
    fs::remove_dir_all(at("out")).unwrap();
    run("run").exits(0);
    assert_eq!(images(&at("out")), ["00000.jpg"]);
    fs::write(at("transform.json"), request.replace("ModelName", "ModelNames")).unwrap();
    run("run").exits(2).says("did you mean `ModelName`?");
}
