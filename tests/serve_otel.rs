//! Traces, as a collector of OpenTelemetry gets them. Needs the feature `otel`.

mod common;
#[path = "common/serving.rs"]
mod serving;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};

use nix::sys::signal::Signal;
use serving::{Server, picture};

/// Reads one request after the other, answers each as a collector does, and passes on its first
/// line and its body.
fn collect(mut stream: TcpStream, came: &Sender<(String, Vec<u8>)>) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        let text = head.map(|end| String::from_utf8_lossy(&bytes[..end]).to_lowercase());
        let length = text.as_ref().map_or(0, |text| {
            let line = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            line.map_or(0, |length| length.trim().parse::<usize>().unwrap())
        });
        match (head, text) {
            (Some(end), Some(text)) if bytes.len() >= end + length => {
                came.send((text, bytes[end..end + length].to_vec())).unwrap();
                bytes.drain(..end + length);
                let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                    Content-Length: 0\r\n\r\n";
                stream.write_all(answer.as_bytes()).unwrap();
            }
            _ => match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => bytes.extend(&buffer[..count]),
            },
        }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn requests_are_spans_of_the_traces_of_their_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (came, coming) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let came = came.clone();
            std::thread::spawn(move || collect(stream.unwrap(), &came));
        }
    });
    let haul = Server::haul(&[]).env("OTEL_EXPORTER_OTLP_ENDPOINT", &url);
    let mut server = Server::of(haul.without_env(&["OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED"]));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let head = format!("POST /invocations\ntraceparent: 00-{trace}-b7ad6b7169203331-01");
    let answer = server.ask(&head, &picture());
    assert_eq!(answer.status, 200);
    server.ask("POST /invocations\ntraceparent: no trace", b"no picture");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended(), 0, "{}", server.log());
    // It has ended, so all of it has come.
    let all: Vec<(String, Vec<u8>)> = coming.try_iter().collect();
    assert!(!all.is_empty(), "{}", server.log());
    for (head, _) in &all {
        assert!(head.starts_with("post /v1/traces "), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    }
    let bytes: Vec<u8> = all.into_iter().flat_map(|(_, body)| body).collect();
    let trace: Vec<u8> =
        (0..16).map(|at| u8::from_str_radix(&trace[2 * at..2 * at + 2], 16).unwrap()).collect();
    assert!(has(&bytes, &trace), "the client's trace goes on");
    assert!(has(&bytes, &[0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]), "below its span");
    let id = answer.header("x-amzn-requestid").unwrap();
    for text in ["service.name", "haul", "POST /invocations", id] {
        assert!(has(&bytes, text.as_bytes()), "{text}");
    }
}

#[test]
fn a_collector_that_is_away_is_in_nobodys_way() {
    let haul = Server::haul(&[]).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let mut server = Server::of(haul);
    assert_eq!(server.detect().status, 200);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended(), 0, "{}", server.log());
}
