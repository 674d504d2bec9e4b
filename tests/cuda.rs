//! Jobs on GPUs that are emulated: what haul asks of CUDA, in which order, and what becomes of a job
//! when a GPU gives out. tests/cuda/emulator says what that proves and what it does not.

mod common;
#[path = "common/emulated.rs"]
mod emulated;

use std::path::Path;

use common::binary::{Haul, by_image, concatenated, folder, parts};
use emulated::OnEmulatedGpus as _;

fn doctor(haul: Haul) -> serde_json::Value {
    serde_json::from_str(&haul.arg("--json").exits(0).stdout).unwrap()
}

/// The numeric class of a job.
fn class(output: &Path) -> String {
    let job = std::fs::read(output.join("_manifest/job.json")).unwrap();
    let job: serde_json::Value = serde_json::from_slice(&job).unwrap();
    job["fingerprint"]["numeric_class"].as_str().unwrap().to_owned()
}

#[test]
fn doctor_names_the_gpus() {
    let two = || Haul::new("doctor").emulated().env("HAUL_EMULATED_GPUS", "2");
    let memory = 3u64 << 30;
    let said = doctor(two().env("HAUL_EMULATED_MEMORY", &memory.to_string()));
    let gpus = said["gpus"].as_array().unwrap();
    assert_eq!(gpus.len(), 2, "{said}");
    for (number, gpu) in gpus.iter().enumerate() {
        assert_eq!(gpu["device"], format!("cuda:{number}"));
        assert_eq!(gpu["name"], "Emulated GPU");
        assert_eq!(gpu["capability"], "9.0");
        assert_eq!(gpu["memory_bytes"], memory);
        assert_eq!(gpu["memory_free_bytes"], memory);
    }
    assert!(said["no_gpus"].is_null(), "{said}");
    let text = two().exits(0).stdout;
    assert!(text.contains("cuda:1") && text.contains("Emulated GPU"), "{text}");
}

#[test]
fn doctor_says_why_there_is_none() {
    let said = doctor(Haul::new("doctor").without_cuda());
    assert_eq!(said["gpus"], serde_json::json!([]));
    assert!(said["no_gpus"].as_str().unwrap().contains("finds no GPU"), "{said}");
}

#[test]
fn without_a_gpu_a_job_runs_on_the_cpu_and_says_so() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let (auto, cpu) = (root.path().join("auto"), root.path().join("cpu"));
    let ran = Haul::run(photos.path(), &auto).without_cuda().exits(0);
    ran.says("on the CPU: the driver finds no GPU");
    Haul::run(photos.path(), &cpu).without_cuda().args(["--device", "cpu"]).exits(0);
    assert_eq!(class(&auto), class(&cpu));
    assert_eq!(concatenated(&auto), concatenated(&cpu));
    let asked = Haul::run(photos.path(), &root.path().join("gpu")).without_cuda();
    asked.args(["--device", "cuda:0"]).exits(2).says("finds no GPU");
}

#[test]
fn a_gpu_that_is_not_there_is_not_replaced() {
    let photos = folder(1);
    let root = tempfile::tempdir().unwrap();
    let asked = Haul::run(photos.path(), &root.path().join("out")).emulated();
    asked.args(["--device", "cuda:1"]).exits(2).says("there is no cuda:1; the last one is cuda:0");
}

/// A job on one emulated GPU in single precision, in batches of four and mini-batches of seven.
fn on_gpu(photos: &Path, output: &Path) -> Haul {
    let run = Haul::run(photos, output).emulated();
    let job = ["--device", "cuda:0", "--precision", "f32", "--batch", "4", "--max-images", "7"];
    run.args(job)
}

