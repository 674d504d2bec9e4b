//! `haul lambda` behind a runtime API: what it makes of every kind of event. What is in a picture is
//! what a batch job says is in it, byte for byte.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/runtime_api.rs"]
mod runtime_api;
#[path = "common/s3.rs"]
mod s3;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::binary::{Haul, Ran, concatenated, model, testdata};
use rig::{Rig, with_server};
use runtime_api::RuntimeApi;
use serde_json::{Value, json};

/// A function that runs; it ends with the test.
struct Function {
    api: RuntimeApi,
    child: Child,
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The variables of a function's environment.
fn environment(api: &str) -> [(&'static str, String); 4] {
    [
        ("AWS_LAMBDA_RUNTIME_API", api.to_owned()),
        ("AWS_LAMBDA_FUNCTION_NAME", "haul".to_owned()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "2048".to_owned()),
    ]
}

impl Function {
    /// With the settings of [`Haul::run`].
    fn start(with: impl FnOnce(Haul) -> Haul) -> Function {
        let api = RuntimeApi::start();
        let haul = Haul::new("lambda").arg("--model").arg(model());
        let haul = haul.args(["--imgsz", "64", "--workers", "2"]);
        let haul = environment(&api.address)
            .iter()
            .fold(haul, |haul, (name, value)| haul.env(name, value));
        Function { api, child: with(haul).spawn() }
    }

    /// Ends it, and gives what it has logged.
    fn logged(mut self) -> Vec<Value> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// An event as AWS documents it, with some words put in.
fn event(name: &str, words: &[(&str, &str)]) -> String {
    let text = fs::read_to_string(testdata("lambda").join(name)).unwrap();
    words.iter().fold(text, |text, (word, value)| {
        // As part of a JSON text.
        let value = serde_json::to_string(value).unwrap();
        let changed = text.replace(word, &value[1..value.len() - 1]);
        assert_ne!(changed, text, "{name} has no {word}");
        changed
    })
}

fn picture() -> PathBuf {
    testdata("forms/jpeg-444.jpg")
}

fn base64(path: &Path) -> String {
    STANDARD.encode(fs::read(path).unwrap())
}

/// The line that a batch job writes for a picture of this key, without its line feed.
fn batch_line(key: &str, path: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    let copy = input.join(key);
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    fs::copy(path, copy).unwrap();
    let out = dir.path().join("out");
    Haul::run(&input, &out).ran();
    String::from_utf8(concatenated(&out)).unwrap().trim_end().to_owned()
}

fn queue(messages: &[(&str, String)]) -> String {
    let records: Vec<Value> = messages
        .iter()
        .map(|(id, text)| {
            let record = event("sqs-message.json", &[("ID", id), ("TEXT", text)]);
            serde_json::from_str(&record).unwrap()
        })
        .collect();
    json!({ "Records": records }).to_string()
}

/// The messages that are to come again.
#[track_caller]
fn failures(answer: &Value) -> BTreeSet<String> {
    let failures = answer["batchItemFailures"].as_array().unwrap_or_else(|| panic!("{answer}"));
    failures.iter().map(|one| one["itemIdentifier"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn http_events_are_answered_as_over_a_socket() {
    let function = Function::start(|haul| haul);
    let line = batch_line("a.jpg", &picture());
    assert!(line.contains("\"score\""), "the picture has something in it: {line}");
    let (body, no_picture) = (base64(&picture()), STANDARD.encode("no picture"));
    for name in ["apigw-v1.json", "apigw-v2.json", "function-url.json", "alb.json"] {
        let words =
            |accept, body| event(name, &[("ACCEPT", accept), ("BODY", body), ("NAME", "a.jpg")]);
        let answer = function.api.invoke(&words("application/json", &body)).json();
        assert_eq!(answer["statusCode"], 200, "{name}: {answer}");
        assert_eq!(answer["isBase64Encoded"], false, "{name}");
        assert_eq!(answer["body"].as_str().unwrap(), format!("{line}\n"), "{name}");

        let drawn = function.api.invoke(&words("image/jpeg", &body)).json();
        assert_eq!((&drawn["statusCode"], &drawn["isBase64Encoded"]), (&200.into(), &true.into()));
        let drawn = STANDARD.decode(drawn["body"].as_str().unwrap()).unwrap();
        assert!(drawn.starts_with(b"\xff\xd8"), "{name}");
        assert_eq!(
            haul::picture::probe(&drawn, &haul::picture::Limits::default()).unwrap().width,
            haul::picture::probe(&fs::read(picture()).unwrap(), &haul::picture::Limits::default())
                .unwrap()
                .width
        );

        let refused = function.api.invoke(&words("text/html", &body)).json();
        assert_eq!(refused["statusCode"], 406, "{name}: {refused}");
        let none = function.api.invoke(&words("*/*", &no_picture)).json();
        assert_eq!(none["statusCode"], 400, "{name}: {none}");
        assert!(none["body"].as_str().unwrap().contains("\"error\""), "{name}: {none}");
        // Not base64, though it says it is.
        function.api.invoke(&words("*/*", "&&&")).fails("bad_event", "base64");
    }
    let url = event("function-url.json", &[("ACCEPT", "*/*"), ("BODY", &body), ("NAME", "a b")]);
    function.api.invoke(&url).fails("bad_event", "query");
    let other = url.replace("a b", "a").replace("/invocations", "/other");
    assert_eq!(function.api.invoke(&other).json()["statusCode"], 404);
    let ping = url.replace("a b", "a").replace("/invocations", "/ping").replace("POST", "GET");
    assert_eq!(function.api.invoke(&ping).json()["statusCode"], 200);
    let metrics =
        url.replace("a b", "a").replace("/invocations", "/metrics").replace("POST", "GET");
    let metrics = function.api.invoke(&metrics).json()["body"].to_string();
    assert!(metrics.contains(r#"door=\"lambda\""#) && !metrics.contains("real_time"), "{metrics}");
}

#[test]
fn what_there_is_to_say_about_the_model_is_in_the_log() {
    let function = Function::start(|haul| haul.args(["--device", "cpu"]).env("HAUL_BATCH", "8"));
    let asked = json!({ "bytes": base64(&picture()), "name": "a.jpg" }).to_string();
    let answer = function.api.invoke(&asked).json();
    assert_eq!(answer["image"], "a.jpg", "{answer}");
    let logged = function.logged();
    let notes = logged.iter().filter(|line| line.to_string().contains("--batch 8 is for GPUs"));
    assert_eq!(notes.count(), 1, "{logged:?}");
}

#[test]
fn a_direct_invocation_is_answered_with_the_line() {
    let root = tempfile::tempdir().unwrap();
    fs::copy(picture(), root.path().join("there.jpg")).unwrap();
    let function = Function::start(|haul| haul.arg("--root").arg(root.path()));
    let api = &function.api;
    // An emulator says that there is nothing yet.
    api.nothing();
    let line = batch_line("a.jpg", &picture());
    let bytes = base64(&picture());
    let answer = api.invoke(&json!({ "bytes": bytes, "name": "a.jpg" }).to_string());
    assert!(answer.ok);
    assert_eq!(answer.body, line);
    let answer = api.invoke(r#"{"location":"there.jpg","name":"a.jpg"}"#);
    assert_eq!(answer.body, line);
    // The emulator's deadline is no time of day.
    let answer = api.invoke_until(r#"{"location":"there.jpg","name":"a.jpg"}"#, 600_000);
    assert_eq!(answer.body, line);
    let few = api.invoke(r#"{"location":"there.jpg","conf":"1"}"#).json();
    assert_eq!(few["detections"], json!([]));

    let no_picture = json!({ "bytes": STANDARD.encode("no picture") }).to_string();
    let refused = api.invoke(&no_picture);
    let batch = tempfile::NamedTempFile::new().unwrap();
    fs::write(&batch, "no picture").unwrap();
    let batch: Value = serde_json::from_str(&batch_line("a.jpg", batch.path())).unwrap();
    let error = &batch["error"];
    refused.fails(error["code"].as_str().unwrap(), error["message"].as_str().unwrap());
    api.invoke(r#"{"location":"none.jpg"}"#).fails("gone", "none.jpg");
    api.invoke(r#"{"location":"../up.jpg"}"#).fails("outside", "--root");
    api.invoke(r#"{"location":"s3://bucket/key"}"#).fails("outside", "--root");
    api.invoke(r#"{"location":"there.jpg","conf":2}"#).fails("bad_request", "conf is 2");
    api.invoke(r#"{"bytes":"&&&"}"#).fails("bad_request", "base64");
    api.invoke(r#"{"some":"thing"}"#).fails("bad_event", "none of");
    api.invoke("[1]").fails("bad_event", "no JSON object");
    api.invoke(r#"{"Records":[{"eventSource":"aws:kinesis"}]}"#).fails("bad_event", "kinesis");
    // What is no JSON does not even come to us; and it goes on after all of them.
    assert!(!api.invoke("{").ok);
    assert_eq!(api.invoke(r#"{"location":"there.jpg","name":"a.jpg"}"#).body, line);

    let events = function.logged();
    // What was no JSON has another's.
    assert_eq!(events.len(), 15, "one line for each event: {events:?}");
    assert_eq!(events[0]["event"], "direct");
    assert!(events[0]["request_id"].is_string() && events[0].get("code").is_none());
    assert_eq!(events[5]["code"], "gone");
    let ours = events.iter().filter(|line| line["message"] == "event").count();
    assert_eq!(ours, 14, "{events:?}");
}

#[test]
fn messages_of_a_queue_fail_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::copy(picture(), root.path().join("there.jpg")).unwrap();
    let out = root.path().join("out");
    let function =
        Function::start(|haul| haul.arg("--root").arg(root.path()).arg("--output").arg(&out));
    let line = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let messages = queue(&[
        ("there", json!({ "location": "there.jpg" }).to_string()),
        ("bytes", json!({ "bytes": base64(&picture()) }).to_string()),
        ("up", json!({ "bytes": base64(&picture()), "name": "../../up.jpg" }).to_string()),
        ("none", json!({ "bytes": STANDARD.encode("no picture"), "name": "none" }).to_string()),
        ("gone", json!({ "location": "gone.jpg" }).to_string()),
        ("outside", json!({ "location": "../there.jpg" }).to_string()),
        ("malformed", "{".to_owned()),
        ("empty", String::new()),
        ("unknown", json!({ "location": "there.jpg", "confidence": 1 }).to_string()),
        ("test", event("s3-test.json", &[])),
    ]);
    let expected: BTreeSet<String> =
        ["outside", "malformed", "empty", "unknown"].map(str::to_owned).into();
    // Twice: a queue may bring everything again.
    for _ in 0..2 {
        let answer = function.api.invoke(&messages).json();
        assert_eq!(failures(&answer), expected);
        assert_eq!(line("there.jpg.out"), format!("{}\n", batch_line("there.jpg", &picture())));
        assert_eq!(
            line("bytes.out").replace("\"-\"", "\"a\""),
            line("there.jpg.out").replace("\"there.jpg\"", "\"a\"")
        );
        assert!(line("%2E%2E/%2E%2E/up.jpg.out").contains("\"score\""));
        let refused: Value = serde_json::from_str(&line("none.out")).unwrap();
        assert_eq!(
            (&refused["image"], refused["error"]["stage"].as_str()),
            (&"none".into(), Some("decode"))
        );
        let gone: Value = serde_json::from_str(&line("gone.jpg.out")).unwrap();
        assert_eq!(gone["error"]["code"], "gone");
        let written = walk(&out);
        assert_eq!(written.len(), 5, "{written:?}");
    }
    // A record that nobody could say anything about: all of them come again.
    let nameless = messages.replace("messageId", "id");
    function.api.invoke(&nameless).fails("bad_event", "messageId");
    let logged = function.logged();
    let warned = logged.iter().filter(|line| line["level"] == "WARN").count();
    assert_eq!(warned, 2 * expected.len());
    let counts: Vec<&Value> = logged.iter().map(|line| &line["failed_messages"]).collect();
    assert!(counts.contains(&&Value::from(4)), "{counts:?}");
}

/// The files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(walk(&entry)),
            false => found.push(entry),
        }
    }
    found
}

#[test]
fn what_an_output_cannot_take_comes_again() {
    let root = tempfile::tempdir().unwrap();
    fs::copy(picture(), root.path().join("there.jpg")).unwrap();
    let out = root.path().join("out");
    fs::write(&out, "a file").unwrap();
    let function =
        Function::start(|haul| haul.arg("--root").arg(root.path()).arg("--output").arg(&out));
    let messages = queue(&[("one", json!({ "location": "there.jpg" }).to_string())]);
    let again = BTreeSet::from(["one".to_owned()]);
    assert_eq!(failures(&function.api.invoke(&messages).json()), again);
    fs::remove_file(&out).unwrap();
    assert_eq!(failures(&function.api.invoke(&messages).json()), BTreeSet::new());
    assert!(out.join("there.jpg.out").exists());
    drop(function);
    // Without an output nothing is taken that would be lost.
    let function = Function::start(|haul| haul.arg("--root").arg(root.path()));
    function.api.invoke(&messages).fails("no_output", "--output");
}

#[test]
fn a_store_that_does_not_answer_fails_its_own_messages() {
    let out = tempfile::tempdir().unwrap();
    // Nobody listens there any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let function = Function::start(|haul| {
        haul.args(["--root", "s3://bucket/", "--output"])
            .arg(out.path())
            .without_env(&["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"])
            .env("AWS_ENDPOINT_URL_S3", &format!("http://{closed}"))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
    });
    let notice = event("s3-put.json", &[("BUCKET", "bucket"), ("KEY", "a.jpg")]);
    let bytes = json!({ "bytes": base64(&picture()), "name": "b.jpg" }).to_string();
    let answer = function.api.invoke(&queue(&[("s3", notice.clone()), ("bytes", bytes)])).json();
    assert_eq!(failures(&answer), BTreeSet::from(["s3".to_owned()]));
    assert_eq!(walk(out.path()), [out.path().join("b.jpg.out")]);
    function.api.invoke(&notice).fails("store", "s3://bucket/a.jpg");
}

#[test]
fn objects_of_a_bucket_get_lines() {
    with_server(objects_of_a_bucket);
}

fn objects_of_a_bucket(rig: &Rig) {
    let bucket = &rig.bucket.name;
    let keys = ["in/a b+ü.jpg", "in/c.jpg"];
    for key in keys {
        rig.put(key, &fs::read(picture()).unwrap());
    }
    rig.put("in/none.jpg", b"no picture");
    let s3 = |key: &str| event("s3-put.json", &[("BUCKET", bucket), ("KEY", key)]);
    let start = |output: Option<&str>| {
        Function::start(|haul| {
            let haul = rig.told(haul).arg("--root").arg(rig.at("in/"));
            let at = output.map(|at| rig.at(at));
            at.iter().fold(haul, |haul, at| haul.arg("--output").arg(at))
        })
    };
    let line = |key: &str| batch_line(key, &picture());

    // Without an output the lines are in the answer, every byte of them.
    let function = start(None);
    let answer = function.api.invoke(&s3("in/a+b%2B%C3%BC.jpg"));
    assert!(answer.body.contains(&line(keys[0])), "{}", answer.body);
    let results = &answer.json()["results"];
    assert_eq!(results[0]["location"], format!("s3://{bucket}/{}", keys[0]));
    let removed = s3("in/c.jpg").replace("ObjectCreated:Put", "ObjectRemoved:Delete");
    let ignored = &function.api.invoke(&removed).json()["results"][0];
    assert!(ignored["ignored"].as_str().unwrap().contains("ObjectRemoved"), "{ignored}");
    let test = event("s3-test.json", &[]);
    assert_eq!(function.api.invoke(&test).body, "{}");
    // Not below the root; and a bucket that is not there is no fault of a picture.
    function.api.invoke(&s3("other/c.jpg")).fails("outside", "1 of 1 objects failed");
    drop(function);

    let function = start(Some("out"));
    let answer = function.api.invoke(&s3("in/c.jpg")).json();
    let written = format!("s3://{bucket}/out/in/c.jpg.out");
    assert_eq!(answer["results"][0]["output"], written.as_str());
    let out = |key: &str| String::from_utf8(rig.bucket.get(key).expect(key)).unwrap();
    assert_eq!(out("out/in/c.jpg.out"), format!("{}\n", line("in/c.jpg")));

    let two = |one: &str, other: &str| {
        let mut event: Value = serde_json::from_str(&s3(one)).unwrap();
        let other: Value = serde_json::from_str(&s3(other)).unwrap();
        event["Records"].as_array_mut().unwrap().push(other["Records"][0].clone());
        event.to_string()
    };
    let wrapped = event("sns-notification.json", &[("MESSAGE", &s3("in/a+b%2B%C3%BC.jpg"))]);
    let messages = queue(&[
        ("s3", s3("in/c.jpg")),
        ("sns", wrapped),
        ("faults", two("in/none.jpg", "in/gone.jpg")),
        ("half", two("in/c.jpg", "other/c.jpg")),
        ("test", test),
        ("own", s3("out/in/c.jpg.out")),
        ("direct", json!({ "location": format!("s3://{bucket}/in/c.jpg") }).to_string()),
    ]);
    for _ in 0..2 {
        let answer = function.api.invoke(&messages).json();
        assert_eq!(failures(&answer), BTreeSet::from(["half".to_owned()]));
        let name = format!("out/{}.out", keys[0]);
        assert_eq!(out(&name), format!("{}\n", line(keys[0])));
        let of = |key: &str| serde_json::from_str::<Value>(&out(key)).unwrap()["error"].clone();
        assert_eq!(of("out/in/gone.jpg.out")["code"], "gone");
        assert_eq!(of("out/in/none.jpg.out")["stage"], "decode");
        assert_eq!(rig.bucket.keys("out/").len(), 4, "{:?}", rig.bucket.keys("out/"));
    }
}

#[test]
fn a_deadline_ends_the_work_and_not_the_function() {
    let root = tempfile::tempdir().unwrap();
    fs::copy(testdata("pictures/hills.jpg"), root.path().join("slow.jpg")).unwrap();
    let out = root.path().join("out");
    let function = Function::start(|haul| {
        let haul = haul.arg("--root").arg(root.path()).arg("--output").arg(&out);
        // Seconds for a picture.
        haul.args(["--imgsz", "640", "--precision", "f32"]).slowly()
    });
    let direct = r#"{"location":"slow.jpg"}"#;
    let soon = Duration::from_millis(700);
    let begun = Instant::now();
    function.api.invoke_within(direct, soon).fails("timed_out", "no answer within");
    function.api.invoke_within(direct, Duration::ZERO).fails("timed_out", "no answer within 0 s");
    let body = base64(&testdata("pictures/hills.jpg"));
    let url = event("function-url.json", &[("ACCEPT", "*/*"), ("BODY", &body), ("NAME", "a")]);
    assert_eq!(function.api.invoke_within(&url, soon).json()["statusCode"], 504);
    // Of a queue's messages those come again that were not done.
    let messages = queue(&[("one", direct.to_owned()), ("test", event("s3-test.json", &[]))]);
    let answer = function.api.invoke_within(&messages, soon).json();
    assert_eq!(failures(&answer), BTreeSet::from(["one".to_owned()]));
    assert!(begun.elapsed() < Duration::from_secs(60), "nobody waited for the pictures");
}

#[test]
fn it_is_started_by_lambda_or_says_that_it_is_not() {
    let whole = environment("127.0.0.1:1");
    for missing in whole.iter().map(|(name, _)| *name) {
        let haul = Haul::new("lambda").arg("--model").arg(model()).without_env(&[missing]);
        let given = whole.iter().filter(|(name, _)| *name != missing);
        let haul = given.fold(haul, |haul, (name, value)| haul.env(name, value));
        let ran = haul.exits(2).says(missing).says("started by AWS Lambda");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    let told = |haul: Haul| whole.iter().fold(haul, |haul, (name, value)| haul.env(name, value));
    let haul = told(Haul::new("lambda").arg("--model").arg("/nonexistent/model.pt"));
    haul.exits(2).says("/nonexistent/model.pt");
    // There is nobody at that port.
    told(Haul::new("lambda").arg("--model").arg(model())).exits(1).says("runtime API");
}

#[test]
fn a_package_needs_no_arguments() {
    let package = tempfile::tempdir().unwrap();
    let bootstrap = package.path().join("bootstrap");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_haul"), &bootstrap).unwrap();
    let api = RuntimeApi::start();
    let start = || {
        let mut command = Command::new(&bootstrap);
        command.env("LAMBDA_TASK_ROOT", package.path()).envs(environment(&api.address));
        command.env("HAUL_IMGSZ", "64").env_remove("HAUL_MODEL").env_remove("HAUL_CPU_TIER");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let ran = Ran::of(start().output().unwrap());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    ran.says("there is no .pt, .safetensors or .haulpack in it");
    fs::copy(model(), package.path().join("shapes.safetensors")).unwrap();
    let mut child = start().spawn().unwrap();
    let event = json!({ "bytes": base64(&picture()), "name": "a.jpg" }).to_string();
    let answer = api.invoke(&event);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(answer.body, batch_line("a.jpg", &picture()));
}

#[test]
fn the_template_sets_variables_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/lambda/template.yaml");
    let template: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let function = &template["Resources"]["Haul"]["Properties"];
    assert_eq!(function["Runtime"], "provided.al2023");
    let responses = &function["Events"]["Queue"]["Properties"]["FunctionResponseTypes"];
    assert_eq!(responses[0], "ReportBatchItemFailures");
    let help = Haul::new("lambda").arg("--help").exits(0).stdout;
    let variables = function["Environment"]["Variables"].as_mapping().unwrap();
    assert!(!variables.is_empty());
    for name in variables.keys().map(|name| name.as_str().unwrap()) {
        assert!(help.contains(&format!("[env: {name}=")), "{name}");
    }
}
