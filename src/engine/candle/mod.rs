//! The network executed with candle's own operations: f32 on the CPU, one picture at a time.
//!
//! The readable reference. It does nothing clever: each step of the graph is one line of
//! candle, batch normalisation is folded into the convolutions at load, and a value is dropped
//! after its last reader.
//!
//! With the feature `cuda`, `cuda` runs networks on GPUs that candle opens: in batches, by cuDNN and
//! kernels of our own, and held to this reference by tests.

mod class;
#[cfg(any(test, feature = "cuda"))]
pub mod cuda;
mod executor;
mod memory;
mod worker;

pub use executor::Candle;
