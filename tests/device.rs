//! Where a network runs, as people ask for it and hear of it, on machines without a GPU: a build with
//! the feature `cuda` works there too, and says so.

mod common;
#[path = "common/serving.rs"]
mod serving;

use std::fs;
use std::path::Path;

use common::binary::{Haul, Ran, concatenated, folder, model, parts, success, testdata};
use serde_json::Value;
use serving::Server;

/// Whether the GPUs of this machine can be used, so that little of this holds.
fn has_gpu() -> bool {
    let any = haul::engine::gpus().is_ok();
    if any {
        println!("skipped: there is a GPU here");
    }
    any
}

/// How often something was said.
#[track_caller]
fn said(ran: &Ran, text: &str) -> usize {
    ran.stderr.matches(text).count()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_cannot_be_is_exit_2_and_named() {
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out);
    run().args(["--device", "gpu"]).exits(2).says("--device: `gpu` is no device (it is auto, cpu");
    run().args(["--device", "cuda:1,1"]).exits(2).says("names cuda:1 twice");
    run().args(["--batch", "0"]).exits(2).says("--batch is 0; it lies between 1 and 1024");
    run().args(["--batch", "1025"]).exits(2).says("--batch is 1025");
    run().args(["--precision", "f8"]).exits(2).says("it is auto, f32, bf16 or f16");
    let on_a_cpu = run().args(["--precision", "f16", "--device", "cpu"]);
    on_a_cpu.exits(2).says("--precision f16 is for GPUs: a CPU computes in f32 or bf16");
    // Servers are told by variables, too.
    for command in ["serve", "lambda"] {
        let server = || Haul::new(command).arg("--model").arg(model());
        let variable = server().env("HAUL_DEVICE", "tpu:0");
        variable.exits(2).says("--device: `tpu:0` is no device");
        server().env("HAUL_BATCH", "9999").exits(2).says("--batch is 9999");
    }
    let pack = Haul::new("model").arg("pack").arg(model()).args(["--precision", "f16"]);
    pack.exits(2).says("a pack is for CPUs (auto, f32 or bf16)");
    let bench = || Haul::new("bench").arg("--model").arg(model()).arg("--images");
    let bench = || bench().arg(testdata("pictures/sea.jpg"));
    bench().args(["--batch", "0"]).exits(2).says("--batch is 0");
    bench()
        .args(["--device", "cuda:0", "--per-layer"])
        .exits(2)
        .says("--per-layer is for the kernels of CPUs, and this is for cuda:0");
    assert!(!out.exists());
}

#[test]
fn a_gpu_that_is_not_there_is_exit_2() {
    if has_gpu() {
        return;
    }
    let reason = haul::engine::gpus().unwrap_err();
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let expected = format!("--device cuda:0,1: {reason}");
    let asked = ["--device", "cuda:0,1"];
    Haul::run(photos.path(), &out).args(asked).exits(2).says(&expected);
    let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path());
    plan.arg("-o").arg(&out).arg("--dry-run").args(asked).exits(2).says(&expected);
    Haul::new("serve").arg("-m").arg(model()).args(asked).exits(2).says(&expected);
    let bench = Haul::new("bench").arg("-m").arg(model()).arg("--images");
    bench.arg(testdata("pictures/sea.jpg")).args(asked).exits(2).says(&expected);
    assert!(!out.exists());
}

#[test]
fn a_batch_is_left_aside_by_a_cpu_which_is_said_once() {
    let photos = folder(5);
    let root = tempfile::tempdir().unwrap();
    let out = |name: &str| root.path().join(name);
    let on_a_cpu = |name: &str| Haul::run(photos.path(), &out(name)).args(["--device", "cpu"]);
    let note = "--batch 8 is for GPUs: a CPU computes picture by picture";
    let ran = on_a_cpu("with").args(["--batch", "8", "--json"]).exits(0);
    assert_eq!(said(&ran, note), 1, "{}", ran.stderr);
    assert_eq!(json(&ran.stdout)["device"], "cpu");
    assert!(ran.stderr.contains(" 2 workers, class "), "{}", ran.stderr);
    let ran = on_a_cpu("without").exits(0);
    assert_eq!(said(&ran, "--batch") + said(&ran, "on the CPU"), 0, "{}", ran.stderr);
    assert!(parts(&out("with")) == parts(&out("without")), "a batch made a difference");
    // Neither is in the fingerprint.
    on_a_cpu("with").exits(0).says("is finished");
    Haul::run(photos.path(), &out("with")).exits(0).says("is finished");

    let flags = ["--device", "cpu", "--batch", "8"];
    let server = Server::start(&flags);
    let notes = server.events("note");
    assert_eq!(notes.iter().filter(|event| event.to_string().contains(note)).count(), 1);
    assert_eq!(server.events("ready")[0]["device"], "cpu");
    let status = json(&server.ask("GET /status", b"").text());
    assert_eq!(status["model"]["device"], "cpu");
    assert_eq!(status["model"]["notes"], serde_json::json!([note]));

    let bench = Haul::new("bench").arg("--model").arg(model()).args(["--imgsz", "64"]).args(flags);
    let bench = bench.arg("--images").arg(testdata("pictures/sea.jpg"));
    let ran = bench.args(["--seconds", "0.1", "--only", "model", "--json"]).exits(0);
    assert_eq!(said(&ran, note), 1, "{}", ran.stderr);
    let report = json(&ran.stdout);
    assert_eq!((&report["device"], &report["batch"]), (&"cpu".into(), &Value::Null));
    assert_eq!(report["notes"], serde_json::json!([note]));
    assert!(report["warm_up_seconds"].is_null());
}

