//! The network on NVIDIA GPUs, in batches.
//!
//! candle has the GPU (its context, its stream, cuBLAS, what loads kernels); this has the network:
//! `layers` lowers the graph to convolutions and what they end with, `arena` says where tensors lie,
//! `convolution` asks cuDNN, kernels.cu does the rest, `program` is all of that for one shape of
//! batch, and `lane` runs programs with copies beside them. What decides output bytes is in the
//! numeric class: element, batch, and a digest of GPU, libraries and chosen algorithms.

mod arena;
#[cfg(feature = "cuda")]
mod convolution;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod element;
#[cfg(feature = "cuda")]
mod engine;
#[cfg(feature = "cuda")]
mod lane;
mod layers;
#[cfg(feature = "cuda")]
mod network;
#[cfg(feature = "cuda")]
mod probe;
#[cfg(feature = "cuda")]
mod program;
mod weights;

#[cfg(feature = "cuda")]
pub use engine::Cuda;
#[cfg(feature = "cuda")]
pub(crate) use probe::count;
#[cfg(feature = "cuda")]
pub use probe::gpus;

#[cfg(all(test, feature = "cuda"))]
mod tests;