#[test]
fn bytes_do_not_depend_on_when_things_happen() {
    let photos = folder(14);
    let root = tempfile::tempdir().unwrap();
    let mut first = None;
    let ways = [
        ("HAUL_EMULATED_SEED", "0"),
        ("HAUL_EMULATED_SEED", "7"),
        ("HAUL_EMULATED_SEED", "8"),
        // Launches one by one, without cuDNN, and with one whose results depend on the place.
        ("HAUL_CUDA_GRAPHS", "0"),
        ("HAUL_EMULATED_CUDNN", "0"),
        ("HAUL_EMULATED_POSITION", "1"),
    ];
    for (name, value) in ways {
        let out = root.path().join(format!("{name}-{value}"));
        on_gpu(photos.path(), &out).env(name, value).exits(0);
        assert!(class(&out).starts_with("cuda-f32-b4-"), "{}", class(&out));
        // The emulator's sums are the same whoever computes them, so all of these are.
        let bytes = concatenated(&out);
        assert_eq!(first.get_or_insert_with(|| bytes.clone()), &bytes, "{name}={value}");
    }
    // The CPU rounds elsewhere, and finds the same.
    let cpu = root.path().join("cpu");
    Haul::run(photos.path(), &cpu).args(["--device", "cpu", "--precision", "f32"]).exits(0);
    let (cpu, gpu) = (by_image(&cpu), by_image(&root.path().join("HAUL_EMULATED_SEED-0")));
    assert!(!cpu.is_empty() && cpu.keys().eq(gpu.keys()));
    let count = |line: &haul::job::Line| line.detections.as_ref().unwrap().len();
    for (image, line) in &cpu {
        assert_eq!(count(line), count(&gpu[image]), "{image}");
    }
    assert!(cpu.values().map(count).sum::<usize>() > 0, "nothing to compare");
}

#[test]
fn a_gpu_that_fails_loses_nothing() {
    const PICTURES: u64 = 40;
    let (photos, one) = (folder(PICTURES as usize), folder(1));
    let root = tempfile::tempdir().unwrap();
    let (whole, broken) = (root.path().join("whole"), root.path().join("broken"));
    // Launched one by one, and all of one shape: each batch has as many launches as any other.
    let on_gpu = |photos: &Path, out: &Path| {
        on_gpu(photos, out).env("HAUL_CUDA_GRAPHS", "0").arg("--square")
    };
    // The launches and the batches of a job.
    let counted = |photos: &Path, out: &Path| {
        let counts = root.path().join("counts");
        let ran = on_gpu(photos, out).env("HAUL_EMULATED_REPORT", counts.to_str().unwrap());
        let ran = ran.arg("--json").exits(0);
        let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let text = std::fs::read_to_string(&counts).unwrap();
        std::fs::remove_file(counts).unwrap();
        let launches = text.split(['=', ' ']).nth(1).unwrap().parse::<u64>().unwrap();
        (launches, said["devices"]["batches"].as_u64().unwrap())
    };
    let (launches, batches) = counted(photos.path(), &whole);
    let (first, alone) = counted(one.path(), &root.path().join("one"));
    assert_eq!(alone, 1);
    let each = (launches - first) / (batches - 1);
    assert_eq!((launches - first) % (batches - 1), 0, "{launches} {first} {batches}");
    // How full batches are is a matter of timing: there may be as few as this.
    let least = PICTURES / 4;
    for batch in [least / 2, least - 2] {
        let fault = format!("launch:{}", first + batch * each + 3);
        let ran = on_gpu(photos.path(), &broken).env("HAUL_EMULATED_FAULT", &fault).ran();
        assert_ne!(ran.code, 0, "{fault}: {}", ran.stderr);
        assert!(ran.says("ILLEGAL_ADDRESS").code > 0, "ended by a signal");
        // Something was committed before, and is kept.
        assert!(!parts(&broken).is_empty(), "{fault}");
        on_gpu(photos.path(), &broken).exits(0);
        assert_eq!(concatenated(&broken), concatenated(&whole), "{fault}");
        std::fs::remove_dir_all(&broken).unwrap();
    }
}
