//! From a path to a checked model.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::{Fault, ModelError};
use super::info::{Dtype, Info};
use super::{pt, safetensors, tarball};
use crate::store::one_line;
use crate::yolo::Network;

/// Checkpoints hold at most some hundred megabytes, and twice that with the optimizer's state.
pub(super) const MAX_FILE: u64 = 4 << 30;

/// A model file, read and checked.
#[derive(Clone, Debug)]
pub struct Model {
    /// The network, ready for an engine.
    pub network: Network,
    /// SHA-256 of the checkpoint, in lower-case hexadecimal: of its own bytes, also where it was in
    /// an archive, so that the same weights are the same job however they are wrapped.
    pub sha256: String,
    /// What the file says about itself.
    pub info: Info,
    /// How the file stores each tensor.
    pub dtypes: BTreeMap<String, Dtype>,
}

/// What the format readers give back.
pub(super) struct Parts {
    pub(super) format: &'static str,
    pub(super) network: Network,
    pub(super) imgsz: usize,
    pub(super) dtypes: BTreeMap<String, Dtype>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Reads the model at `path`.
///
/// # Errors
/// [`ModelError`] says whether the file could not be read, is damaged, or holds another model
/// than YOLOv8 detect.
pub fn read(path: &Path) -> Result<Model, ModelError> {
    let failed = |source| ModelError::Read { path: path.to_path_buf(), source };
    read_from(File::open(path).map_err(failed)?, path)
}

/// Reads the model in an open file; `path` serves messages only.
pub(super) fn read_from(file: File, path: &Path) -> Result<Model, ModelError> {
    let failed = |source| ModelError::Read { path: path.to_path_buf(), source };
    // Room for all of it at once; one byte more, so that the end is seen without growing.
    let size = file.metadata().map_err(failed)?.len().min(MAX_FILE) + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    match tarball::is_one(&bytes) {
        true => read_packed(bytes, path),
        false => read_plain(&bytes, path),
    }
}

/// Reads the checkpoint in an archive, whose own bytes are let go before.
fn read_packed(archive: impl AsRef<[u8]>, path: &Path) -> Result<Model, ModelError> {
    fits(archive.as_ref(), path)?;
    let found = tarball::checkpoint(archive.as_ref()).map_err(|fault| fault.at(path))?;
    drop(archive);
    let path = format!("{}: {}", path.display(), one_line(&found.name));
    read_plain(&found.bytes, Path::new(&path))
}

fn fits(bytes: &[u8], path: &Path) -> Result<(), ModelError> {
    match bytes.len() as u64 {
        0..=MAX_FILE => Ok(()),
        bytes => Err(ModelError::TooLarge { path: path.to_path_buf(), bytes, limit: MAX_FILE }),
    }
}

/// Reads a model from memory; `path` serves messages only.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8], path: &Path) -> Result<Model, ModelError> {
    match tarball::is_one(bytes) {
        true => read_packed(bytes, path),
        false => read_plain(bytes, path),
    }
}

fn read_plain(bytes: &[u8], path: &Path) -> Result<Model, ModelError> {
    fits(bytes, path)?;
    // The bytes say what a file is, its name does not count.
    let parse = || match bytes {
        [b'P', b'K', 3, 4, ..] => pt::read(bytes),
        [_, _, _, _, _, _, _, _, b'{', ..] => safetensors::read(bytes),
        other => Err(Fault::Format(relative(other))),
    };
    // The digest takes about as long as the parsing.
    let (parts, sha256) = std::thread::scope(|scope| {
        let digest = scope.spawn(|| crate::store::sha256(bytes));
        let parts = parse();
        (parts, digest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let Parts { format, network, imgsz, dtypes, metadata } = parts.map_err(|f| f.at(path))?;
    let info = Info::new(format, &network, imgsz, &dtypes, metadata);
    Ok(Model { network, sha256, info, dtypes })
}

/// Names the formats that people have at hand and that are not read.
fn relative(bytes: &[u8]) -> String {
    let found = match bytes {
        [] => "empty",
        // The old format of torch.save starts with the pickled number 0x1950a86a20f9469cfc6c.
        [0x80, 2, 0x8a, 10, 0x6c, 0xfc, ..] => {
            "a .pt in torch's old (non-zip) format (load and save it with a newer torch)"
        }
        [0x80, 2..=5, ..] => "a bare pickle (not a torch checkpoint)",
        [b'H', b'A', b'U', b'L', b'P', b'A', b'C', b'K', ..] => {
            "a pack of weights, which `haul run` takes (here name the checkpoint it was made from)"
        }
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file",
        [0x1f, 0x8b, ..] => "a gzip file",
        [0x08, _, 0x12 | 0x1a, ..] => "an ONNX model (use the .pt it was exported from)",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', ..] => {
            "a Git LFS pointer (fetch the file with `git lfs pull`)"
        }
        [b'<', ..] => "an HTML or XML page (a failed download?)",
        _ if tarball::is_one(bytes) => "a tar archive",
        _ => "of an unknown format",
    };
    found.into()
}
