//! What happens when haul fails or dies at a place of our choice: see `haul::failpoint`.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Output;

use common::binary::{
    Haul, by_image, concatenated, folder, lines, parts, success, testdata, wait_for,
};

const SIGABRT: i32 = 6;

fn run(photos: &Path, out: &Path) -> Haul {
    Haul::run(photos, out).args(["--max-images", "4"])
}

fn dies(haul: Haul, points: &str) -> Output {
    haul.env("FAILPOINTS", points).spawn().wait_with_output().unwrap()
}

fn strikes(out: &Path) -> String {
    fs::read_to_string(out.join("_manifest/strikes.jsonl")).unwrap_or_default()
}

/// What the files under `_manifest/failed` say.
fn failures(out: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(out.join("_manifest/failed")) else { return Vec::new() };
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn a_kill_at_any_place_loses_nothing() {
    // 70 mini-batches of one picture: two segments.
    let photos = folder(70);
    let root = tempfile::tempdir().unwrap();
    let run = |out: &Path| Haul::run(photos.path(), out).args(["--max-images", "1"]);
    let whole = root.path().join("whole");
    run(&whole).exits(0);
    for (place, passes) in [
        ("after_job", 0),
        ("after_segment", 0),
        ("after_segment", 1),
        ("after_plan", 0),
        ("fetch", 0),
        ("fetch", 33),
        ("decode", 0),
        ("decode", 33),
        ("infer", 0),
        ("infer", 69),
        ("commit", 0),
        ("commit", 69),
        ("before_part", 0),
        ("before_part", 5),
        ("after_part", 0),
        ("after_part", 69),
        ("after_record", 0),
        ("after_record", 69),
        ("before_success", 0),
        ("after_success", 0),
    ] {
        let out = root.path().join(format!("{place}-{passes}"));
        let died = dies(run(&out), &format!("{place}={passes}*off->return(SIGKILL)"));
        assert_eq!(died.status.signal(), Some(9), "{place} {passes}: {died:?}");
        let so_far = if place == "after_success" { 0 } else { 75 };
        Haul::new("status").arg(&out).exits(so_far);
        Haul::new("verify").arg(&out).exits(so_far);
        assert_eq!(strikes(&out), "", "{place} {passes}");
        run(&out).exits(0);
        assert!(parts(&out) == parts(&whole), "{place} {passes}: the parts differ");
        for field in ["planned", "ok", "failed", "parts", "plan_sha256", "parts_sha256"] {
            assert_eq!(success(&out)[field], success(&whole)[field], "{place} {passes}: {field}");
        }
        Haul::new("verify").arg(&out).exits(0);
    }
}

/// Runs with a picture that kills its worker until that comes to an end.
fn poisoned(photos: &Path, out: &Path, how: &str, subject: &str, signal: i32) {
    let points = format!("decode=return({how}@{subject})");
    for start in 1..=2 {
        let died = dies(run(photos, out), &points);
        let said = String::from_utf8_lossy(&died.stderr);
        assert_eq!(died.status.signal(), Some(signal), "{how}, start {start}: {said}");
        assert!(said.contains("a worker dies of SIG") && said.contains(subject), "{how}: {said}");
        assert_eq!(said.contains("has overflowed its stack"), how == "overflow", "{said}");
        let struck = strikes(out);
        assert_eq!(struck.lines().count(), start, "{how}: {struck}");
        assert!(struck.lines().all(|line| line.contains(subject)), "{how}: {struck}");
        Haul::new("status").arg(out).exits(75);
        Haul::new("verify").arg(out).exits(75);
    }
    run(photos, out).env("FAILPOINTS", &points).exits(3).says("1 × quarantined");
    Haul::new("verify").arg(out).exits(3);
    // It stays what it is, whatever would become of the picture now.
    run(photos, out).exits(3);
}

#[test]
fn a_picture_that_kills_is_left_out_after_two_starts() {
    let photos = folder(20);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    run(photos.path(), &whole).exits(0);
    let expected = by_image(&whole);
    for (how, signal) in
        [("SIGSEGV", 11), ("SIGBUS", 7), ("SIGILL", 4), ("abort", SIGABRT), ("overflow", SIGABRT)]
    {
        let out = root.path().join(how);
        poisoned(photos.path(), &out, how, "00007.", signal);
        let mut lines = by_image(&out);
        let line = lines.insert("1/00007.png".to_owned(), expected["1/00007.png"].clone());
        let error = line.unwrap().error.unwrap();
        assert_eq!((&*error.code, &*error.stage), ("quarantined", "fetch"));
        assert_eq!(lines, expected, "{how}: the other lines differ");
    }
}

#[test]
fn a_name_that_is_no_text_is_struck_as_well() {
    let photos = folder(6);
    let root = tempfile::tempdir().unwrap();
    for name in [&b"0/bad-\xff.jpg"[..], b"0/bad-\xfe.jpg"] {
        fs::copy(testdata("forms/jpeg-444.jpg"), photos.path().join(OsStr::from_bytes(name)))
            .unwrap();
    }
    let out = root.path().join("out");
    // "0/bad-\xff.jpg" in base64; the other one looks the same as text.
    poisoned(photos.path(), &out, "abort", "MC9iYWQt/y5qcGc=", SIGABRT);
    let failed: Vec<_> = lines(&out).into_iter().filter(|line| line.error.is_some()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].image_b64.as_deref(), Some("MC9iYWQt/y5qcGc="));
}

