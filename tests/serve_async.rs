//! The asynchronous door, by the binary: what is accepted has one object, whatever happens.

mod common;

#[path = "common/s3.rs"]
mod s3;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use common::binary::{Haul, model, testdata};

/// An answer over HTTP.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn id(&self) -> String {
        assert_eq!(self.status, 202, "{}", String::from_utf8_lossy(&self.body));
        self.json()["InferenceId"].as_str().unwrap().to_owned()
    }
}

/// Reads head and body of a request or an answer.
fn message(
    stream: &mut BufReader<TcpStream>,
) -> Option<(String, BTreeMap<String, String>, Vec<u8>)> {
    let mut first = String::new();
    stream.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((first, headers, body))
}

/// A server, which is killed when this is dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pictures, the output and the queue of one test.
struct Rig {
    dir: tempfile::TempDir,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        for name in ["pond.jpg", "sea.jpg", "hills.jpg"] {
            std::fs::copy(testdata("pictures").join(name), dir.path().join("in").join(name))
                .unwrap();
        }
        let out = dir.path().join("out").to_str().unwrap().to_owned();
        Rig { dir, flags: vec!["--async-output".to_owned(), out], environment: Vec::new() }
    }

    fn with(mut self, flags: &[&str]) -> Rig {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    fn input(&self, name: &str) -> String {
        self.dir.path().join("in").join(name).to_str().unwrap().to_owned()
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_haul"));
        command
            .arg("serve")
            .arg("--model")
            .arg(model())
            .args(["--imgsz", "64", "--workers", "2", "--endpoint-name", "shapes"])
            .arg("--root")
            .arg(self.dir.path().join("in"))
            // A server without the door has it all the same.
            .env("HAUL_STATE", self.dir.path().join("state"))
            .args(&self.flags)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("HAUL_CPU_TIER")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts a server and waits until it answers. It has a port of its own, and says which.
    fn start(&self) -> Server {
        let log = self.dir.path().join("log");
        let child = self
            .command()
            .args(["--port", "0", "--log-format", "json"])
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn();
        let mut server = Server { child: child.unwrap(), port: 0 };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            let said = std::fs::read_to_string(&log).unwrap();
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server has ended: {said}");
            let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let listening = lines.into_iter().find(|line| line["message"] == "listening");
            if let Some(line) = listening {
                let port = line["address"].as_str().unwrap().rsplit(':').next().unwrap();
                server.port = port.parse().unwrap();
                if server.ask("GET", "/ping", &[], b"").status == 200 {
                    return server;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server does not answer");
    }

    /// Names of objects in the output, with what they hold.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if name.starts_with('.') {
                    continue;
                }
                match path.is_dir() {
                    true => walk(root, &path, found),
                    false => drop(found.insert(name, std::fs::read(&path).unwrap())),
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.output(), &self.output(), &mut found);
        found
    }
}

const ASYNC: &str = "/endpoints/shapes/async-invocations";

impl Server {
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        // A refusal may come before all is sent.
        let _ = stream.write_all(body);
        let (first, headers, body) = message(&mut BufReader::new(stream)).unwrap();
        let status = first.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, headers, body }
    }

    /// Asks for what is at a location.
    fn invoke(&self, location: &str, more: &[(&str, &str)]) -> Answer {
        let mut headers = vec![("X-Amzn-SageMaker-InputLocation", location)];
        headers.extend(more);
        self.ask("POST", ASYNC, &headers, b"")
    }

    /// How a request ended; waits for that.
    fn ended(&self, id: &str) -> Value {
        let begun = Instant::now();
        loop {
            let said = self.ask("GET", &format!("{ASYNC}/{id}"), &[], b"").json();
            if matches!(said["Status"].as_str(), Some("Completed" | "Failed")) {
                return said;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn read(location: &str) -> Vec<u8> {
    std::fs::read(location).unwrap()
}

#[test]
fn a_result_is_what_the_real_time_door_answers() {
    let rig = Rig::new();
    let server = rig.start();
    let location = rig.input("pond.jpg");
    let asked = format!(r#"{{"location":"{location}"}}"#);
    let json = [("Content-Type", "application/json")];
    let now = server.ask("POST", "/endpoints/shapes/invocations", &json, asked.as_bytes());
    assert_eq!(now.status, 200);

    let accepted = server.invoke(&location, &[("X-Amzn-SageMaker-S3OutputPathExtension", "a/b/")]);
    let id = accepted.id();
    let output = accepted.header("x-amzn-sagemaker-outputlocation");
    assert_eq!(Path::new(output), rig.output().join(format!("a/b/{id}.out")));
    let failure = accepted.header("x-amzn-sagemaker-failurelocation");
    assert_eq!(Path::new(failure), rig.output().join(format!("{id}-error.out")));
    let ended = server.ended(&id);
    assert_eq!((&ended["Status"], &ended["Attempts"]), (&"Completed".into(), &1.into()), "{ended}");
    assert_eq!(ended["OutputLocation"], output);
    assert_eq!(read(output), now.body);
    assert!(!Path::new(failure).exists());

    // With a body, options and a picture as the answer.
    let picture = read(&location);
    let attributes = ("X-Amzn-SageMaker-Custom-Attributes", "trace=1; haul-conf=0.05");
    let drawn = ("Accept", "image/png");
    let now = server.ask("POST", "/endpoints/shapes/invocations", &[attributes, drawn], &picture);
    let drawn = ("X-Amzn-SageMaker-Accept", "image/png");
    let named = ("X-Amzn-SageMaker-Filename", "seen.png");
    assert!(picture.len() <= 128_000, "the picture is no body: {}", picture.len());
    let accepted = server.ask("POST", ASYNC, &[attributes, drawn, named], &picture);
    assert_eq!(server.ended(&accepted.id())["Status"], "Completed");
    assert_eq!(rig.objects()["seen.png"], now.body);
    // A line without a name.
    let now = server.ask("POST", "/endpoints/shapes/invocations", &[attributes], &picture);
    let accepted = server.ask("POST", ASYNC, &[attributes], &picture);
    server.ended(&accepted.id());
    assert_eq!(read(accepted.header("x-amzn-sagemaker-outputlocation")), now.body);
    assert!(now.body.starts_with(br#"{"image":"-""#));

    let metrics = server.ask("GET", "/metrics", &[], b"").body;
    let metrics = String::from_utf8(metrics).unwrap();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("haul_{name}{{")));
        line.unwrap_or_else(|| panic!("{name}: {metrics}")).rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(value("invocations_processed_total"), "3");
    assert_eq!(value("approximate_backlog_size"), "0");
    assert_eq!(value("has_backlog_without_capacity"), "0");
    assert_eq!(value("time_in_backlog_seconds_count"), "3");
}

#[test]
fn what_is_wrong_is_said_at_once() {
    let rig = Rig::new();
    let server = rig.start();
    let fine = rig.input("pond.jpg");
    let secret = rig.dir.path().join("secret.jpg");
    std::fs::copy(&fine, &secret).unwrap();
    let refused = |answer: Answer, words: &str| {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, 400, "{words}: {text}");
        assert_eq!(answer.header("x-amzn-errortype"), "ValidationError", "{text}");
        let said = answer.json()["Message"].as_str().unwrap().to_owned();
        assert!(said.contains(words), "{words}: {said}");
    };
    for (header, value, words) in [
        ("RequestTTLSeconds", "59", "between 60 and 21600"),
        ("RequestTTLSeconds", "21601", "between 60 and 21600"),
        ("RequestTTLSeconds", "1e3", "between 60 and 21600"),
        ("InvocationTimeoutSeconds", "0", "between 1 and 3600"),
        ("InvocationTimeoutSeconds", "-1", "between 1 and 3600"),
        ("Content-Type", "text/plain", "Content-Type"),
        ("Accept", "text/html", "Accept"),
        ("Custom-Attributes", "haul-conf=much", "haul-conf"),
        ("Inference-Id", &"x".repeat(65), "InferenceId"),
        ("Filename", "../a", "Filename"),
        ("Filename", "a/b", "Filename"),
        ("Filename", "a.b.c", "Filename"),
        ("S3OutputPathExtension", "../up", "S3OutputPathExtension"),
        ("S3OutputPathExtension", "/etc", "S3OutputPathExtension"),
        ("S3OutputPathExtension", "s3://b/a", "S3OutputPathExtension"),
        ("S3OutputPathExtension", "a\\b", "S3OutputPathExtension"),
        ("Target-Model", "m", "TargetModel"),
    ] {
        let header = format!("X-Amzn-SageMaker-{header}");
        let words = if words == "haul-conf" { "custom attributes" } else { words };
        refused(server.invoke(&fine, &[(&header, value)]), words);
    }
    for location in [
        secret.to_str().unwrap(),
        "../secret.jpg",
        "/etc/passwd",
        "s3://other/a.jpg",
        "https://a/b.jpg",
        &format!("{}/../secret.jpg", rig.input("")),
    ] {
        refused(server.invoke(location, &[]), "InputLocation");
    }
    refused(server.ask("POST", ASYNC, &[], b""), "neither");
    let both = [("X-Amzn-SageMaker-InputLocation", &*fine)];
    refused(server.ask("POST", ASYNC, &both, b"picture"), "one is taken");
    refused(server.ask("POST", ASYNC, &[], &vec![0; 128_001]), "128000");
    refused(server.ask("POST", "/endpoints/other/async-invocations", &both, b""), "Endpoint other");
    let unknown = server.ask("GET", &format!("{ASYNC}/nobody"), &[], b"");
    assert_eq!(unknown.status, 404);
    assert!(rig.objects().is_empty());
    drop(server);

    let closed = Rig { flags: Vec::new(), ..rig };
    let server = closed.start();
    refused(server.invoke(&closed.input("pond.jpg"), &[]), "--async-output");
}

#[test]
fn a_repetition_is_known_and_a_name_is_given_once() {
    let rig = Rig::new();
    let server = rig.start();
    let (pond, sea) = (rig.input("pond.jpg"), rig.input("sea.jpg"));
    let id = ("X-Amzn-SageMaker-Inference-Id", "my.id-1");
    let first = server.invoke(&pond, &[id]);
    assert_eq!(first.id(), "my.id-1");
    assert!(first.header("x-amzn-sagemaker-outputlocation").ends_with("/out/my.id-1.out"));
    server.ended("my.id-1");
    let again = server.invoke(&pond, &[id]);
    let location = "x-amzn-sagemaker-outputlocation";
    assert_eq!((again.status, again.header(location)), (202, first.header(location)));
    let another = server.invoke(&sea, &[id]);
    assert_eq!(another.status, 400);
    assert!(another.json()["Message"].as_str().unwrap().contains("another request"));
    assert_eq!(server.ended("my.id-1")["Attempts"], 1);
    assert_eq!(rig.objects().len(), 1);

    // An id that is no name stays an id.
    let unsafe_id = ("X-Amzn-SageMaker-Inference-Id", "../../x");
    let accepted = server.invoke(&pond, &[unsafe_id]);
    assert_eq!(accepted.id(), "../../x");
    let output = accepted.header(location).to_owned();
    assert!(!output.contains(".."), "{output}");
    assert_eq!(server.ended("..%2F..%2Fx")["Status"], "Completed");
    assert_eq!(Path::new(&output).parent().unwrap(), rig.output());

    let named = ("X-Amzn-SageMaker-Filename", "result.json");
    server.ended(&server.invoke(&pond, &[named]).id());
    let taken = server.invoke(&pond, &[named]);
    assert_eq!(taken.status, 400);
    assert!(taken.json()["Message"].as_str().unwrap().contains("promised to another"));
}

#[test]
fn what_fails_has_a_failure_object_and_nothing_else() {
    let rig = Rig::new().with(&["--async-max-payload", "3MB"]);
    std::fs::write(rig.dir.path().join("in/broken.jpg"), b"no picture").unwrap();
    std::fs::write(rig.dir.path().join("in/large.jpg"), vec![0; 3_000_001]).unwrap();
    let server = rig.start();
    let mut expected = 0;
    for (name, code) in
        [("broken.jpg", "corrupt"), ("none.jpg", "gone"), ("large.jpg", "payload_too_large")]
    {
        let accepted = server.invoke(&rig.input(name), &[]);
        let id = accepted.id();
        let ended = server.ended(&id);
        assert_eq!(ended["Status"], "Failed", "{ended}");
        let said: Value =
            serde_json::from_slice(&read(accepted.header("x-amzn-sagemaker-failurelocation")))
                .unwrap();
        assert_eq!(said["inferenceId"], id);
        assert_eq!(said["inputLocation"], rig.input(name));
        assert_eq!(said["error"]["code"], ended["Error"]["code"]);
        if name != "broken.jpg" {
            assert_eq!(said["error"]["code"], code, "{said}");
        }
        assert!(said["error"]["message"].is_string());
        expected += 1;
        assert_eq!(rig.objects().len(), expected);
    }
    // A stranger's object stays, and the request says why it failed.
    std::fs::write(rig.output().join("mine.txt"), b"mine").unwrap();
    let named = ("X-Amzn-SageMaker-Filename", "mine.txt");
    let accepted = server.invoke(&rig.input("pond.jpg"), &[named]);
    let ended = server.ended(&accepted.id());
    assert_eq!(ended["Error"]["code"], "name_taken", "{ended}");
    assert_eq!(read(accepted.header("x-amzn-sagemaker-outputlocation")), b"mine");
    assert!(Path::new(accepted.header("x-amzn-sagemaker-failurelocation")).exists());
}

#[test]
fn one_server_has_a_queue() {
    let rig = Rig::new();
    let _server = rig.start();
    let second = rig.command().args(["--port", "0"]).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(said.contains("--state") && said.contains("another server"), "{said}");

    let output = rig.output().join("x");
    for (flag, value, words) in [
        ("--async-concurrency", "0", "between 1 and 1000"),
        ("--async-concurrency", "1001", "between 1 and 1000"),
        ("--notify-success", "ftp://a", "--notify-success"),
        ("--notify-error", "sqs+http://a", "names no queue"),
        ("--async-output", "gs://a/b", "gs://"),
        ("--async-retention", "1h", "without --async-output"),
    ] {
        let serve = Haul::new("serve").arg("--model").arg(model()).args(["--port", "0"]);
        let serve = match flag {
            "--async-output" | "--async-retention" => serve,
            _ => serve.arg("--async-output").arg(&output),
        };
        let ran = serve.args([flag, value]).exits(2);
        assert!(ran.stderr.contains(words), "{flag}: {}", ran.stderr);
    }
}

#[test]
fn what_was_accepted_survives_being_killed() {
    // Slowly, so that it is killed in the middle.
    let mut rig = Rig::new().with(&["--async-concurrency", "2"]);
    rig.environment.push(("HAUL_CPU_TIER".to_owned(), "reference".to_owned()));
    let mut rig_server = rig.start();
    let names = ["pond.jpg", "sea.jpg", "hills.jpg"];
    let ids: Vec<(String, &str)> = (0..24)
        .map(|number| {
            let name = names[number % names.len()];
            (rig_server.invoke(&rig.input(name), &[]).id(), name)
        })
        .collect();
    for part in 1..=2 {
        let begun = Instant::now();
        while rig.objects().len() < part * 6 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is published");
            std::thread::sleep(Duration::from_millis(5));
        }
        rig_server.child.kill().unwrap();
        rig_server.child.wait().unwrap();
        rig_server = rig.start();
    }
    let mut expected = BTreeMap::new();
    for (id, name) in &ids {
        let ended = rig_server.ended(id);
        assert_eq!(ended["Status"], "Completed", "{ended}");
        let asked = format!(r#"{{"location":"{}"}}"#, rig.input(name));
        let now = expected.entry(*name).or_insert_with(|| {
            let json = [("Content-Type", "application/json")];
            rig_server.ask("POST", "/endpoints/shapes/invocations", &json, asked.as_bytes()).body
        });
        assert_eq!(&rig.objects()[&format!("{id}.out")], now, "{name}");
    }
    assert_eq!(rig.objects().len(), ids.len());
}

#[test]
fn a_stop_leaves_the_rest_queued() {
    let mut rig = Rig::new().with(&["--async-concurrency", "1", "--grace", "20s"]);
    rig.environment.push(("HAUL_CPU_TIER".to_owned(), "reference".to_owned()));
    let mut server = rig.start();
    let ids: Vec<String> =
        (0..20).map(|_| server.invoke(&rig.input("pond.jpg"), &[]).id()).collect();
    server.ended(&ids[0]);
    let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let code = server.child.wait().unwrap();
    assert!(code.success(), "{code}");
    assert!(rig.objects().len() < ids.len(), "all were through");
    let server = rig.start();
    for id in &ids {
        let ended = server.ended(id);
        // Nobody was cut off, so nobody was begun twice.
        assert_eq!((&ended["Status"], &ended["Attempts"]), (&"Completed".into(), &1.into()));
    }
}

/// Headers and body of a notification.
type Told = (BTreeMap<String, String>, Value);

/// Takes notifications, after it has refused so many.
fn receiver(refuse: usize) -> (u16, Arc<Mutex<Vec<Told>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken: Arc<Mutex<Vec<Told>>> = Arc::default();
    let kept = taken.clone();
    std::thread::spawn(move || {
        let mut refused = 0;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some((_, headers, body)) = message(&mut stream) {
                let fine = refused >= refuse;
                refused += usize::from(!fine);
                if fine {
                    let body = serde_json::from_slice(&body).unwrap();
                    kept.lock().unwrap().push((headers, body));
                }
                let status = if fine { "204 No Content" } else { "503 Later" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (port, taken)
}

#[test]
fn receivers_are_told_until_they_have_heard() {
    let (webhook, told) = receiver(2);
    let (topic, envelopes) = receiver(0);
    let urls =
        [format!("http://127.0.0.1:{webhook}/hook"), format!("sns+http://127.0.0.1:{topic}/")];
    let rig = Rig::new().with(&[
        "--notify-success",
        &urls[0],
        "--notify-error",
        &urls[1],
        "--notify-include-response",
    ]);
    let server = rig.start();
    let fine = server.invoke(&rig.input("pond.jpg"), &[]);
    let gone = server.invoke(&rig.input("none.jpg"), &[]);
    let begun = Instant::now();
    while told.lock().unwrap().is_empty() || envelopes.lock().unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody was told");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (headers, said) = told.lock().unwrap()[0].clone();
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(said["invocationStatus"], "Completed");
    assert_eq!(said["inferenceId"], fine.id());
    assert_eq!(said["eventName"], "InferenceResult");
    let output = fine.header("x-amzn-sagemaker-outputlocation");
    assert_eq!(said["responseParameters"]["outputLocation"], output);
    assert_eq!(said["requestParameters"]["inputLocation"], rig.input("pond.jpg"));
    assert_eq!(said["responseBody"]["content"].as_str().unwrap().as_bytes(), read(output));

    let (headers, envelope) = envelopes.lock().unwrap()[0].clone();
    assert_eq!(headers["x-amz-sns-message-type"], "Notification");
    assert_eq!(headers["content-type"], "text/plain; charset=UTF-8");
    assert_eq!(envelope["Type"], "Notification");
    assert_eq!(envelope["MessageId"], headers["x-haul-notification-id"].as_str());
    let said: Value = serde_json::from_str(envelope["Message"].as_str().unwrap()).unwrap();
    assert_eq!(said["invocationStatus"], "Failed");
    assert_eq!(said["inferenceId"], gone.id());
    assert!(said["failureReason"].as_str().unwrap().contains("gone"), "{said}");
    let metrics = String::from_utf8(server.ask("GET", "/metrics", &[], b"").body).unwrap();
    let failures =
        metrics.lines().find(|line| line.starts_with("haul_notification_failures_total"));
    assert!(failures.unwrap().ends_with(" 2"), "{failures:?}");
}

#[test]
fn an_idle_server_ends_when_everybody_has_been_told() {
    // It is told again after 1, 2 and 4 seconds.
    let (webhook, told) = receiver(3);
    let url = format!("http://127.0.0.1:{webhook}/hook");
    let rig = Rig::new().with(&["--notify-success", &url, "--idle-exit", "2s"]);
    let mut server = rig.start();
    let id = server.invoke(&rig.input("pond.jpg"), &[]).id();
    let code = server.child.wait().unwrap();
    assert!(code.success(), "{code}");
    assert!(rig.objects().contains_key(&format!("{id}.out")));
    assert_eq!(told.lock().unwrap().len(), 1);
}

#[test]
fn results_go_to_a_bucket() {
    s3::with_bucket("results_go_to_a_bucket", |bucket| {
        bucket.put("in/pond.jpg", &std::fs::read(testdata("pictures/pond.jpg")).unwrap());
        let (input, output) =
            (format!("s3://{}/in/", bucket.name), format!("s3://{}/out", bucket.name));
        let mut rig = Rig::new();
        rig.flags = ["--root", &input, "--async-output", &output].map(str::to_owned).into();
        for (name, value) in bucket.variables() {
            rig.environment.push((name.to_owned(), value.to_owned()));
        }
        let server = rig.start();
        let location = format!("{input}pond.jpg");
        let accepted = server.invoke(&location, &[]);
        let id = accepted.id();
        let outputs = accepted.header("x-amzn-sagemaker-outputlocation");
        assert_eq!(outputs, format!("{output}/{id}.out"));
        let missing = server.invoke(&format!("{input}none.jpg"), &[]).id();
        assert_eq!(server.ended(&id)["Status"], "Completed");
        assert_eq!(server.ended(&missing)["Error"]["code"], "gone");
        let asked = format!(r#"{{"location":"{location}"}}"#);
        let json = [("Content-Type", "application/json")];
        let now = server.ask("POST", "/endpoints/shapes/invocations", &json, asked.as_bytes());
        assert_eq!(bucket.get(&format!("out/{id}.out")).unwrap(), now.body);
        let mut expected = [format!("out/{id}.out"), format!("out/{missing}-error.out")];
        expected.sort();
        assert_eq!(bucket.keys("out/"), expected);
    });
}

/// Killed at each of the places between which something is durable that was not before.
#[cfg(feature = "failpoints")]
#[test]
fn a_kill_at_any_place_leaves_each_request_one_object() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let names = ["pond.jpg", "sea.jpg", "none.jpg", "hills.jpg", "pond.jpg"];
    for place in
        ["async_accepted", "async_begun", "async_decided", "async_published", "async_ended"]
    {
        for passes in [0, 2] {
            let what = format!("{place} {passes}");
            let mut rig = Rig::new();
            let word = format!("{place}={passes}*off->return(SIGKILL)");
            rig.environment.push(("FAILPOINTS".to_owned(), word));
            let mut server = rig.start();
            let invoke = |server: &Server, index: usize| {
                let id = format!("request-{index}");
                let id = ("X-Amzn-SageMaker-Inference-Id", id.as_str());
                server
                    .invoke(&rig.input(names[index]), &[id])
                    .header("x-amzn-sagemaker-outputlocation")
                    .to_owned()
            };
            // Some are accepted, and some meet nobody.
            let promised: Vec<Option<String>> = (0..names.len())
                .map(|index| catch_unwind(AssertUnwindSafe(|| invoke(&server, index))).ok())
                .collect();
            let begun = Instant::now();
            while server.child.try_wait().unwrap().is_none() {
                assert!(begun.elapsed() < Duration::from_secs(30), "{what}: it was not killed");
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(server);
            rig.environment.clear();
            let server = rig.start();
            // A client asks again for what it had no answer to; what was accepted is not run twice.
            for (index, promised) in promised.iter().enumerate() {
                let id = format!("request-{index}");
                let id = ("X-Amzn-SageMaker-Inference-Id", id.as_str());
                let answer = server.invoke(&rig.input(names[index]), &[id]);
                let location = answer.header("x-amzn-sagemaker-outputlocation");
                assert_eq!(answer.status, 202, "{what}");
                assert!(promised.as_deref().is_none_or(|promised| promised == location), "{what}");
            }
            for (index, name) in names.iter().enumerate() {
                let ended = server.ended(&format!("request-{index}"));
                let status = if *name == "none.jpg" { "Failed" } else { "Completed" };
                assert_eq!(ended["Status"], status, "{what}: {ended}");
            }
            let objects: Vec<String> = rig.objects().into_keys().collect();
            let expected = [
                "request-0.out",
                "request-1.out",
                "request-2-error.out",
                "request-3.out",
                "request-4.out",
            ];
            assert_eq!(objects, expected, "{what}");
        }
    }
}
