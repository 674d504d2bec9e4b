//! What clients do to a server, and that it is there for the next one.

mod common;
#[path = "common/serving.rs"]
mod serving;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use common::binary::{Haul, model, testdata};
use serving::{Answer, Server, picture, request, until_closed};

/// Waits until something holds; fails if it never does.
#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// That a server is as it was: it answers the same, has all its workers, and nothing is left of
/// those who came.
struct Well {
    answer: Vec<u8>,
    workers: f64,
    resident: u64,
    files: usize,
}

impl Well {
    fn of(server: &Server) -> Well {
        for _ in 0..10 {
            server.detect();
        }
        let answer = server.detect();
        assert_eq!(answer.status, 200, "{answer:?}");
        let workers = server.metric("haul_workers");
        assert_eq!(workers, 2.0);
        let (resident, files) = (server.resident(), server.open_files());
        Well { answer: answer.body, workers, resident, files }
    }

    #[track_caller]
    fn still(&self, server: &Server) {
        let answer = server.detect();
        assert_eq!((answer.status, &answer.body), (200, &self.answer));
        assert_eq!(server.metric("haul_workers"), self.workers);
        until("no request is in", || server.metric("haul_concurrent_requests") == 0.0);
        until("no worker is busy", || server.metric("haul_workers_busy") == 0.0);
        until("connections are gone", || server.open_files() <= self.files + 2);
        let grown = server.resident().saturating_sub(self.resident);
        assert!(grown < 192 << 20, "it is larger by {} MiB", grown >> 20);
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}

#[test]
fn requests_that_are_wrong_are_told_why() {
    let server = Server::start(&["--max-payload", "1MB"]);
    let well = Well::of(&server);
    let json = "POST /invocations\nContent-Type: application/json";
    let long = format!("POST /invocations?name={}", "a".repeat(10_000));
    for (head, body, status, code) in [
        ("GET /nothing", "", 404, "not_found"),
        ("GET /../../etc/passwd", "", 404, "not_found"),
        ("DELETE /invocations", "", 405, "method_not_allowed"),
        (json, "{", 400, "bad_request"),
        (json, "[]", 400, "bad_request"),
        (json, "", 400, "bad_request"),
        (json, "{\"bytes\": \"%%%\"}", 400, "bad_request"),
        (json, "{\"bytes\": \"\", \"location\": \"a\"}", 400, "bad_request"),
        (json, "{\"byte\": \"\"}", 400, "bad_request"),
        ("POST /invocations\nContent-Type: text/csv", "1,2", 415, "unsupported_media_type"),
        ("POST /invocations\nAccept: video/mp4", "x", 406, "not_acceptable"),
        ("POST /invocations\nAccept: ;;;", "x", 400, "bad_request"),
        ("POST /invocations?conf=2", "x", 400, "bad_request"),
        ("POST /invocations?conf=much", "x", 400, "bad_request"),
        ("POST /invocations?confidence=0.5", "x", 400, "bad_request"),
        ("POST /invocations\nX-Haul-Max-Det: -1", "x", 400, "bad_request"),
        (&long, "x", 414, "uri_too_long"),
    ] {
        let answer = server.ask(head, body.as_bytes());
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{head}: {answer:?}");
        assert!(answer.header("x-amzn-requestid").is_some(), "{head}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{head}");
    }
    // Bodies nest as deep as they like.
    let deep = [b"{\"bytes\":".as_slice(), &vec![b'['; 900_000]].concat();
    assert_eq!(server.ask(json, &deep).status, 400);
    well.still(&server);
}

#[test]
fn clients_of_sagemaker_are_told_in_its_words() {
    let server = Server::start(&["--max-payload", "1MB"]);
    let large = vec![0; 2_000_000];
    for (head, body, status, kind) in [
        ("POST /endpoints/other/invocations", picture(), 400, "ValidationError"),
        ("POST /endpoints/shapes/nothing", picture(), 404, "UnknownOperationException"),
        ("GET /endpoints/shapes/invocations", Vec::new(), 405, "UnknownOperationException"),
        ("POST /endpoints/shapes/invocations", b"no picture".to_vec(), 424, "ModelError"),
        ("POST /endpoints/shapes/invocations", large, 400, "ValidationError"),
    ] {
        let answer = server.ask(head, &body);
        let said = (answer.status, answer.header("x-amzn-errortype"));
        assert_eq!(said, (status, Some(kind)), "{head}: {answer:?}");
        assert!(answer.text().contains("\"Message\""), "{answer:?}");
    }
}

#[test]
fn locations_do_not_leave_their_roots() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside.jpg"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("inside.jpg"), picture()).unwrap();
    std::fs::write(&outside, picture()).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link.jpg")).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
    let server = Server::start(&["--root", root.to_str().unwrap()]);
    let ask = |location: &str| {
        let body = serde_json::json!({ "location": location }).to_string();
        server.ask("POST /invocations\nContent-Type: application/json", body.as_bytes())
    };
    let inside = ask(root.join("inside.jpg").to_str().unwrap());
    assert_eq!(inside.status, 200, "{inside:?}");
    let root = root.to_str().unwrap();
    for location in [
        outside.to_str().unwrap().to_owned(),
        format!("{root}/../outside.jpg"),
        format!("{root}/link.jpg"),
        format!("{root}/up/outside.jpg"),
        format!("{root}/./../outside.jpg"),
        "../outside.jpg".to_owned(),
        "/etc/passwd".to_owned(),
        "/proc/self/environ".to_owned(),
        format!("file://{}", outside.display()),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "s3://not-allowed/outside.jpg".to_owned(),
        format!("{root}/inside.jpg\0"),
        root.to_owned(),
        String::new(),
    ] {
        let answer = ask(&location);
        assert!((400..500).contains(&answer.status), "`{location}`: {answer:?}");
        assert!(!answer.text().contains("detections"), "`{location}`: {answer:?}");
    }
    let without = Server::start(&[]);
    let body = serde_json::json!({ "location": format!("{root}/inside.jpg") }).to_string();
    let json = "POST /invocations\nContent-Type: application/json";
    assert_eq!(without.ask(json, body.as_bytes()).status, 403);
}

