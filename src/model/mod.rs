//! Reading checkpoints: Ultralytics' `.pt`, and `.safetensors` with haul's metadata, alone or in a
//! `model.tar.gz`, on this machine or in a bucket. And packs, in which an engine's own form of the
//! weights is kept beside a checkpoint.
//!
//! A `.pt` is a pickle, which is a program. It is parsed here into plain data by a small machine
//! that knows a list of names and executes none of them; see [`ModelError::Global`]. Every size
//! in a file is a claim that is checked before memory is spent on it, whoever made the file.
//!
//! Widths, depths, classes, activation and normalisation epsilon are taken from the file, and the
//! file's module tree is compared with the YOLOv8 wiring: a checkpoint that only resembles it is
//! refused by name rather than run wrongly.
//!
//! Fetches what is named and nothing that a file names; does not execute, does not know what runs
//! the network.

mod archive;
mod check;
mod error;
mod file;
mod info;
mod packed;
mod pickle;
mod pt;
mod read;
mod safetensors;
mod tarball;
mod tensors;
mod tree;

pub use error::ModelError;
pub use file::ModelFile;
pub use info::{Dtype, Info};
pub use packed::{Pack, PackHeader, PackSource, PackedWeights, open_pack, write_pack};
pub use read::{Model, read, read_bytes};
pub use safetensors::write_safetensors;
