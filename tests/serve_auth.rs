//! Who may ask: bearer tokens and AWS signatures, against the real binary. What AWS's own client
//! does is in scripts/check_auth.py.

mod common;
#[path = "common/serving.rs"]
mod serving;

use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use nix::sys::signal::Signal;

use common::binary::{Haul, model};
use serving::{Answer, Server, picture, write};

const TOKEN: &str = "a-token-of-some-length";
const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A signed request, until it is sent: each test spoils one thing.
struct Signed {
    key: &'static str,
    secret: &'static str,
    region: &'static str,
    service: &'static str,
    method: &'static str,
    target: &'static str,
    time: SystemTime,
    body: Vec<u8>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Signed {
    fn new(target: &'static str) -> Signed {
        Signed {
            key: KEY,
            secret: SECRET,
            region: "eu-central-1",
            service: "sagemaker",
            method: "POST",
            target,
            time: SystemTime::now(),
            body: picture(),
            headers: Vec::new(),
        }
    }

    /// The head of the request, which `spoil` may change, and its body.
    fn head(&self) -> String {
        let identity = Credentials::new(self.key, self.secret, None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(self.time)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let given = self.headers.iter().copied().chain([("host", "localhost")]);
        let body = SignableBody::Bytes(&self.body);
        let uri = format!("http://localhost{}", self.target);
        let request = SignableRequest::new(self.method, &uri, given, body).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        let mut head = format!("{} {}", self.method, self.target);
        for (name, value) in instructions.headers().chain(self.headers.iter().copied()) {
            head.push_str(&format!("\n{name}: {value}"));
        }
        head
    }

    fn sent(&self, server: &Server) -> Answer {
        server.ask(&self.head(), &self.body)
    }
}

fn server(dir: &Path, extra: &[&str]) -> Server {
    write(&dir.join("tokens"), &format!("# ours\n{TOKEN}\n"));
    write(&dir.join("keys"), &format!("# ours\n{KEY} {SECRET}\n"));
    let (tokens, keys) = (dir.join("tokens"), dir.join("keys"));
    let flags = ["--token-file", tokens.to_str().unwrap(), "--sigv4-keys", keys.to_str().unwrap()];
    Server::start(&[&flags[..], extra].concat())
}

#[track_caller]
fn refused(answer: &Answer, kind: &str, message: &str) {
    let said = (answer.status, answer.header("x-amzn-errortype"));
    assert_eq!(said, (403, Some(kind)), "{answer:?}");
    assert!(answer.text().contains(message), "`{message}` is not in {answer:?}");
}

#[test]
fn tokens_open_all_doors_and_nothing_is_open_without_but_the_health_check() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), &[]);
    assert_eq!(server.ask("GET /ping", b"").status, 200);
    // The page has nothing of its own, and asks for the token.
    assert_eq!(server.ask("GET /", b"").status, 200);
    for path in
        ["GET /metrics", "GET /execution-parameters", "GET /status", "POST /invocations", "POST /"]
    {
        for with in [
            String::new(),
            "\nAuthorization: Bearer another-token-of-some-length".into(),
            "\nAuthorization: Bearer".into(),
            format!("\nAuthorization: Basic {TOKEN}"),
            format!("\nAuthorization: {TOKEN}"),
            format!("\nAuthorization: Bearer {TOKEN} {TOKEN}"),
            format!("\nAuthorization: Bearer {TOKEN}\nAuthorization: Bearer no"),
        ] {
            let answer = server.ask(&format!("{path}{with}"), b"");
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "unauthorized"),
                "{path}{with}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}{with}");
        }
    }
    let with = format!("Authorization: bearer {TOKEN}");
    assert_eq!(server.ask(&format!("GET /metrics\n{with}"), b"").status, 200);
    for path in ["/invocations", "/endpoints/shapes/invocations"] {
        let answer = server.ask(&format!("POST {path}\n{with}"), &picture());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // The refusal reaches also who sends much.
    let answer = server.ask("POST /endpoints/shapes/invocations", &vec![0; 50_000_000]);
    refused(&answer, "MissingAuthenticationTokenException", "Missing Authentication Token");
    assert!(!server.log().contains(TOKEN) && !server.log().contains("another-token"));
}

#[test]
fn a_signed_request_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let plain =
        server.ask(&format!("POST /invocations\nAuthorization: Bearer {TOKEN}"), &picture());
    for target in [
        "/endpoints/shapes/invocations",
        "/invocations",
        "/invocations?conf=0.25&iou=0.7&name=-",
        "/invocations?name=%2D&conf=0.25",
    ] {
        let answer = Signed::new(target).sent(&server);
        assert_eq!((answer.status, &answer.body), (200, &plain.body), "{target}: {answer:?}");
    }
    let mut get = Signed { method: "GET", body: Vec::new(), ..Signed::new("/metrics") };
    assert_eq!(get.sent(&server).status, 200);
    // A body that nobody asked for is covered, too.
    get.body = b"covered".to_vec();
    assert_eq!(get.sent(&server).status, 200);
    assert_eq!(server.ask(&get.head(), b"altered").status, 403);
    // Whatever else is signed, also what comes in another form.
    let mut more = Signed::new("/endpoints/shapes/invocations");
    more.headers = vec![("content-type", "image/jpeg"), ("x-amzn-sagemaker-inference-id", "a   b")];
    assert_eq!(more.sent(&server).status, 200);
    for (skew, late) in [(240, false), (240, true)] {
        let skew = Duration::from_secs(skew);
        let time = SystemTime::now();
        let time = if late { time - skew } else { time + skew };
        let signed = Signed { time, ..Signed::new("/endpoints/shapes/invocations") };
        assert_eq!(signed.sent(&server).status, 200);
    }
    assert!(!server.log().contains(SECRET) && !server.log().contains("Signature="));
}

