//! With the feature `cuda`, compiles our GPU kernels to PTX, which drivers compile for the GPU they find.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, process};

const KERNELS: &str = "src/engine/candle/cuda/kernels.cu";

/// Older GPUs need CUDA_COMPUTE_CAP; nothing in the kernels is only for newer ones.
const CAPABILITY: u32 = 80;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo:rerun-if-changed={KERNELS}");
        for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        if let Err(reason) = compile() {
            eprintln!("cannot compile {KERNELS}: {reason}");
            process::exit(1);
        }
    }
}

fn compile() -> Result<(), String> {
    let asked = env::var("CUDA_COMPUTE_CAP").ok().and_then(|cap| cap.parse().ok());
    let capability = asked.map_or(CAPABILITY, |cap: u32| cap.min(CAPABILITY));
    println!("cargo:rustc-env=HAUL_CUDA_CAPABILITY={capability}");
    let out = env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?;
    let nvcc = nvcc();
    let run = Command::new(&nvcc)
        .args(["-ptx", "-O3", "-std=c++17"])
        // Decoding has the bits of the CPU's, which rounds after each operation.
        .arg("--fmad=false")
        .arg(format!("-arch=compute_{capability}"))
        .arg(KERNELS)
        .arg("-o")
        .arg(Path::new(&out).join("kernels.ptx"))
        .output()
        .map_err(|error| {
            format!(
                "{}: {error} (the feature `cuda` needs CUDA's compiler: set NVCC or CUDA_HOME; \
                 docs/cuda.md says how to get one without a GPU)",
                nvcc.display()
            )
        })?;
    match run.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&run.stderr).into_owned()),
    }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let found = homes.map(|home| Path::new(&home).join("bin/nvcc")).find(|nvcc| nvcc.exists());
    found.unwrap_or_else(|| "nvcc".into())
}
