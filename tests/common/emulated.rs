//! GPUs that are emulated on the CPU: tests/cuda/emulator says what that proves and what it does not.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::binary::Haul;

/// The folder with the emulator's libraries, which are built and tested once.
pub(crate) fn emulator() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cuda/emulator.sh");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulator");
        let built = Command::new(script).arg(&out).arg("--test").output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        out
    })
}

pub(crate) trait OnEmulatedGpus {
    /// With the emulator in place of CUDA.
    fn emulated(self) -> Self;
    /// With the emulator, but for its cuBLAS: there is a GPU, and it cannot be opened. `folder` is to
    /// hold the other libraries.
    fn emulated_without_blas(self, folder: &Path) -> Self;
    /// With no CUDA at all, whatever this machine has.
    fn without_cuda(self) -> Self;
}

impl OnEmulatedGpus for Haul {
    fn emulated(self) -> Haul {
        let folder = emulator().to_str().unwrap();
        // The second is for a binary that was linked with shared libraries.
        self.env("CUDA_LIB_PATH", folder).env("LD_LIBRARY_PATH", folder)
    }

    fn emulated_without_blas(self, folder: &Path) -> Haul {
        std::fs::create_dir_all(folder).unwrap();
        for entry in std::fs::read_dir(emulator()).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            let link = folder.join(&name);
            if !name.to_str().unwrap().contains("cublas") && !link.exists() {
                std::os::unix::fs::symlink(entry.path(), link).unwrap();
            }
        }
        let folder = folder.to_str().unwrap();
        self.env("CUDA_LIB_PATH", folder).env("LD_LIBRARY_PATH", folder)
    }

    fn without_cuda(self) -> Haul {
        // It says itself that there is no GPU: no library would do, but a machine may have one.
        self.emulated().env("HAUL_EMULATED_GPUS", "0")
    }
}