#[test]
fn what_is_signed_wrongly_is_refused_as_aws_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), &[]);
    let path = "/endpoints/shapes/invocations";
    let wrong = "InvalidSignatureException";
    let differs = "signature we calculated does not match";
    let secret = Signed { secret: "another", ..Signed::new(path) };
    refused(&secret.sent(&server), wrong, differs);
    let key = Signed { key: "AKIDOTHER", ..Signed::new(path) };
    refused(&key.sent(&server), "UnrecognizedClientException", "security token");
    let service = Signed { service: "s3", ..Signed::new(path) };
    refused(&service.sent(&server), wrong, "correct service");
    for (time, message) in [
        (SystemTime::now() - Duration::from_secs(400), "Signature expired"),
        (SystemTime::now() + Duration::from_secs(400), "not yet current"),
    ] {
        refused(&Signed { time, ..Signed::new(path) }.sent(&server), wrong, message);
    }
    let good = Signed::new(path);
    let mut altered = good.body.clone();
    altered[500] ^= 1;
    refused(&server.ask(&good.head(), &altered), wrong, differs);
    refused(&server.ask(&good.head(), b""), wrong, differs);
    let spoiled = |from: &str, to: &str| {
        let head = good.head();
        assert!(head.contains(from), "{head}");
        server.ask(&head.replace(from, to), &good.body)
    };
    refused(&spoiled("POST /endpoints/shapes/", "POST /endpoints/other/"), wrong, differs);
    refused(&spoiled("invocations\n", "invocations?conf=0.9\n"), wrong, differs);
    refused(
        &spoiled("\nx-amz-date", "\nx-not-amz-date"),
        "IncompleteSignatureException",
        "X-Amz-Date",
    );
    refused(&spoiled("host;x-amz-date", "x-amz-date"), wrong, "'host'");
    refused(&spoiled("host;x-amz-date", "host"), wrong, "'x-amz-date'");
    refused(&spoiled("host;x-amz-date", "host;x-amz-date;x-other"), wrong, differs);
    refused(&spoiled("\nx-amz-date", "\nx-amz-target: a\nx-amz-date"), wrong, "'x-amz-target'");
    refused(&spoiled("Credential=", "Credentials="), "IncompleteSignatureException", "Credential");
    refused(
        &spoiled("Signature=", "Signature=,Signature="),
        "IncompleteSignatureException",
        "Signature",
    );
    refused(
        &spoiled("/aws4_request", "/aws5_request"),
        "IncompleteSignatureException",
        "aws4_request",
    );
    refused(
        &spoiled("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        "MissingAuthenticationTokenException",
        "Missing",
    );
    // On plain routes it is said plainly.
    let plain = Signed { secret: "another", ..Signed::new("/invocations") }.sent(&server);
    assert_eq!((plain.status, plain.code().as_str()), (403, "forbidden"));
    // A body without an end is not hashed for ever.
    assert!(server.log().lines().all(|line| !line.contains("panicked")), "{}", server.log());
    assert_eq!(Signed::new(path).sent(&server).status, 200);
}

#[test]
fn signatures_may_be_for_one_region_only() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), &["--sigv4-region", "eu-central-1"]);
    let path = "/endpoints/shapes/invocations";
    assert_eq!(Signed::new(path).sent(&server).status, 200);
    let other = Signed { region: "us-east-1", ..Signed::new(path) };
    refused(&other.sent(&server), "InvalidSignatureException", "valid region");
}

#[test]
fn a_signed_body_has_the_limits_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), &["--max-payload", "1MB", "--max-bodies", "1MB"]);
    let large = Signed { body: vec![0; 3_000_000], ..Signed::new("/invocations") };
    let answer = large.sent(&server);
    assert_eq!((answer.status, answer.code().as_str()), (413, "payload_too_large"));
    // Those that wait for room get it, all of them.
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(Signed::new("/invocations").sent(&server).status, 200));
        }
    });
}

#[test]
fn secrets_are_read_again_and_kept_if_the_new_ones_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = server(dir.path(), &[]);
    let with = |token: &str| {
        server.ask(&format!("GET /metrics\nAuthorization: Bearer {token}"), b"").status
    };
    assert_eq!(with(TOKEN), 200);
    write(&dir.path().join("tokens"), "short\n");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("not read again");
    let with = |token: &str| {
        server.ask(&format!("GET /metrics\nAuthorization: Bearer {token}"), b"").status
    };
    assert_eq!(with(TOKEN), 200);
    write(&dir.path().join("tokens"), "another-token-of-some-length\n");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("were read again");
    let with = |token: &str| {
        server.ask(&format!("GET /metrics\nAuthorization: Bearer {token}"), b"").status
    };
    assert_eq!((with(TOKEN), with("another-token-of-some-length")), (401, 200));
}

#[test]
fn files_of_secrets_are_checked_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (tokens, keys) = (dir.path().join("tokens"), dir.path().join("keys"));
    write(&tokens, "# nothing\n");
    write(&keys, "AKIDEXAMPLE\n");
    let serve = || Haul::new("serve").arg("--model").arg(model()).args(["--port", "0"]);
    serve().arg("--token-file").arg(&tokens).exits(2).says("there is no token in it");
    serve().arg("--sigv4-keys").arg(&keys).exits(2).says("line 1");
    // One that everybody can read is used, and said to be.
    std::fs::write(&tokens, format!("{TOKEN}\n")).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o644)).unwrap();
    let server = Server::start(&["--token-file", tokens.to_str().unwrap()]);
    assert!(server.log().contains("everybody on this machine"), "{}", server.log());
}
