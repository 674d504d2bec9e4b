//! What a run tells other programs: gates, progress as JSON, and the files it leaves for them.

mod common;

use std::fs;
use std::path::Path;

use common::binary::{Haul, Ran, folder, success, wait_for};
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
    // That a gate does not hold is wrong, and all that is said to those who hear only that.
    let ran = run(&["errors == 0", "pictures > 0"]).arg("--quiet").exits(6);
    assert_eq!(ran.stderr, "gate DOES NOT HOLD: errors == 0 (measured: 1)\n");
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
    for (command, expected) in [
        (Haul::new("run").arg(root.path().join("missing.toml")), "missing.toml"),
        (Haul::new("resume").arg(&out), "holds no job of haul"),
        (Haul::new("retry").arg(&out).arg("--output").arg(root.path().join("x")), "holds no job"),
    ] {
        let (none, error) = last_two(&command.args(["--progress", "json"]).exits(2).stdout);
        assert_eq!((none, &error["code"]), (None, &json!(2)));
        assert!(error["message"].as_str().unwrap().contains(expected), "{error}");
    }
    let asks = root.path().join("asks.toml");
    fs::write(&asks, "progress = \"json\"\nconf = 2\n").unwrap();
    last_two(&run().arg(&asks).exits(2).stdout);
    last_two(&Haul::new("run").arg(&asks).exits(2).stdout);
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

/// The test cases of a JUnit report: name, and what is in it.
fn test_cases(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    let cases = document.descendants().filter(|node| node.has_tag_name("testcase"));
    cases
        .map(|case| {
            let verdict = case.first_element_child();
            let message = verdict.and_then(|verdict| verdict.attribute("message"));
            let said =
                message.map(|message| format!("{}: {message}", verdict.unwrap().tag_name().name()));
            (case.attribute("name").unwrap().to_owned(), said.unwrap_or_default())
        })
        .collect()
}

fn cases(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, said)| ((*name).to_owned(), (*said).to_owned())).collect()
}

#[test]
fn a_junit_report_at_every_end() {
    let photos = nine_and_one();
    let root = tempfile::tempdir().unwrap();
    let (out, file) = (root.path().join("out"), root.path().join("haul.xml"));
    let run = || Haul::run(photos.path(), &out).arg("--junit").arg(&file);

    // It could not begin.
    run().args(["--model", "/nowhere.pt", "--gate", "errors == 0"]).exits(2);
    let said = test_cases(&file);
    assert!(said[0].1.starts_with("failure: ") && said[0].1.contains("/nowhere.pt"), "{said:?}");
    assert_eq!(said[1].1, "skipped: the job is not complete");
    // Stopped by a threshold: what stopped it is named, though it is not committed.
    run().args(["--max-failures", "0"]).exits(4);
    let expected = "failure: stopping: 1 pictures failed, --max-failures is 0";
    assert_eq!(test_cases(&file), cases(&[("job", expected)]));
    assert!(fs::read_to_string(&file).unwrap().contains("  0/none.jpg: empty: "));
    // Complete, with a gate that does not hold, and one that does.
    run().args(["--gate", "errors == 0", "--gate", "pictures == 10"]).exits(6);
    let expected =
        [("job", ""), ("gate: errors == 0", "failure: measured: 1"), ("gate: pictures == 10", "")];
    assert_eq!(test_cases(&file), cases(&expected));
    // Finished before: the same from the committed totals, with other gates.
    fs::remove_file(&file).unwrap();
    run().exits(3);
    assert_eq!(test_cases(&file), cases(&[("job", "failure: 1 of 10 pictures failed")]));
    assert!(fs::read_to_string(&file).unwrap().contains("  0/none.jpg: empty: "));
    Haul::new("resume").arg(&out).arg("--junit").arg(&file).args(["--gate", "errors < 5"]).exits(0);
    assert_eq!(test_cases(&file), cases(&[("job", ""), ("gate: errors < 5", "")]));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing else is left behind");
}

