//! Shared by the integration tests.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod binary;
pub(crate) mod checkpoint;
pub(crate) mod formula;

use std::path::PathBuf;

/// The folder with real weights, pictures and goldens, which are not part of the repository.
/// Without it a test says so and passes.
pub(crate) fn parity_data() -> Option<PathBuf> {
    let folder = std::env::var_os("HAUL_PARITY_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: HAUL_PARITY_DATA is not set");
    }
    folder
}
