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

/// The messages on stdout, each a line of JSON.
fn messages(stdout: &str) -> Vec<Value> {
    assert!(stdout.ends_with('\n'), "{stdout}");
    stdout.lines().map(json).collect()
}

fn kind(message: &Value) -> &str {
    message["message_type"].as_str().unwrap()
}

#[test]
fn progress_for_programs() {
    let photos = nine_and_one();
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"1/odd-\xff.jpg");
    fs::write(photos.path().join::<&std::ffi::OsStr>(odd), b"text").unwrap();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--progress", "json", "--max-images", "4"]);
    let ran = run().arg("--json").exits(3).says("done: 11 planned");
    let said = messages(&ran.stdout);
    let (last, before) = said.split_last().unwrap();
    assert_eq!((kind(last), &last["exit"], &last["ok"]), ("summary", &json!(3), &json!(9)));
    assert_eq!(last["errors"], json!({"empty": 1, "not_an_image": 1}));
    let (status, before) = before.split_last().unwrap();
    assert_eq!((kind(status), &status["percent_done"]), ("status", &json!(1.0)));
    let counts = ["total_pictures", "pictures_done", "pictures_failed", "total_batches"];
    assert_eq!(counts.map(|name| status[name].as_u64().unwrap()), [11, 11, 2, 3]);
    assert_eq!(status["seconds_remaining"], 0);
    let mut errors: Vec<&Value> = before.iter().filter(|m| kind(m) == "error").collect();
    errors.sort_by_key(|message| message["code"].as_str());
    let expected = [
        json!({"message_type": "error", "image": "0/none.jpg", "code": "empty",
               "stage": "decode", "message": errors[0]["message"]}),
        json!({"message_type": "error", "image": "1/odd-\u{fffd}.jpg", "image_b64": "MS9vZGQt/y5qcGc=",
               "code": "not_an_image", "stage": "decode", "message": errors[1]["message"]}),
    ];
    assert_eq!(errors, expected.iter().collect::<Vec<_>>());
    assert!(before.iter().all(|message| ["status", "error"].contains(&kind(message))));

    // A finished job says the same at its end, and no more.
    let again = messages(&run().exits(3).stdout);
    assert_eq!(again.iter().map(kind).collect::<Vec<_>>(), ["status", "summary"]);
    assert_eq!(again[1]["errors"], last["errors"]);
}

#[test]
fn programs_hear_why_a_run_ended() {
    let photos = nine_and_one();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--progress", "json"]);
    let last_two = |stdout: &str| {
        let mut said = messages(stdout);
        let last = said.pop().unwrap();
        assert_eq!(kind(&last), "exit_error");
        (said.pop(), last)
    };
    // Before there is a job.
    for (flag, value, expected) in
        [("--conf", "2", "--conf is 2"), ("--model", "/nowhere.pt", "/nowhere.pt")]
    {
        let (none, error) = last_two(&run().args([flag, value]).exits(2).says(expected).stdout);
        assert_eq!((none, &error["code"]), (None, &json!(2)));
        assert!(error["message"].as_str().unwrap().contains(expected), "{error}");
    }
    // Stopped by a threshold.
    let ran = run().args(["--max-failures", "0"]).exits(4);
    let (summary, error) = last_two(&ran.stdout);
    let summary = summary.unwrap();
    assert_eq!((kind(&summary), &summary["state"]), ("summary", &json!("stopped")));
    let expected = json!("stopping: 1 pictures failed, --max-failures is 0");
    assert_eq!((&error["code"], &error["message"]), (&json!(4), &expected));
    assert_eq!(summary["reason"], expected);
    // A fault on the way: the annotated pictures have no place.
    let blocked = root.path().join("file/annotated");
    fs::write(root.path().join("file"), b"").unwrap();
    let ran = run().arg("--annotate").arg(&blocked).exits(1);
    let (summary, error) = last_two(&ran.stdout);
    assert_eq!(summary.unwrap()["state"], "failed");
    assert!(error["message"].as_str().unwrap().contains("file/annotated"), "{error}");
}

#[test]
fn nobody_has_to_listen_to_messages() {
    let photos = folder(5);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let mut child = Haul::run(photos.path(), &out).args(["--progress", "json"]).spawn();
    drop((child.stderr.take(), child.stdout.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(success(&out)["ok"], 5);
}

#[test]
fn progress_can_be_left_out() {
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let run = |progress: &str| {
        Haul::run(photos.path(), &root.path().join("out")).args(["--progress", progress])
    };
    assert_eq!(run("none").exits(0).says("done: 2 planned").stdout, "");
    run("fancy").exits(2).says("--progress is `fancy`; it is auto, json or none");
}
