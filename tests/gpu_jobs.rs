//! Whole jobs on emulated GPUs: the same bytes however they are run, killed and gone on with, and
//! what becomes of them when a GPU gives out.

mod common;
#[path = "common/emulated.rs"]
mod emulated;
#[path = "common/serving.rs"]
mod serving;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::binary::{Haul, Ran, by_image, concatenated, folder, lines, parts, success, testdata};
use emulated::OnEmulatedGpus as _;
use serde_json::Value;
use serving::Server;

/// Many mini-batches, and batches that do not divide them.
const SMALL: [&str; 4] = ["--max-images", "5", "--batch", "3"];

fn class(output: &Path) -> String {
    let job: Value =
        serde_json::from_slice(&fs::read(output.join("_manifest/job.json")).unwrap()).unwrap();
    job["fingerprint"]["numeric_class"].as_str().unwrap().to_owned()
}

fn run(input: &Path, output: &Path) -> Haul {
    Haul::run(input, output).args(SMALL).emulated()
}

#[test]
fn bytes_do_not_depend_on_workers_gpus_order_or_recordings() {
    let photos = folder(47);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    run(photos.path(), &whole).exits(0).says("cuda:0");
    let first = concatenated(&whole);
    assert_eq!(lines(&whole).len(), 47);
    assert!(class(&whole).starts_with("cuda-f16-b3-"), "{}", class(&whole));
    for (number, (workers, device, graphs)) in [
        ("1", "cuda:0", "1"),
        ("4", "cuda:0", "0"),
        ("2", "cuda:1", "1"),
        ("3", "cuda:0,1", "1"),
        ("4", "cuda:1,0", "0"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = root.path().join(format!("{number}"));
        let ran = run(photos.path(), &out)
            .args(["--workers", workers, "--device", device])
            .env("HAUL_CUDA_GRAPHS", graphs)
            .env("HAUL_EMULATED_GPUS", "2")
            .env("HAUL_EMULATED_SEED", &number.to_string());
        ran.exits(0);
        assert_eq!(class(&out), class(&whole));
        assert!(concatenated(&out) == first, "{workers} workers, {device}, graphs {graphs}");
    }
}

/// That a GPU finds what the CPU finds, on pictures with something in them.
#[test]
fn precisions_and_libraries_find_the_same_objects() {
    let root = tempfile::tempdir().unwrap();
    let pictures = testdata("pictures");
    let on = |name: &str| {
        let out = root.path().join(name);
        (Haul::run(&pictures, &out).args(["--imgsz", "320"]).emulated(), out)
    };
    let (cpu, reference) = on("cpu");
    cpu.args(["--device", "cpu", "--precision", "f32"]).exits(0);
    let theirs = by_image(&reference);
    for (name, precision, dnn, score, side) in [
        ("f32", "f32", "1", 1e-4, 0.05),
        ("f32 by products", "f32", "0", 1e-4, 0.05),
        ("f16", "f16", "1", 0.02, 3.0),
        ("f16 by products", "f16", "0", 0.02, 3.0),
        ("bf16", "bf16", "1", 0.1, 12.0),
    ] {
        let (haul, out) = on(name);
        let haul = haul.env("HAUL_EMULATED_CUDNN", dnn).args(["--batch", "4"]);
        let ran = haul.args(["--precision", precision]).exits(0);
        let said = ran.stderr.contains("there is no cuDNN");
        assert_eq!(said, dnn == "0", "{}", ran.stderr);
        let mut boxes = 0;
        for (image, line) in by_image(&out) {
            let found = |line: &haul::job::Line| line.detections.clone().unwrap_or_default();
            let (ours, theirs) = (&found(&line), &found(&theirs[&image]));
            for (a, b) in [(ours, theirs), (theirs, ours)] {
                for one in a.iter().filter(|one| one.score > 0.4) {
                    let same = b.iter().any(|other| {
                        let near = one.bbox.iter().zip(&other.bbox);
                        let near = near.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                        other.class == one.class
                            && (one.score - other.score).abs() <= score
                            && near <= side
                    });
                    assert!(same, "{name}, {image}: {one:?} has no partner in {b:?}");
                    boxes += 1;
                }
            }
        }
        assert!(boxes > 100, "{name}: {boxes} boxes");
    }
    let classes = ["f16", "f16 by products"].map(|name| class(&root.path().join(name)));
    assert_ne!(classes[0], classes[1], "another library is another class");
}

/// Mini-batches that are committed.
fn records(output: &Path) -> usize {
    fs::read_dir(output.join("_manifest/done")).map_or(0, Iterator::count)
}

#[test]
fn sigkill_loses_nothing() {
    let photos = folder(61);
    let root = tempfile::tempdir().unwrap();
    let (whole, out) = (root.path().join("whole"), root.path().join("killed"));
    run(photos.path(), &whole).exits(0);
    let mut kills = 0;
    for millis in [20, 150, 300, 350, 400, 450, 500, 600] {
        let before = records(&out);
        let mut child = run(photos.path(), &out).spawn();
        std::thread::sleep(Duration::from_millis(millis));
        // Half of them not before something was committed, however slow this machine is.
        while kills % 2 == 1 && records(&out) == before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 3, "only {kills} kills came before the end");
    run(photos.path(), &out).exits(0);
    assert!(parts(&out) == parts(&whole), "the parts differ");
    assert_eq!(success(&out)["parts_sha256"], success(&whole)["parts_sha256"]);
    Haul::new("verify").arg(&out).emulated().exits(0);
}

#[test]
fn a_batch_is_halved_until_it_fits_and_then_belongs_to_the_job() {
    let photos = folder(9);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let with = |memory: &str| {
        Haul::run(photos.path(), &out).env("HAUL_EMULATED_MEMORY", memory).emulated()
    };
    // Not even one picture.
    with("100000").exits(2).says("is out of memory");
    assert!(!out.join("_manifest/job.json").exists());
    with("3000000").exits(0);
    let batch: usize = class(&out).split('-').nth(2).unwrap()[1..].parse().unwrap();
    assert!((1..32).contains(&batch), "{}", class(&out));
    // The job goes on with it where there is more, and not with less.
    fs::remove_file(out.join("_SUCCESS.json")).unwrap();
    fs::remove_file(out.join("_manifest/done/00000000.json")).unwrap();
    fs::remove_file(out.join("part-00000000.jsonl")).unwrap();
    with("100000").exits(75).says("is out of memory");
    with("1000000000").exits(0);
    Haul::new("verify").arg(&out).emulated().exits(0);
}

#[test]
fn a_gpu_that_fails_costs_nothing_but_the_run() {
    let photos = folder(47);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    run(photos.path(), &whole).exits(0);
    // In the warm-up, and at different moments of the work.
    for fault in ["launch:3", "copy:5", "launch:1000", "copy:170", "launch:2000", "copy:200"] {
        let out = root.path().join(fault);
        let failing = run(photos.path(), &out).env("HAUL_CUDA_GRAPHS", "0");
        let ran: Ran = failing.env("HAUL_EMULATED_FAULT", fault).exits(1);
        assert!(ran.stderr.contains("ILLEGAL_ADDRESS"), "{fault}: {}", ran.stderr);
        let done = records(&out);
        println!("{fault}: {done} mini-batches were done");
        run(photos.path(), &out).exits(0);
        assert!(parts(&out) == parts(&whole), "{fault}: the parts differ");
        Haul::new("verify").arg(&out).emulated().exits(0);
    }
}

#[test]
fn with_two_gpus_one_may_fail() {
    let photos = folder(47);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    run(photos.path(), &whole).exits(0);
    let whole_bytes = concatenated(&whole);
    let mut failed = 0;
    // The second has some 270 launches before the work, so these come in it, if at all.
    for fault in ["launch:300@1", "launch:400@1", "launch:500@1", "launch:600@1"] {
        let out = root.path().join(fault);
        // Batches that touch more mini-batches than faults may come in a row.
        let ran = Haul::run(photos.path(), &out)
            .args(["--max-images", "1", "--batch", "3", "--device", "cuda:0,1", "-v"])
            .env("HAUL_EMULATED_GPUS", "2")
            .env("HAUL_CUDA_GRAPHS", "0")
            .env("HAUL_EMULATED_FAULT", fault)
            .emulated()
            .exits(0);
        let said = ran.stderr.matches("device 1 failed").count();
        println!("{fault}: {said} tries failed");
        failed += said;
        assert!(concatenated(&out) == whole_bytes, "{fault}: the lines differ");
    }
    assert!(failed > 5, "only {failed} tries failed");
}

#[test]
fn places_of_a_batch_that_disagree_are_not_used() {
    let photos = folder(20);
    let root = tempfile::tempdir().unwrap();
    let (sound, out) = (root.path().join("sound"), root.path().join("out"));
    run(photos.path(), &sound).exits(0);
    let odd = || run(photos.path(), &out).env("HAUL_EMULATED_POSITION", "1");
    odd().exits(0);
    assert_ne!(class(&sound), class(&out), "another algorithm is another class");
    let again = root.path().join("again");
    let other = run(photos.path(), &again).env("HAUL_EMULATED_POSITION", "1");
    other.args(["--workers", "1"]).env("HAUL_EMULATED_SEED", "9").exits(0);
    assert!(concatenated(&out) == concatenated(&again));
    // Begun with the sound one, it does not go on with the other.
    fs::remove_file(sound.join("_SUCCESS.json")).unwrap();
    let mixed = run(photos.path(), &sound).env("HAUL_EMULATED_POSITION", "1");
    mixed.exits(2).says(&class(&sound));
}

#[test]
fn a_job_of_a_gpu_is_not_gone_on_with_on_a_cpu() {
    let photos = folder(11);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    run(photos.path(), &out).exits(0);
    fs::remove_file(out.join("_SUCCESS.json")).unwrap();
    let class = class(&out);
    let elsewhere = Haul::new("resume").arg(&out).without_cuda();
    elsewhere.exits(2).says(&class).says("the driver finds no GPU");
    run(photos.path(), &out).args(["--device", "cpu"]).exits(2).says("numeric_class was");
    run(photos.path(), &out).args(["--precision", "f32"]).exits(2).says("numeric_class was");
    Haul::new("resume").arg(&out).emulated().exits(0);
    // Once it is finished, nothing is left to be computed anywhere.
    Haul::new("resume").arg(&out).without_cuda().exits(0).says("is finished");
}

#[test]
fn a_retry_begun_on_a_cpu_goes_on_where_there_is_a_gpu() {
    let photos = folder(2);
    fs::write(photos.path().join("bad.jpg"), b"no picture").unwrap();
    let root = tempfile::tempdir().unwrap();
    let (out, again) = (root.path().join("out"), root.path().join("again"));
    run(photos.path(), &out).args(["--device", "cuda:0"]).exits(3);
    let retry = Haul::new("retry").arg(&out).arg("-o").arg(&again).without_cuda();
    retry.exits(3).says("not on cuda:0, as before: ");
    let on_a_cpu = class(&again);
    assert!(!on_a_cpu.starts_with("cuda-"), "{on_a_cpu}");
    fs::remove_file(again.join("_SUCCESS.json")).unwrap();
    let resume = Haul::new("resume").arg(&again).emulated();
    resume.exits(3).says(&format!("not on cuda:0, as before: the job's class is `{on_a_cpu}`"));
}

#[test]
fn a_gpu_that_cannot_be_opened_is_no_reason_to_stop_unless_it_is_named() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let (auto, named) = (root.path().join("auto"), root.path().join("named"));
    let libraries = root.path().join("libraries");
    let broken =
        |out: &Path| Haul::run(photos.path(), out).args(SMALL).emulated_without_blas(&libraries);
    broken(&auto).exits(0).says("on the CPU: ");
    assert!(!class(&auto).starts_with("cuda-"), "{}", class(&auto));
    broken(&named).args(["--device", "cuda:0"]).exits(2).says("cannot open it");
    let precise = broken(&named).args(["--precision", "f16"]);
    precise.exits(2).says("--precision f16 is for GPUs").says("(on the CPU: ");
}