#[test]
fn a_junit_report_of_an_interrupted_run() {
    let photos = folder(60);
    let root = tempfile::tempdir().unwrap();
    let (out, file) = (root.path().join("out"), root.path().join("haul.xml"));
    let run = Haul::run(photos.path(), &out).slowly().args(["--max-images", "2", "--grace", "0"]);
    let mut child = run.args(["--gate", "errors == 0"]).arg("--junit").arg(&file).spawn();
    wait_for(&out.join("_manifest/done/00000000.json"), &mut child);
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let said = test_cases(&file);
    assert!(said[0].1.starts_with("failure: interrupted, "), "{said:?}");
    assert_eq!(said[1].1, "skipped: the job is not complete");
}

#[test]
fn places_where_no_report_can_be_are_refused_before_any_work() {
    let photos = folder(1);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let junit = |path: &Path| Haul::run(photos.path(), &out).arg("--junit").arg(path).exits(2);
    junit(&out.join("haul.xml")).says("is in --output");
    junit(root.path()).says("it is a folder");
    junit(&root.path().join("none/haul.xml")).says("cannot write there");
    // What is no plain file stays what it is.
    let (link, pipe) = (root.path().join("link"), root.path().join("pipe"));
    std::os::unix::fs::symlink("elsewhere", &link).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&link, &pipe, Path::new("/dev/stdout")] {
        junit(path).says("it is a link, pipe, device or folder");
        let run = Haul::run(photos.path(), &out).arg("--prometheus").arg(path);
        run.exits(2).says("it is a link, pipe, device or folder");
    }
    assert!(!out.exists());
    Haul::run(photos.path(), &out).exits(0);
    for path in [&link, &pipe, Path::new("/dev/stdout")] {
        let export = Haul::new("export").arg(&out).args(["--to", "csv", "--dest"]).arg(path);
        export.exits(2).says("it is a link, pipe, device or folder").says("- is stdout");
    }
    assert!(link.is_symlink() && fs::symlink_metadata(&pipe).unwrap().len() == 0);
    assert!(!fs::symlink_metadata(&pipe).unwrap().is_file());
}

#[test]
fn a_report_that_cannot_be_written_is_exit_1_and_the_job_is_complete() {
    let photos = folder(8);
    let root = tempfile::tempdir().unwrap();
    let (out, reports) = (root.path().join("out"), root.path().join("reports"));
    fs::create_dir(&reports).unwrap();
    let (metrics, told) = (root.path().join("haul.prom"), root.path().join("told"));
    let run = || {
        let run = Haul::run(photos.path(), &out).args(["--max-images", "1", "--github"]);
        let run = run.arg("--junit").arg(reports.join("haul.xml"));
        let run = run.arg("--prometheus").arg(&metrics).env("GITHUB_ACTIONS", "true");
        run.env("GITHUB_OUTPUT", told.to_str().unwrap()).env("GITHUB_STEP_SUMMARY", "")
    };
    let mut child = run().slowly().spawn();
    wait_for(&out.join("_manifest/done/00000000.json"), &mut child);
    fs::remove_dir(&reports).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("::error title="), "{}", ran.stdout);
    ran.says("done: 8 planned").says("reports/haul.xml");
    assert_eq!(success(&out)["ok"], 8);
    // What could be written does not say otherwise.
    let text = fs::read_to_string(&metrics).unwrap();
    assert!(text.lines().any(|line| line.ends_with("} 1") && line.contains("exit_code")), "{text}");
    assert!(text.lines().any(|line| line.ends_with("} 1") && line.contains("complete")), "{text}");
    assert!(fs::read_to_string(&told).unwrap().starts_with("exit_code=1\n"));
    // The next run writes it.
    fs::create_dir(&reports).unwrap();
    run().exits(0);
    assert_eq!(test_cases(&reports.join("haul.xml")), cases(&[("job", "")]));
    // And if it is GitHub that cannot be told, the files say so.
    let nowhere = root.path().join("none/summary");
    let ran = run().env("GITHUB_STEP_SUMMARY", nowhere.to_str().unwrap()).exits(1);
    assert!(ran.stdout.starts_with("::error title="), "{}", ran.stdout);
    let said = test_cases(&reports.join("haul.xml"));
    assert!(said[0].1.starts_with("failure: cannot append to `"), "{said:?}");
    assert!(fs::read_to_string(&told).unwrap().contains("gates_broken=0\nexit_code=1\n"));
}

