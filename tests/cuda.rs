//! Jobs on GPUs that are emulated: what haul asks of CUDA, in which order, and what becomes of a job
//! when a GPU gives out. tests/cuda/emulator says what that proves and what it does not.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::binary::{Haul, folder, success};

/// The folder with the emulator's libraries, which are built and tested once.
fn emulator() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cuda/emulator.sh");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulator");
        let built = Command::new(script).arg(&out).arg("--test").output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        out
    })
}

trait OnEmulatedGpus {
    /// With the emulator in place of CUDA.
    fn emulated(self) -> Self;
    /// With no CUDA at all, whatever this machine has.
    fn without_cuda(self) -> Self;
}

impl OnEmulatedGpus for Haul {
    fn emulated(self) -> Haul {
        let folder = emulator().to_str().unwrap();
        // The second is for a binary that was linked with shared libraries.
        self.env("CUDA_LIB_PATH", folder).env("LD_LIBRARY_PATH", folder)
    }

    fn without_cuda(self) -> Haul {
        // It says itself that there is no GPU: no library would do, but a machine may have one.
        self.emulated().env("HAUL_EMULATED_GPUS", "0")
    }
}

fn doctor(haul: Haul) -> serde_json::Value {
    serde_json::from_str(&haul.arg("--json").exits(0).stdout).unwrap()
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
    assert_eq!(success(&auto)["numeric_class"], success(&cpu)["numeric_class"]);
    assert_eq!(common::binary::concatenated(&auto), common::binary::concatenated(&cpu));
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