/// All devices of a server fail, and a later request has it load the model anew. Here that fails, for
/// an emulated GPU stays broken for as long as its process lives; the CPU does not stand in for it.
#[test]
fn a_server_without_its_gpu_says_try_again_and_tries_again_itself() {
    let haul = Server::haul(&["--batch", "2"]).env("HAUL_CUDA_GRAPHS", "0").emulated();
    let mut server = Server::of(haul.env("HAUL_EMULATED_FAULT", "launch:1200"));
    let picture = fs::read(testdata("forms/jpeg-444.jpg")).unwrap();
    let ask = |server: &Server| server.ask("POST /invocations", &picture);
    let mut answer = ask(&server);
    for _ in 0..100 {
        if answer.status != 200 {
            break;
        }
        answer = ask(&server);
    }
    // The one that was lost with it, and the next one.
    for answer in [answer, ask(&server)] {
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"), "{answer:?}");
        assert_eq!(answer.header("Retry-After"), Some("5"));
    }
    assert_eq!(server.ask("GET /ping", b"").status, 503);
    assert!(!server.log().contains("the model cannot be loaded"), "{}", server.log());
    std::thread::sleep(Duration::from_secs(6));
    let answer = ask(&server);
    assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"), "{answer:?}");
    server.wait_for_log("the model cannot be loaded");
}

#[test]
fn a_server_gives_the_bytes_of_a_job() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let picture = testdata("pictures/pond.jpg");
    Haul::run(&picture, &out).args(["--imgsz", "320", "--batch", "2"]).emulated().exits(0);
    let line = String::from_utf8(concatenated(&out)).unwrap();
    let server = Server::of(Server::haul(&["--imgsz", "320", "--batch", "2"]).emulated());
    let answer = server.ask("POST /invocations", &fs::read(&picture).unwrap());
    let ours = answer.text().replacen("\"image\":\"-\"", "\"image\":\"pond.jpg\"", 1);
    assert_eq!(ours.trim_end(), line.trim_end());
}
