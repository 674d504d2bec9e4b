//! `haul serve` that scales to zero: on a socket that was handed over, unloading its model, ending
//! when nobody asks, and refusing more than a serverless endpoint takes at once.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::binary::{Haul, model, testdata};
use serde_json::Value;

/// A server; it ends with the test.
struct Server {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer's head and body.
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn is(self, status: u16) -> Answer {
        let (head, body) = (&self.head, &self.body);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}\n{body}");
        self
    }
}

impl Server {
    /// On a free port.
    fn start(with: impl FnOnce(Haul) -> Haul) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let haul = Haul::new("serve").arg("--model").arg(model()).args(["--imgsz", "64"]);
        let haul = haul.args(["--workers", "2", "--port"]).arg(free.port().to_string());
        Server::of(with(haul).spawn(), free)
    }

    fn of(mut child: Child, address: SocketAddr) -> Server {
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                lines.lock().unwrap().push(line);
            }
        });
        Server { child, address, log }
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn says(&self, message: &str) -> Value {
        let begun = Instant::now();
        loop {
            let log = self.log.lock().unwrap();
            if let Some(line) = log.iter().find(|line| line["message"] == message) {
                return line.clone();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no `{message}` in {log:?}");
            drop(log);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has ended, and gives its exit code.
    fn ends(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn get(&self, path: &str) -> Answer {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        read(stream)
    }

    fn post(&self, path: &str, picture: &[u8]) -> Answer {
        read(ask(self.connect(), path, picture))
    }

    fn connect(&self) -> TcpStream {
        let begun = Instant::now();
        loop {
            match TcpStream::connect(self.address) {
                Ok(stream) => return stream,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn ask(mut stream: TcpStream, path: &str, picture: &[u8]) -> TcpStream {
    let length = picture.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: image/jpeg\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .unwrap();
    stream.write_all(picture).unwrap();
    stream
}

fn read(mut stream: TcpStream) -> Answer {
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Answer { head: head.to_lowercase().replacen("http", "HTTP", 1), body: body.to_owned() }
}

fn picture() -> Vec<u8> {
    std::fs::read(testdata("forms/jpeg-444.jpg")).unwrap()
}

/// The binary with one or two sockets handed over as systemd does: from number 3 on, and its own
/// process number with them.
fn with_sockets(sockets: &[&TcpListener], flags: &[&str]) -> Child {
    let pass = |socket: &TcpListener| Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
    let script = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_PID=$$; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_haul"), "serve", "--model"]);
    command.arg(model()).args(["--imgsz", "64", "--workers", "2"]).args(flags);
    command.env("LISTEN_FDS", sockets.len().to_string()).env_remove("HAUL_CPU_TIER");
    command.stdin(pass(sockets[0])).stdout(sockets.get(1).map_or(Stdio::null(), |s| pass(s)));
    command.stderr(Stdio::piped()).spawn().unwrap()
}

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn a_socket_that_is_handed_over_is_used() {
    let socket = socket();
    let address = socket.local_addr().unwrap();
    // It asks before there is anybody, and nobody refuses it.
    let early = ask(TcpStream::connect(address).unwrap(), "/invocations", &picture());
    // Somebody else has the port that would be taken without; nobody asks for it.
    let port = address.port().to_string();
    let child = with_sockets(&[&socket], &["--port", &port, "--idle-exit", "500ms"]);
    let mut server = Server::of(child, address);
    assert!(read(early).is(200).body.contains("\"detections\""));
    let line = server.says("first answer");
    let phases =
        ["arguments_ms", "listening_ms", "model_ms", "first_request_ms", "first_answer_ms"];
    let times: Vec<f64> = phases.iter().map(|name| line[name].as_f64().unwrap()).collect();
    assert!(times.is_sorted_by(|a, b| a <= b) || times[3] <= times[2], "{line}");
    assert!(times[0] > 0.0 && times[4] >= times[3] && line["before_main_cpu_ms"].is_number());
    assert_eq!(server.ends(), Some(0), "an idle server ends, and is well");

    // The socket is still there, and whoever asks now waits for the next one.
    let next = ask(TcpStream::connect(address).unwrap(), "/invocations", &picture());
    let mut server = Server::of(with_sockets(&[&socket], &["--idle-exit", "500ms"]), address);
    read(next).is(200);
    assert_eq!(server.ends(), Some(0));
}

#[test]
fn what_is_no_single_socket_is_refused() {
    let (one, other) = (socket(), socket());
    let said = |mut child: Child| {
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (child.wait().unwrap().code(), text)
    };
    let (code, text) = said(with_sockets(&[&one, &other], &[]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("2 sockets were handed over"), "{text}");
    let mut command = Command::new("sh");
    let script = "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_haul"), "serve", "--model"]);
    let (code, text) = said(command.arg(model()).stderr(Stdio::piped()).spawn().unwrap());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("no TCP socket"), "{text}");
}

#[test]
fn an_idle_server_ends_and_a_busy_one_does_not() {
    let mut server = Server::start(|haul| {
        // Longer for a picture than the server has patience.
        haul.slowly().args(["--imgsz", "320", "--precision", "f32", "--idle-exit", "300ms"])
    });
    let hills = std::fs::read(testdata("pictures/hills.jpg")).unwrap();
    let begun = Instant::now();
    server.post("/invocations", &hills).is(200);
    assert!(begun.elapsed() > Duration::from_millis(300), "it was too quick to tell");
    assert_eq!(server.ends(), Some(0));
    assert!(TcpStream::connect(server.address).is_err(), "nobody listens any more");
}

#[test]
fn an_idle_model_goes_and_comes_again() {
    let server = Server::start(|haul| haul.args(["--unload-after", "200ms"]));
    let first = server.post("/invocations", &picture()).is(200).body;
    server.says("model unloaded");
    assert!(
        server.get("/metrics").is(200).body.contains("haul_model_loaded{endpoint=\"shapes\"} 0")
    );
    server.get("/ping").is(200);
    assert_eq!(server.post("/invocations", &picture()).is(200).body, first);
    let metrics = server.get("/metrics").is(200).body;
    assert!(
        metrics.contains("haul_model_setup_time_seconds_count{endpoint=\"shapes\"} 2"),
        "{metrics}"
    );
}

#[test]
fn a_serverless_endpoint_throttles_and_holds() {
    let flags = ["--serverless", "--max-concurrency", "2", "--unload-after", "1s"];
    let server = Server::start(|haul| {
        haul.slowly().args(["--imgsz", "320", "--precision", "f32"]).args(flags)
    });
    let hills = std::fs::read(testdata("pictures/hills.jpg")).unwrap();
    server.says("ready");
    let held: Vec<_> =
        (0..2).map(|_| ask(server.connect(), "/endpoints/shapes/invocations", &hills)).collect();
    wait_for(&server, "haul_concurrent_requests{endpoint=\"shapes\"} 2");
    let plain = server.post("/invocations", &picture()).is(429);
    assert!(
        plain.head.contains("retry-after: 1") && plain.body.contains("throttled"),
        "{}",
        plain.head
    );
    let aws = server.post("/endpoints/shapes/invocations", &picture()).is(400);
    assert!(aws.head.contains("x-amzn-errortype: throttlingexception"), "{}", aws.head);
    for stream in held {
        read(stream).is(200);
    }
    // While the model is loaded again they wait.
    server.says("model unloaded");
    let held: Vec<_> = (0..2).map(|_| ask(server.connect(), "/invocations", &picture())).collect();
    for stream in held {
        read(stream).is(200);
    }
    server.post("/invocations", &vec![0; (4 << 20) + 1]).is(413);
}

/// Waits until the metrics say something.
#[track_caller]
fn wait_for(server: &Server, what: &str) {
    let begun = Instant::now();
    loop {
        let metrics = server.get("/metrics").is(200).body;
        if metrics.contains(what) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no {what} in {metrics}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn wrong_flags_are_refused() {
    let serve = || Haul::new("serve").arg("--model").arg(model());
    serve().args(["--max-concurrency", "2"]).exits(2).says("goes with --serverless");
    for wrong in ["0", "201"] {
        let flags = ["--serverless", "--max-concurrency", wrong];
        serve().args(flags).exits(2).says("between 1 and 200");
    }
    serve().args(["--serverless", "--max-requests", "9"]).exits(2).says("--max-concurrency");
    serve().args(["--idle-exit", "soon"]).exits(2).says("idle-exit");
    Haul::new("serve")
        .args(["--model", "/nonexistent.pt", "--port", "0"])
        .exits(2)
        .says("/nonexistent.pt");
}

#[test]
fn the_systemd_units_start_it_when_it_is_asked() {
    let units = ["socket", "service"].map(|kind| {
        let name = format!("jobs/systemd/haul-serve.{kind}");
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    });
    let service = std::fs::read_to_string(&units[1]).unwrap();
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let flags = start.strip_prefix("haul serve --model yolov8n.pt ").unwrap();
    assert!(flags.contains("--idle-exit 10min"), "{flags}");
    let flags: Vec<&str> =
        flags.split(' ').map(|flag| if flag == "10min" { "300ms" } else { flag }).collect();
    let socket = socket();
    let address = socket.local_addr().unwrap();
    let early = ask(TcpStream::connect(address).unwrap(), "/invocations", &picture());
    let mut server = Server::of(with_sockets(&[&socket], &flags), address);
    read(early).is(200);
    assert_eq!(server.ends(), Some(0));

    match Command::new("systemd-analyze").arg("verify").args(&units).output() {
        Err(error) => println!("skipped: systemd-analyze verify ({error})"),
        Ok(output) => {
            // Other units of the machine are none of ours; nor is haul where it is installed.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours = |line: &&str| line.contains("haul-serve") && !line.contains("executable");
            let ours: Vec<&str> = said.lines().filter(ours).collect();
            assert!(ours.is_empty(), "{ours:?}");
        }
    }
}
