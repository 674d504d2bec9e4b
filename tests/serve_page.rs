//! The page and what it asks for, without a browser; `scripts/check_page.py` has one.

mod common;
#[path = "common/served.rs"]
mod served;

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::binary::testdata;
use served::Served;
use sha2::{Digest as _, Sha256};

#[test]
fn the_page_may_run_its_own_script_and_nothing_else() {
    let served = Served::start(&["--workers", "1"]);
    let reply = served.get("/");
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    let policy = reply.header("content-security-policy").unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    let page = String::from_utf8(reply.body).unwrap();
    for tag in ["script", "style"] {
        let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap();
        let (text, _) = rest.split_once(&format!("</{tag}>")).unwrap();
        let digest = STANDARD.encode(Sha256::digest(text.as_bytes()));
        assert!(policy.contains(&format!("{tag}-src 'sha256-{digest}'")), "{tag}: {policy}");
    }
    served.stop();
}

#[test]
fn the_status_says_how_it_is_and_what_has_come() {
    let served = Served::start(&["--workers", "2", "--conf", "0.3", "--max-payload", "100000"]);
    let status = served.get("/status");
    assert_eq!(status.header("cache-control"), Some("no-store"));
    let status = status.json();
    assert_eq!(status["endpoint"], "shapes");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let model = &status["model"];
    assert_eq!((&model["state"], &model["imgsz"]), (&"ready".into(), &64.into()));
    assert_eq!((&model["workers"], &model["conf"]), (&2.into(), &0.3.into()));
    assert!(model["labels"].as_array().unwrap().contains(&"balloon".into()), "{model}");
    assert_eq!(status["limits"]["payload_bytes"], 100_000);
    assert_eq!(status["real_time"]["invocations"], 0);

    let picture = fs::read(testdata("pictures/pond.jpg")).unwrap();
    let reply = served.post("/invocations", &[], &picture);
    assert_eq!(reply.status, 200);
    let timing = reply.header("server-timing").unwrap();
    let stages: Vec<(&str, f64)> = timing
        .split(", ")
        .map(|stage| stage.split_once(";dur=").unwrap())
        .map(|(name, time)| (name, time.parse().unwrap()))
        .collect();
    let names: Vec<&str> = stages.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["decode", "letterbox", "infer", "boxes", "draw"]);
    assert!(stages[2].1 > 0.0 && stages[4].1 == 0.0, "{timing}");
    assert_eq!(served.post("/endpoints/shapes/invocations", &[], b"This is a text.").status, 424);

    let seen = served.get("/status").json()["real_time"].clone();
    assert_eq!((&seen["invocations"], &seen["answers"]), (&2.into(), &1.into()));
    assert_eq!((&seen["errors_4xx"], &seen["errors_5xx"]), (&1.into(), &0.into()));
    let milliseconds: f64 = stages.iter().map(|(_, time)| time).sum();
    let counted = seen["model_seconds"].as_f64().unwrap() * 1e3;
    assert!((counted - milliseconds).abs() < 0.01, "{counted} is not {milliseconds}");
    served.stop();
}