#[test]
fn a_signal_from_elsewhere_strikes_nobody() {
    let photos = folder(12);
    let root = tempfile::tempdir().unwrap();
    for signal in [11, SIGABRT] {
        let out = root.path().join(signal.to_string());
        let run = run(photos.path(), &out).args(["--workers", "1"]);
        // Four pictures are done; then the worker sleeps at work on the fifth.
        let points = "decode=4*off->sleep(600000)";
        let mut child = run.env("FAILPOINTS", points).spawn();
        wait_for(&out.join("_manifest/done/00000000.json"), &mut child);
        let tasks = format!("/proc/{}/task", child.id());
        let worker = fs::read_dir(tasks).unwrap().map(|task| task.unwrap()).find(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "worker-0\n")
        });
        let thread: i32 = worker.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let process = i32::try_from(child.id()).unwrap();
        // SAFETY: it takes three numbers, and the process is our own child.
        let code = unsafe { nix::libc::syscall(nix::libc::SYS_tgkill, process, thread, signal) };
        assert_eq!(code, 0);
        let died = child.wait_with_output().unwrap();
        assert_eq!(died.status.signal(), Some(signal), "{died:?}");
        assert_eq!(strikes(&out), "");
        Haul::new("resume").arg(&out).exits(0);
    }
}

#[test]
fn a_panic_fails_the_mini_batch_and_is_tried_again() {
    let photos = folder(12);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    run(photos.path(), &whole).exits(0);

    let once = root.path().join("once");
    run(photos.path(), &once).env("FAILPOINTS", "infer=1*panic").exits(0);
    assert!(concatenated(&once) == concatenated(&whole));
    assert!(failures(&once)[0].contains("a worker panicked: failpoint infer"), "{once:?}");

    let always = root.path().join("always");
    let points = "infer=6*off->panic";
    run(photos.path(), &always).env("FAILPOINTS", points).exits(1).says("failpoint infer");
    assert!(!always.join("_SUCCESS.json").exists());
    assert!(failures(&always).iter().all(|text| text.contains("a worker panicked")));
    Haul::new("status").arg(&always).exits(75);
    run(photos.path(), &always).exits(0);
    assert!(concatenated(&always) == concatenated(&whole));
    assert_eq!(strikes(&always), "", "a panic is no crash");

    // A decoder's panic is its picture's error, and nobody else's.
    let decoder = root.path().join("decoder");
    run(photos.path(), &decoder).env("FAILPOINTS", "decode=1*panic").exits(3);
    assert_eq!(success(&decoder)["failed"], 1);
    let failed = lines(&decoder).into_iter().find_map(|line| line.error).unwrap();
    assert_eq!(failed.code, "internal");
}

#[test]
fn a_fault_at_any_place_is_told_and_the_same_command_goes_on() {
    let photos = folder(12);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    run(photos.path(), &whole).exits(0);
    for place in [
        "after_job",
        "after_segment",
        "after_plan",
        "commit",
        "before_part",
        "after_part",
        "after_record",
        "before_success",
        "after_success",
        "fetch",
        "infer",
    ] {
        let out = root.path().join(place);
        let points = format!("{place}=return(on fire)");
        run(photos.path(), &out).env("FAILPOINTS", &points).exits(1).says("on fire");
        run(photos.path(), &out).exits(0);
        assert!(concatenated(&out) == concatenated(&whole), "{place}");
        Haul::new("verify").arg(&out).exits(0);
    }
    // One that passes is tried again in the same run.
    let out = root.path().join("once");
    run(photos.path(), &out).env("FAILPOINTS", "fetch=1*return(on fire)").exits(0);
    assert!(failures(&out)[0].contains("on fire"));
    assert!(concatenated(&out) == concatenated(&whole));
}

#[test]
fn a_retry_that_was_killed_while_it_was_planned_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for number in 0..70 {
        fs::write(photos.join(format!("{number:02}\n.jpg")), b"no picture").unwrap();
    }
    let (out, again) = (root.path().join("out"), root.path().join("again"));
    let flags = ["--max-images", "1", "--max-failures", "100%"];
    Haul::run(&photos, &out).args(flags).exits(3);
    let retry = || Haul::new("retry").arg(&out).arg("--output").arg(&again);
    let died = dies(retry(), "after_segment=return(SIGKILL)");
    assert_eq!(died.status.signal(), Some(9), "{died:?}");
    // The rest of the plan comes after the keys of its first segment.
    retry().exits(3);
    assert!(parts(&again) == parts(&out));
}
