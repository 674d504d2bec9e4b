//! `haul serve` as a process, and a client of it: as little of HTTP as it takes to send bytes and
//! to see all bytes that come back.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::binary::model;

/// A server, which is ended with this.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Served {
    /// The small model at a small size, as [`Haul::run`](crate::common::binary::Haul::run) has it.
    pub(crate) fn start(arguments: &[&str]) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_haul"));
        command.arg("serve").arg("--model").arg(model()).args(["--imgsz", "64", "--port", "0"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        // Nobody reads what it logs; where a test fails this is shown.
        let log = tempfile::NamedTempFile::new().unwrap();
        command.stderr(log.reopen().unwrap()).env_remove("HAUL_CPU_TIER");
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        loop {
            if let Some(port) = listening(child.id()) {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let served = Served { child, address };
                while served.get("/ping").status != 200 {
                    assert!(begun.elapsed().as_secs() < 120, "it is not healthy in two minutes");
                    std::thread::sleep(Duration::from_millis(10));
                }
                return served;
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(log.path()).unwrap());
            assert!(begun.elapsed().as_secs() < 120, "it does not listen in two minutes");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], &[])
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.ask("POST", path, headers, body)
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("no headers came");
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
        let reply = Reply { status, head, body: all[end + 4..].to_vec() };
        let length: usize = reply.header("content-length").unwrap_or("0").parse().unwrap();
        assert_eq!(reply.body.len(), length, "{method} {path}: {}", reply.head);
        reply
    }

    /// Asks it to end, and looks how it did.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reply {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (given, value) = line.split_once(": ")?;
            given.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// The port on which a process listens, as the kernel says: nobody else can have taken it.
fn listening(pid: u32) -> Option<u16> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A");
        let ours = sockets.contains(&format!("socket:[{}]", fields.get(9)?));
        let port = fields.get(1)?.split_once(':')?.1;
        (listens && ours).then(|| u16::from_str_radix(port, 16).ok())?
    })
}
