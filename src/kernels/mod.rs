//! Convolution and friends, once per instruction set.
//!
//! A kernel knows no network: it is handed offsets into an arena ([`task`]) and works on them.
//! [`Kernels`] checks that every offset of a task lies within its memory, so that calling it is
//! safe whatever the numbers say: of network and kernels, only the inside of this module holds
//! `unsafe`.
//!
//! | tier | sums | elements | register block (pixels × channels) |
//! | --- | --- | --- | --- |
//! | `amx` | `tdpbf16ps`, f32 | bf16 | 32 × 32 in 4 tiles |
//! | `avx512` | FMA, f32 | f32 | 12 × 32 in 24 zmm |
//! | `avx2` | FMA, f32 | f32 | 6 × 16 in 12 ymm |
//! | `avx512bf16` | `vdpbf16ps`, f32 | bf16 | 12 × 32 in 24 zmm |
//! | `portable` | × and +, f32 | f32 | 4 × 8, left to the compiler |
//! | `reference` | as `avx2`, one at a time | both | none |
//!
//! Convolutions of 3 × 3 and stride 1 go by Winograd's scheme (`x86/winograd.rs`), with sums in
//! single precision on all tiers but `amx`, whose tiles are faster still. A [`Team`] of threads can
//! share one convolution.
//!
//! The f32 tiers sum in the same order (bias or `init` first, then K-steps as listed) with one
//! rounding per step, and share [`math::silu`] operation for operation: `avx512`, `avx2` and
//! `reference` agree bit for bit. The portable tier may round twice per step, and is a class of its
//! own; `src/kernels/tests` holds every tier that a CPU has to the reference, `tests/tiles.rs` and
//! `tests/accuracy.rs` hold AMX to it through whole networks.

mod cpu;
pub mod dense;
mod mapped;
pub mod math;
mod memory;
mod peak;
mod portable;
mod reference;
mod table;
pub mod task;
mod team;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use cpu::{Cpu, Tier};
pub use mapped::Mapped;
pub use memory::{ALIGN, Memory};
pub use peak::peak;
pub use table::Kernels;
pub use team::{Crew, Hook, Lead, Team, no_hook};