#[test]
fn what_github_is_told() {
    let photos = nine_and_one();
    fs::write(photos.path().join("0/%\n::error::x|y.jpg"), b"no picture").unwrap();
    let root = tempfile::tempdir().unwrap();
    let (out, summary, outputs) =
        (root.path().join("out"), root.path().join("summary"), root.path().join("outputs"));
    let run = || {
        Haul::run(photos.path(), &out)
            .args(["--github", "--gate", "errors == 0"])
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_STEP_SUMMARY", summary.to_str().unwrap())
            .env("GITHUB_OUTPUT", outputs.to_str().unwrap())
    };
    fs::write(&summary, "what an earlier command wrote\n").unwrap();
    let said: Vec<String> = run().exits(6).stdout.lines().map(str::to_owned).collect();
    let gate = "::error title=haul%3A gate::does not hold: errors == 0 (measured: 2)";
    let warning = "::warning title=haul%3A failed pictures::";
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!(said[0], gate);
    assert!(said[1].starts_with(&format!("{warning}0/none.jpg: empty: ")), "{said:?}");
    let name = r"0/%25\n::error::x|y.jpg: not_an_image: ";
    assert!(said[2].starts_with(&format!("{warning}{name}")), "{said:?}");
    let text = fs::read_to_string(&summary).unwrap();
    assert!(text.starts_with("what an earlier command wrote\n\n| ❌ haul | done, exit code 6 |\n"));
    assert!(text.contains("| gate errors &#61;&#61; 0 | ❌ 2 |\n"), "{text}");
    assert!(text.contains(r"| 0/%&#92;n&#58;&#58;error&#58;&#58;x&#124;y.jpg | "), "{text}");
    let expected = "exit_code=6\nstate=done\nplanned=11\nok=9\nfailed=2\n";
    assert!(fs::read_to_string(&outputs).unwrap().starts_with(expected));

    // JSON on stdout stays JSON.
    let ran = run().arg("--json").exits(6).says(gate);
    assert_eq!(json(&ran.stdout)["exit"], 6);
    let ran = run().args(["--progress", "json"]).exits(6).says(gate);
    assert_eq!(messages(&ran.stdout).len(), 2);

    // A summary that is full is left as it is.
    fs::write(&summary, vec![b'x'; 1024 * 1024 - 30]).unwrap();
    run().exits(6).says("the step's summary is full already");
    assert_eq!(fs::metadata(&summary).unwrap().len(), 1024 * 1024 - 30);

    // At a desk it is a warning.
    fs::remove_file(&summary).unwrap();
    let ran = run().env("GITHUB_ACTIONS", "").args(["--gate", "errors < 5"]).exits(6);
    assert_eq!(ran.says("--github does nothing here").stdout, "");
    assert!(!summary.exists());
}

