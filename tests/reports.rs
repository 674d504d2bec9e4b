//! What a run tells other programs: gates, progress as JSON, and the files it leaves for them.

mod common;

use std::fs;
use std::path::Path;

use common::binary::{Haul, folder, success};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nine good pictures and one without a byte.
fn nine_and_one() -> TempDir {
    let photos = folder(9);
    fs::write(photos.path().join("0/none.jpg"), b"").unwrap();
    photos
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn gates_decide_the_exit_code_of_a_complete_job() {
    let photos = nine_and_one();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = |gates: &[&str]| {
        let run = Haul::run(photos.path(), &out).arg("--json");
        gates.iter().fold(run, |run, gate| run.args(["--gate", gate]))
    };
    // Broken, and the job is complete all the same.
    let ran = run(&["errors < 10%", "pictures >= 10"]).exits(6);
    let report = json(&ran.stdout);
    let expected = json!([
        {"expression": "errors < 10%", "value": 10, "holds": false},
        {"expression": "pictures >= 10", "value": 10, "holds": true},
    ]);
    assert_eq!((&report["gates"], &report["exit"]), (&expected, &json!(6)));
    ran.says("done: 10 planned")
        .says("gate DOES NOT HOLD: errors < 10% (measured: 10%, 1 of 10)")
        .says("gate holds: pictures >= 10 (measured: 10)");
    assert_eq!(success(&out)["failed"], 1);

    // Later runs hold the committed totals against their own gates.
    let ran = run(&["errors <= 10%", "error empty == 1"]).exits(0);
    assert_eq!(json(&ran.stdout)["gates"][1]["holds"], true);
    ran.says("gate holds: errors <= 10%");
    run(&["error empty == 1", "class boat >= 0"]).exits(3);
    run(&["errors < 50%", "detections < 0"]).exits(6).says("DOES NOT HOLD: detections < 0");
    run(&[]).exits(3);

    let status = |gate: &str| Haul::new("status").arg(&out).args(["--gate", gate]);
    status("errors < 50%").exits(0);
    assert!(status("errors == 0").exits(6).stdout.contains("gate DOES NOT HOLD: errors == 0"));
    assert_eq!(json(&status("errors == 0").arg("--json").exits(6).stdout)["gates"][0]["value"], 1);
    status("class unicorn == 0").exits(2).says("no class `unicorn`; it has balloon, boat");
}

#[test]
fn resume_has_the_gates_of_the_job_or_its_own() {
    let photos = nine_and_one();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).args(["--gate", "errors == 0"]).exits(6);
    Haul::new("resume").arg(&out).exits(6).says("gate DOES NOT HOLD: errors == 0");
    Haul::new("resume").arg(&out).args(["--gate", "errors < 11%"]).exits(0);
}

#[test]
fn a_gate_that_could_not_be_broken_is_refused_before_any_work() {
    let photos = folder(1);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    for (gate, expected) in [
        ("class unicorn == 0", "the model has no class `unicorn`; it has balloon, boat"),
        ("class tree == 0", "--classes leaves `tree` out, and keeps boat"),
        ("error broken == 0", "there is no error `broken`"),
        ("speed > 3", "there is no metric `speed`"),
    ] {
        let run = Haul::run(photos.path(), &out).args(["--classes", "boat", "--gate", gate]);
        run.exits(2).says(expected);
    }
    assert!(!out.exists());
}

#[test]
fn an_empty_input_is_held_against_gates_too() {
    let photos = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out).arg("--allow-empty");
    run().args(["--gate", "errors < 1%"]).exits(0);
    run().args(["--gate", "pictures >= 1"]).exits(6).says("gate DOES NOT HOLD: pictures >= 1");
    assert!(!Path::new(&out).join("_SUCCESS.json").exists());
}
