//! Whether there are GPUs here, asked in a way that costs little and cannot fail.

use std::sync::OnceLock;

use cudarc::driver::{DriverError, result, sys::CUresult};

use super::driver::describe;
use crate::engine::Gpu;

/// How many GPUs there are, or why there are none. No GPU is opened.
pub(crate) fn count() -> Result<usize, String> {
    static COUNT: OnceLock<Result<usize, String>> = OnceLock::new();
    COUNT
        .get_or_init(|| {
            let found = result::init().and_then(|()| result::device::get_count());
            match found.map_err(reason)? {
                n if n > 0 => Ok(usize::try_from(n).unwrap_or(0)),
                _ => Err(NONE.into()),
            }
        })
        .clone()
}

/// The GPUs, each of them opened to see how much of its memory is free.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    (0..count()?).map(|number| describe(number).map_err(reason)).collect()
}

const NONE: &str = "the driver finds no GPU (is one hidden by CUDA_VISIBLE_DEVICES?)";

fn reason(error: DriverError) -> String {
    match error.0 {
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "there is no NVIDIA driver (libcuda.so.1 is neither in CUDA_LIB_PATH nor where the system \
             looks)"
                .into()
        }
        CUresult::CUDA_ERROR_NO_DEVICE => NONE.into(),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the NVIDIA driver and its library are of different versions (was it updated without a \
             restart?)"
                .into()
        }
        _ => format!("the NVIDIA driver says {error}"),
    }
}
