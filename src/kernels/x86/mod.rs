//! The kernels for x86-64.

#![allow(
    clippy::needless_range_loop,
    reason = "a loop over numbers says which register is meant, and is unrolled as it stands"
)]

pub(super) mod amx;
pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod winograd;
