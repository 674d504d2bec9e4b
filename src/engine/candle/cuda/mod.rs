//! The network on NVIDIA GPUs, in batches.

mod arena;
mod layers;
mod weights;