#[test]
fn a_job_file_says_where_it_runs() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let job = root.path().join("job.toml");
    let write = |more: &str| {
        let (model, photos) = (model(), photos.path());
        let text = format!("model = {model:?}\ninput = {photos:?}\noutput = 'out'\nimgsz = 64\n");
        fs::write(&job, text + more).unwrap();
    };
    write("");
    let config = |flags: &[&str]| {
        Haul::new("run").arg(&job).args(flags).arg("--print-config").exits(0).stdout
    };
    // What nobody asks for is not in a job either, so that versions without devices can read it.
    assert!(!config(&[]).contains("device = ") && !config(&[]).contains("batch = "));
    write("device = 'cpu'\nbatch = 16\n");
    let both = config(&["--batch", "4"]);
    assert!(both.contains("device = \"cpu\"") && both.contains("batch = 4"), "{both}");
    Haul::new("run").arg(&job).exits(0).says("--batch 16 is for GPUs");
    assert_eq!(success(&root.path().join("out"))["ok"], 3);
    write("device = 'cuda0'\n");
    Haul::new("run").arg(&job).exits(2).says("`cuda0` is no device");
    write("batch = 'all'\n");
    Haul::new("run").arg(&job).exits(2).says("batch");
}

/// A job of which the last mini-batch is missing, with some words of `job.json` changed: as if it had
/// been made on another machine, and killed there.
fn unfinished(out: &Path, words: &[(&str, &str)]) {
    let last = parts(out).len() - 1;
    fs::remove_file(out.join("_SUCCESS.json")).unwrap();
    fs::remove_file(out.join(format!("_manifest/done/{last:08}.json"))).unwrap();
    fs::remove_file(out.join(format!("part-{last:08}.jsonl"))).unwrap();
    rewrite(out, words);
}

fn rewrite(out: &Path, words: &[(&str, &str)]) {
    let job = out.join("_manifest/job.json");
    let text = fs::read_to_string(&job).unwrap();
    let changed = words.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to)
    });
    fs::write(&job, changed).unwrap();
}

/// The numeric class of a job.
fn class(out: &Path) -> String {
    let job = json(&fs::read_to_string(out.join("_manifest/job.json")).unwrap());
    job["fingerprint"]["numeric_class"].as_str().unwrap().to_owned()
}

