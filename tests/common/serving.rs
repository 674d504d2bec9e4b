//! A server that is the real binary, and clients that say what they want byte by byte.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::binary::{Haul, model, testdata};

/// Nothing here takes so long, unless it never ends.
const EVER: Duration = Duration::from_secs(60);

/// A server, until it is dropped.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) address: SocketAddr,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of an error.
    pub(crate) fn code(&self) -> String {
        let value: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        value["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Those that a connection has brought, in order.
    pub(crate) fn all(mut bytes: &[u8]) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut lines = head.lines();
            let first = lines.next().unwrap_or_default();
            let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
            let headers = lines.filter_map(|line| line.split_once(':'));
            let headers: Vec<_> =
                headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
            let mut answer = Answer { status, headers, body: Vec::new() };
            let rest = &bytes[end + 4..];
            let length = match status {
                100 => 0,
                _ => {
                    answer.header("content-length").map_or(rest.len(), |text| text.parse().unwrap())
                }
            };
            let length = length.min(rest.len());
            answer.body = rest[..length].to_vec();
            bytes = &rest[length..];
            answers.push(answer);
        }
        answers
    }
}

impl Server {
    /// With the small model at a small size.
    pub(crate) fn start(args: &[&str]) -> Server {
        Server::of(Server::haul(args))
    }

    pub(crate) fn haul(args: &[&str]) -> Haul {
        let model = model();
        Haul::new("serve")
            .arg("--model")
            .arg(model)
            .args(["--imgsz", "64", "--workers", "2", "--port", "0", "--log-format", "json"])
            .args(args)
    }

    /// With these settings, once it is ready.
    #[track_caller]
    pub(crate) fn of(haul: Haul) -> Server {
        let mut child = haul.spawn();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let address = "127.0.0.1:0".parse().unwrap();
        let mut server = Server { child, log, address };
        server.wait_for_log("\"message\":\"ready\"");
        let listening = server.events("listening").remove(0);
        server.address = listening["address"].as_str().unwrap().parse().unwrap();
        server
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Lines of the log with this message.
    pub(crate) fn events(&self, message: &str) -> Vec<Value> {
        let lines = self.log();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    }

    /// Waits until the log says something.
    #[track_caller]
    pub(crate) fn wait_for_log(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?} before `{text}`: {}", self.log());
            assert!(begun.elapsed() < EVER, "no `{text}` in: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(EVER)).unwrap();
        stream
    }

    /// Sends bytes, and reads until the server closes. It may close before it has read them all.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Vec<Answer> {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        Answer::all(&until_closed(stream))
    }

    /// One request with a body, on a connection of its own.
    pub(crate) fn ask(&self, head: &str, body: &[u8]) -> Answer {
        let answers = self.raw(&request(head, body));
        assert_eq!(answers.len(), 1, "`{head}`: {answers:?}");
        answers.into_iter().next().unwrap()
    }

    /// What an ordinary client does.
    pub(crate) fn detect(&self) -> Answer {
        self.ask("POST /invocations", &picture())
    }

    /// A metric's value; all lines of that name together.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.ask("GET /metrics", b"").text();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its exit code, once it has ended.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(begun.elapsed() < EVER, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory that is its own, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Files and sockets that it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A picture in which the small model finds something.
pub(crate) fn picture() -> Vec<u8> {
    std::fs::read(testdata("forms/jpeg-444.jpg")).unwrap()
}

/// A request that asks for the connection to be closed: its first line without a version, headers
/// on further lines.
pub(crate) fn request(head: &str, body: &[u8]) -> Vec<u8> {
    let (first, headers) = head.split_once('\n').unwrap_or((head, ""));
    let mut bytes =
        format!("{first} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n").into_bytes();
    for header in headers.lines() {
        bytes.extend(format!("{header}\r\n").into_bytes());
    }
    bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
    bytes.extend(body);
    bytes
}

/// All that still comes; a connection that is reset ends, too.
pub(crate) fn until_closed(mut stream: TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!(
                    "the server keeps the connection open after {}",
                    String::from_utf8_lossy(&all)
                )
            }
            Err(_) => return all,
        }
    }
}

/// Writes a file whose name is that of its flag.
pub(crate) fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