#[test]
fn headers_are_bounded_in_number_and_size() {
    let server = Server::start(&[]);
    let well = Well::of(&server);
    let many: String = (0..150).map(|i| format!("\nX-Number-{i}: {i}")).collect();
    assert_eq!(server.ask(&format!("GET /ping{many}"), b"").status, 431);
    let large = format!("GET /ping\nX-Large: {}", "a".repeat(65_530));
    let answers = server.raw(&request(&large, b""));
    assert!(answers.iter().all(|answer| answer.status == 431), "{answers:?}");
    let longer = format!("GET /{}", "a".repeat(60_000));
    assert_eq!(server.ask(&longer, b"").status, 414);
    let longest = format!("GET /{}", "a".repeat(1 << 20));
    let answers = server.raw(&request(&longest, b""));
    assert!(answers.iter().all(|answer| [414, 431].contains(&answer.status)), "{answers:?}");
    // Ninety are nothing.
    let some: String = (0..90).map(|i| format!("\nX-Number-{i}: {i}")).collect();
    assert_eq!(server.ask(&format!("GET /ping{some}"), b"").status, 200);
    well.still(&server);
}

#[test]
fn a_refusal_reaches_who_is_still_sending() {
    let server = Server::start(&[]);
    let well = Well::of(&server);
    let body = vec![0; 100_000_000];
    let answer = server.ask("POST /invocations", &body);
    assert_eq!((answer.status, answer.code().as_str()), (413, "payload_too_large"));
    assert_eq!(server.ask("POST /nothing", &body).status, 404);
    // Without a length it is only noticed on the way.
    let mut chunked = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for chunk in body.chunks(1 << 20).take(40) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let answers = server.raw(&chunked);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [413]);
    well.still(&server);
}

#[test]
fn who_waits_to_be_told_to_go_on_is_refused_without_a_body() {
    let server = Server::start(&[]);
    let head = "POST /invocations HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
    let mut stream = server.connect();
    stream.write_all(format!("{head}Content-Length: 100000000\r\n\r\n").as_bytes()).unwrap();
    let answers = Answer::all(&until_closed(stream));
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [413]);
    // And who is not refused is told to.
    let body = picture();
    let mut stream = server.connect();
    let head = format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&body).unwrap();
    assert_eq!(Answer::all(&until_closed(stream))[0].status, 200);
}