#[test]
fn metrics_at_every_end() {
    let photos = nine_and_one();
    let root = tempfile::tempdir().unwrap();
    let (out, file) = (root.path().join("out"), root.path().join("haul.prom"));
    let run = || Haul::run(photos.path(), &out).arg("--prometheus").arg(&file);
    let metric = |name: &str| {
        let text = fs::read_to_string(&file).unwrap();
        let output = format!("output={:?}", out.to_str().unwrap());
        let name = match name.split_once('{') {
            None => format!("{name}{{{output}}} "),
            Some((name, rest)) => format!("{name}{{{output},{rest} "),
        };
        let found = text.lines().find_map(|line| line.strip_prefix(&name));
        found.map(|number| number.parse::<f64>().unwrap())
    };
    run().args(["--model", "/nowhere.pt"]).exits(2);
    assert_eq!((metric("haul_run_exit_code"), metric("haul_job_complete")), (Some(2.0), None));
    run().args(["--max-failures", "0"]).exits(4);
    assert_eq!((metric("haul_run_exit_code"), metric("haul_job_complete")), (Some(4.0), Some(0.0)));
    run().args(["--gate", "errors < 20%"]).exits(0);
    assert_eq!((metric("haul_run_exit_code"), metric("haul_job_complete")), (Some(0.0), Some(1.0)));
    for (name, expected) in [
        (r#"haul_job_pictures{state="planned"}"#, 10.0),
        (r#"haul_job_pictures{state="failed"}"#, 1.0),
        (r#"haul_job_errors{code="empty"}"#, 1.0),
        (r#"haul_job_gate_holds{gate="errors < 20%"}"#, 1.0),
        ("haul_run_pictures", 10.0),
    ] {
        assert_eq!(metric(name), Some(expected), "{name}");
    }
    assert!(metric("haul_run_peak_memory_bytes").unwrap() > 1e6);
    assert!(metric("haul_run_end_timestamp_seconds").unwrap() > 1.7e9);
    // Finished before: the job's numbers again, and a run that did nothing.
    run().exits(3);
    assert_eq!(metric(r#"haul_job_errors{code="empty"}"#), Some(1.0));
    assert_eq!((metric("haul_run_exit_code"), metric("haul_run_pictures")), (Some(3.0), Some(0.0)));
}

#[test]
fn who_finds_the_output_held_leaves_its_reports_alone() {
    let photos = folder(40);
    let root = tempfile::tempdir().unwrap();
    let (out, file) = (root.path().join("out"), root.path().join("haul.xml"));
    let run = || Haul::run(photos.path(), &out).arg("--junit").arg(&file);
    let mut child = run().slowly().spawn();
    wait_for(&out.join("_manifest/job.json"), &mut child);
    fs::write(&file, "of the run that holds it").unwrap();
    let skip = run().slowly().args(["--if-locked", "skip", "--progress", "json"]);
    let said = messages(&skip.exits(0).says("is in use by").stdout);
    let last = said.last().unwrap();
    assert_eq!((kind(last), &last["state"]), ("summary", &json!("skipped")));
    assert_eq!(fs::read_to_string(&file).unwrap(), "of the run that holds it");
    // Without it, the run has failed, and says so in its report.
    run().slowly().exits(11);
    assert!(test_cases(&file)[0].1.contains("is in use by"), "{:?}", test_cases(&file));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn no_name_gives_orders_to_those_who_read_the_log() {
    const ODD: &str = "x\n::error::x\u{1b}[31m";
    let photos = folder(1);
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let (out, foreign) = (at("out"), at("foreign"));
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join(ODD), b"").unwrap();
    // Two columns that might hold the pictures, one that is not there, a prefix that lies nowhere.
    fs::write(at("t.csv"), format!("image,path,\"{ODD}\"\na,b,c\n")).unwrap();
    fs::write(at("u.csv"), format!("\"{ODD}\"\na\n")).unwrap();
    fs::write(at("m.json"), json!([{"prefix": format!("{ODD}/")}]).to_string()).unwrap();
    fs::write(at("job.toml"), "conf = 0.5\n::error::x\n").unwrap();
    let run = |input: &Path| Haul::run(input, &out);
    let odd_output = photos.path().join(format!("{ODD}/out"));
    for (ran, named) in [
        (run(&at("t.csv")), true),
        (run(&at("u.csv")).args(["--key-column", "image"]), true),
        (run(&at("m.json")), true),
        (run(&at(ODD)), true),
        (run(photos.path()).args(["--classes", ODD]), true),
        (run(photos.path()).args(["--conf", "0.1", "--gate", &format!("class {ODD} == 0")]), true),
        (Haul::run(photos.path(), &foreign), true),
        (run(photos.path()).arg(at("job.toml")), false),
        (Haul::new("resume").arg(&odd_output), true),
    ] {
        let ran = ran.exits(2);
        let bad = |line: &str| line.starts_with("::") || line.contains('\u{1b}');
        assert!(!ran.stderr.lines().any(bad), "{}", ran.stderr);
        assert!(!named || ran.stderr.contains(r"x\n::error::x\u{1b}[31m"), "{}", ran.stderr);
    }
    // What a finished run says of where its results are.
    let ran = Haul::run(photos.path(), &at(&format!("{ODD}-out"))).exits(0);
    ran.says(r"results in ").says(r"x\n::error::x\u{1b}[31m-out");
}