#[test]
fn a_job_goes_on_where_its_class_is() {
    let photos = folder(8);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--max-images", "3", "--device", "cpu"]);
    run().exits(0);
    let (whole, ours) = (concatenated(&out), class(&out));
    let compact = fs::read_to_string(out.join("_manifest/job.json")).unwrap();
    let device = match compact.contains(r#""device": "cpu""#) {
        true => [r#""device": "cpu""#, r#""device": "cuda:99""#],
        false => [r#""device":"cpu""#, r#""device":"cuda:99""#],
    };
    let resume = || Haul::new("resume").arg(&out);

    // It ran on a GPU that is not here, in a class that is: that is where it ran, not what it is.
    unfinished(&out, &[(device[0], device[1])]);
    resume().args(["--device", "cuda:99"]).exits(2).says("--device cuda:99: ");
    resume().args(["--device", "abacus"]).exits(2).says("`abacus` is no device");
    let ran = resume().exits(0);
    assert_eq!(said(&ran, "not on cuda:99, as before: "), 1, "{}", ran.stderr);
    assert!(concatenated(&out) == whole, "it was gone on with in another way");
    unfinished(&out, &[]);
    let ran = resume().args(["--device", "cpu"]).exits(0);
    assert_eq!(said(&ran, "as before"), 0, "{}", ran.stderr);
    assert!(concatenated(&out) == whole, "it was gone on with in another way");
    unfinished(&out, &[]);
    // The same command obeys its own flag, and not what the job was begun with.
    let ran = run().exits(0);
    assert_eq!(said(&ran, "as before"), 0, "{}", ran.stderr);

    // In a class of GPUs it goes on there or not at all.
    let theirs = "cuda-f16-b32-0123456789abcdef";
    unfinished(&out, &[(&format!("\"{ours}\""), &format!("\"{theirs}\""))]);
    let before = parts(&out);
    let expected = format!("numeric_class was \"{theirs}\", is \"{ours}\"");
    resume().args(["--device", "cpu"]).exits(2).says(&expected);
    if !has_gpu() {
        let expected = format!("the job's numeric class is `{theirs}`");
        resume().exits(2).says(&expected).says(&haul::engine::gpus().unwrap_err());
        let same = Haul::run(photos.path(), &out).args(["--max-images", "3"]);
        same.exits(2).says(&expected);
    }
    assert!(parts(&out) == before);
}

#[test]
fn a_retry_runs_where_the_job_did_if_that_is_here() {
    let photos = folder(2);
    fs::write(photos.path().join("bad.jpg"), b"no picture").unwrap();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let retry = |name: &str| Haul::new("retry").arg(&out).arg("-o").arg(root.path().join(name));
    Haul::run(photos.path(), &out).args(["--device", "cpu", "--batch", "2"]).exits(3);
    let ran = retry("there").exits(3);
    assert_eq!(said(&ran, "on the CPU: "), 0, "{}", ran.stderr);
    assert_eq!(said(&ran, "--batch 2 is for GPUs"), 1, "{}", ran.stderr);
    rewrite(&out, &[("\"cpu\"", "\"cuda:99\"")]);
    retry("elsewhere").exits(3).says("not on cuda:99, as before: ");
    retry("asked").args(["--device", "cuda:99"]).exits(2).says("--device cuda:99: ");
    let ran = retry("told").args(["--device", "cpu"]).exits(3);
    assert_eq!(said(&ran, "as before"), 0, "{}", ran.stderr);
}

#[test]
fn the_doctor_says_which_gpus_there_are() {
    let built_in = cfg!(feature = "cuda");
    let version = Haul::new("--version").exits(0).stdout;
    assert_eq!(version.trim_end().ends_with("+cuda"), built_in, "{version}");
    let found = json(&Haul::new("doctor").arg("--json").exits(0).stdout);
    let text = Haul::new("doctor").exits(0).stdout;
    assert_eq!(found["cuda"], built_in);
    match haul::engine::gpus() {
        Err(reason) => {
            assert_eq!(
                (&found["gpus"], &found["no_gpus"]),
                (&Value::Array(vec![]), &reason[..].into())
            );
            assert!(found["gpu_precisions"].as_object().unwrap().is_empty());
            assert!(text.contains(&format!("gpus       none: {reason}\n")), "{text}");
            assert!(text.contains("f16          no: --precision f16 is for GPUs"), "{text}");
        }
        Ok(gpus) => {
            assert_eq!(found["gpus"].as_array().unwrap().len(), gpus.len());
            assert_eq!(found["gpus"][0]["name"], gpus[0].name.as_str());
            assert_eq!(found["gpu_precisions"]["auto"], "f16");
            assert!(text.contains(&gpus[0].name) && text.contains("; on a GPU f16"), "{text}");
        }
    }
}

/// What only a build that could use GPUs has to say.
#[test]
fn without_a_gpu_auto_is_the_cpu_and_says_so_where_gpus_were_hoped_for() {
    if has_gpu() {
        return;
    }
    let hoped = usize::from(cfg!(feature = "cuda"));
    let photos = folder(6);
    let root = tempfile::tempdir().unwrap();
    let out = |name: &str| root.path().join(name);
    let said = |ran: &Ran| said(ran, "on the CPU: ");
    for (name, flags, times) in [
        ("auto", &["--device", "auto"][..], hoped),
        ("silent", &[], hoped),
        ("cpu", &["--device", "cpu"], 0),
        ("quiet", &["--quiet"], 0),
    ] {
        let ran = Haul::run(photos.path(), &out(name)).args(flags).exits(0);
        assert_eq!(said(&ran), times, "{name}: {}", ran.stderr);
        assert!(parts(&out(name)) == parts(&out("auto")), "{name} gave other bytes");
    }
    // A tier that is forced is a CPU that is asked for, and so is one that a job has.
    let forced = Haul::run(photos.path(), &out("forced")).env("HAUL_CPU_TIER", "portable").exits(0);
    assert_eq!(said(&forced), 0, "{}", forced.stderr);
    unfinished(&out("auto"), &[]);
    assert_eq!(said(&Haul::new("resume").arg(out("auto")).exits(0)), 0);
    let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path());
    let plan = plan.arg("-o").arg(out("plan")).args(["--imgsz", "64", "--dry-run"]).exits(0);
    assert_eq!(said(&plan), hoped, "{}", plan.stderr);
    let server = Server::start(&[]);
    let notes = server.events("note");
    let notes = notes.iter().filter(|note| note.to_string().contains("on the CPU: "));
    assert_eq!(notes.count(), hoped);
}