/// Sends a byte now and then until the server has had enough.
fn trickle(mut stream: TcpStream, bytes: &[u8]) -> Vec<Answer> {
    stream.set_nonblocking(true).unwrap();
    let mut came = Vec::new();
    for byte in bytes.iter().cycle() {
        std::thread::sleep(Duration::from_millis(50));
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => came.extend(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        let _ = stream.write_all(&[*byte]);
    }
    Answer::all(&came)
}

#[test]
fn the_slow_are_not_waited_for() {
    let server = Server::start(&["--client-timeout", "1s", "--idle-timeout", "2s"]);
    let well = Well::of(&server);
    std::thread::scope(|scope| {
        // Says nothing at all.
        scope.spawn(|| assert!(until_closed(server.connect()).is_empty()));
        // Headers that never end, from the first byte of a connection and after an answer.
        scope.spawn(|| assert!(trickle(server.connect(), b"GET /ping HTTP/1.1\r\nA: ").is_empty()));
        scope.spawn(|| {
            let mut stream = server.connect();
            stream.write_all(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let answers = trickle(stream, b"G");
            assert_eq!(answers.iter().map(|a| a.status).collect::<Vec<_>>(), [200]);
        });
        // Has asked, and asks nothing more.
        scope.spawn(|| {
            let mut stream = server.connect();
            stream.write_all(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            assert_eq!(Answer::all(&until_closed(stream)).len(), 1);
        });
        // Bodies that stop, that trickle, and whose chunks never end.
        for (length, trickles) in [
            ("Content-Length: 1000", false),
            ("Content-Length: 100000", true),
            ("Transfer-Encoding: chunked", true),
            ("Transfer-Encoding: chunked", false),
        ] {
            let server = &server;
            scope.spawn(move || {
                let mut stream = server.connect();
                let head =
                    format!("POST /invocations HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                let answers = match trickles {
                    true => trickle(stream, b"1\r\na\r\n"),
                    false => Answer::all(&until_closed(stream)),
                };
                assert_eq!(answers.len(), 1, "{length}: {answers:?}");
                let said = (answers[0].status, answers[0].code());
                assert_eq!(said, (408, "slow_client".to_owned()), "{length}");
                assert_eq!(answers[0].header("connection"), Some("close"));
            });
        }
    });
    well.still(&server);
}

#[test]
fn bytes_that_are_no_http_end_their_connection_only() {
    let server = Server::start(&["--client-timeout", "1s"]);
    let well = Well::of(&server);
    let hello =
        [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x00, 0x0d, 0x0a];
    let noise: Vec<u8> =
        (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [
        &hello[..],
        &noise,
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nC\0: d\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: 1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ] {
        let answers = server.raw(bytes);
        let fine = answers.iter().all(|answer| (400..500).contains(&answer.status));
        assert!(fine && answers.len() <= 1, "{:?}: {answers:?}", String::from_utf8_lossy(bytes));
    }
    well.still(&server);
}

/// What a proxy in front would take for one request must not be two here.
#[test]
fn a_request_has_one_length() {
    let server = Server::start(&["--client-timeout", "1s"]);
    let well = Well::of(&server);
    let smuggled = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        "Content-Length: 5, 6\r\n\r\n0\r\n\r\n",
        "Content-Length: +5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\n\r\n",
    ] {
        let bytes = format!("POST /invocations HTTP/1.1\r\nHost: localhost\r\n{headers}{smuggled}");
        let answers = server.raw(bytes.as_bytes());
        assert!(answers.len() <= 1, "{headers:?}: {answers:?}");
        assert!(answers.iter().all(|answer| answer.status == 400), "{headers:?}: {answers:?}");
    }
    well.still(&server);
}

#[test]
fn requests_may_follow_each_other_and_come_from_old_clients() {
    let server = Server::start(&[]);
    let well = Well::of(&server);
    let body = picture();
    let mut bytes = Vec::new();
    for _ in 0..5 {
        let length = body.len();
        let head = format!(
            "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        );
        bytes.extend(head.into_bytes());
        bytes.extend(&body);
    }
    bytes.extend(request("GET /nothing", b""));
    let answers = server.raw(&bytes);
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 404]);
    assert!(answers[..5].iter().all(|answer| answer.body == well.answer));
    let mut old = format!("POST /invocations HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len())
        .into_bytes();
    old.extend(&body);
    let answers = server.raw(&old);
    assert_eq!((answers[0].status, &answers[0].body), (200, &well.answer));
    well.still(&server);
}

#[test]
fn connections_that_are_left_open_are_in_nobodys_way() {
    let server = Server::start(&["--client-timeout", "2s"]);
    let well = Well::of(&server);
    let left: Vec<TcpStream> = (0..500)
        .map(|number| {
            let mut stream = server.connect();
            let begun: &[u8] = match number % 3 {
                0 => b"",
                1 => b"POST /invocations HTTP/1.1\r\nHo",
                _ => b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc",
            };
            stream.write_all(begun).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.ask("GET /ping", b"").status, 200);
    drop(left);
    well.still(&server);
}

#[test]
fn more_connections_than_there_may_be_wait() {
    let server = Server::start(&["--max-connections", "3", "--client-timeout", "2s"]);
    let silent: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    // Its turn comes when one of the silent ones is closed.
    assert_eq!(server.detect().status, 200);
    assert!(silent.into_iter().all(|stream| until_closed(stream).is_empty()));
}

#[test]
fn pictures_whose_clients_have_left_are_not_computed() {
    let slow = Server::haul(&["--workers", "1", "--imgsz", "480", "--precision", "f32"]).slowly();
    let server = Server::of(slow);
    let send = || {
        let mut stream = server.connect();
        stream.write_all(&request("POST /invocations", &picture())).unwrap();
        stream
    };
    let first = send();
    until("the worker is busy", || server.metric("haul_workers_busy") == 1.0);
    let leaving: Vec<TcpStream> = (0..5).map(|_| send()).collect();
    let last = send();
    until("all are in", || server.metric("haul_concurrent_requests") == 7.0);
    // The worker still has the first, or this shows nothing.
    assert_eq!(server.metric("haul_pictures_total"), 1.0);
    drop(leaving);
    until("they are out", || server.metric("haul_concurrent_requests") <= 2.0);
    for stream in [first, last] {
        assert_eq!(Answer::all(&until_closed(stream))[0].status, 200);
    }
    assert_eq!(server.metric("haul_pictures_total"), 2.0);
    let left = server.events("request").into_iter().filter(|line| line["code"] == "client_left");
    assert_eq!(left.count(), 5);
}

#[test]
fn each_request_is_a_line_of_the_log() {
    let server = Server::start(&[]);
    let head = "POST /endpoints/shapes/invocations\nX-Request-Id: ab c\n\
        X-Amzn-SageMaker-Inference-Id: mine\nAuthorization: Bearer very-secret";
    let answer = server.ask(head, &picture());
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-request-id"), Some("abc"));
    server.ask("POST /invocations", b"no picture");
    until("both are there", || server.events("request").len() == 2);
    let lines = server.events("request");
    assert_eq!(lines[0]["request_id"].as_str(), answer.header("x-amzn-requestid"));
    assert_eq!(lines[0]["client_request_id"], "abc");
    assert_eq!(lines[0]["inference_id"], "mine");
    assert_eq!(lines[0]["door"], "real_time");
    assert_eq!(lines[0]["status"], 200);
    assert_eq!(lines[0]["bytes_in"], picture().len());
    assert_eq!(lines[0]["bytes_out"], answer.body.len());
    assert!(lines[0]["model_ms"].as_f64().unwrap() > 0.0);
    assert!(lines[0]["whole_ms"].as_f64() >= lines[0]["model_ms"].as_f64());
    assert_eq!((&lines[1]["status"], &lines[1]["code"]), (&400.into(), &"not_an_image".into()));
    assert!(!server.log().contains("very-secret"));
}

#[test]
fn a_server_that_is_asked_to_stop_finishes_what_is_in() {
    let slow = Server::haul(&["--workers", "1", "--imgsz", "480", "--precision", "f32"]).slowly();
    let mut server = Server::of(slow);
    let idle = server.connect();
    let mut stream = server.connect();
    let length = picture().len();
    let head = format!(
        "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), &picture()].concat()).unwrap();
    until("the worker is busy", || server.metric("haul_workers_busy") == 1.0);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("\"message\":\"stopping\"");
    let ping = server.ask("GET /ping", b"");
    assert_eq!((ping.status, ping.code().as_str()), (503, "stopping"));
    let answers = Answer::all(&until_closed(stream));
    assert_eq!((answers[0].status, answers[0].header("connection")), (200, Some("close")));
    assert_eq!(server.ended(), 0, "{}", server.log());
    assert!(until_closed(idle).is_empty());
    until("it says so", || server.log().contains("\"message\":\"stopped\""));
}

#[test]
fn a_server_does_not_wait_for_ever_and_not_at_all_if_asked_twice() {
    let hold = |server: &Server| {
        let mut stream = server.connect();
        stream
            .write_all(
                b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
            )
            .unwrap();
        until("it is in", || server.metric("haul_concurrent_requests") == 1.0);
        stream
    };
    let mut server = Server::start(&["--grace", "300ms"]);
    let _held = hold(&server);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended(), 1, "{}", server.log());
    until("it says so", || server.log().contains("still in after the grace of 0.3 s"));
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut server = Server::start(&[]);
        let _held = hold(&server);
        server.signal(Signal::SIGTERM);
        server.wait_for_log("\"message\":\"stopping\"");
        server.signal(signal);
        assert_eq!(server.ended(), code, "{}", server.log());
    }
}

mod tls {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

    use super::*;

    /// A certificate, and its files in a folder.
    fn certificate(dir: &std::path::Path) -> rcgen::CertifiedKey<rcgen::KeyPair> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        serving::write(&dir.join("cert.pem"), &made.cert.pem());
        serving::write(&dir.join("key.pem"), &made.signing_key.serialize_pem());
        made
    }

    /// The status of `/ping`, asked by a client that trusts one certificate.
    fn ping(server: &Server, made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Result<u16, String> {
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(client, server.connect());
        stream.write_all(&request("GET /ping", b"")).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Ok(Answer::all(&bytes)[0].status)
    }

    #[test]
    fn certificates_are_read_again_and_kept_if_the_new_ones_are_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let first = certificate(dir.path());
        let flags = ["--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem")];
        let mut server = Server::start(&[&flags[..], &["--client-timeout", "1s"]].concat());
        assert_eq!(ping(&server, &first), Ok(200));
        // What is no TLS is closed, and so is what never comes.
        assert!(server.raw(&request("GET /ping", b"")).is_empty());
        assert!(until_closed(server.connect()).len() < 100);
        serving::write(&dir.path().join("key.pem"), "no key");
        server.signal(Signal::SIGHUP);
        server.wait_for_log("not read again");
        assert_eq!(ping(&server, &first), Ok(200));
        let second = certificate(dir.path());
        server.signal(Signal::SIGHUP);
        server.wait_for_log("were read again");
        assert_eq!(ping(&server, &second), Ok(200));
        assert!(ping(&server, &first).is_err());
    }

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let dir = tempfile::tempdir().unwrap();
        certificate(dir.path());
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let stranger = dir.path().join("stranger.pem");
        serving::write(&stranger, &other.signing_key.serialize_pem());
        let missing = dir.path().join("missing.pem");
        for (cert, key, named) in [
            (&missing, &key, "missing.pem"),
            (&cert, &missing, "missing.pem"),
            (&key, &key, "--tls-cert"),
            (&cert, &cert, "--tls-key"),
            (&cert, &stranger, "stranger.pem"),
        ] {
            let haul = Haul::new("serve").arg("--model").arg(model());
            let haul = haul.args(["--port", "0"]).arg("--tls-cert").arg(cert);
            haul.arg("--tls-key").arg(key).exits(2).says(named);
        }
    }
}

#[test]
fn settings_that_are_wrong_are_named() {
    let serve = || Haul::new("serve").arg("--model").arg(model()).args(["--port", "0"]);
    serve().args(["--log-level", "haul=loud"]).exits(2).says("--log-level");
    serve().args(["--log-format", "xml"]).exits(2).says("--log-format");
    serve().args(["--client-timeout", "soon"]).exits(2).says("client-timeout");
    let missing = testdata("missing.tokens");
    serve().arg("--token-file").arg(&missing).exits(2).says("missing.tokens");
    serve().arg("--sigv4-keys").arg(&missing).exits(2).says("missing.tokens");
}
