//! Packs: weights as kernels read them, with everything else that a run asks of a model.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `HAULPACK` |
//! | 4 | version of this format, low byte first |
//! | 4 | length of the header's text, low byte first |
//! | 32 | SHA-256 of the 16 bytes before and of everything after it up to the weights |
//! | | the header's text, JSON: [`PackHeader`] |
//! | | zeros up to a multiple of 4096 |
//! | | the weights, to the end of the file |
//!
//! What the weights are good for (form and rules) is text here; only the engine understands it.
//! Opening a pack reads its header and nothing else: that the weights are those that were packed
//! is for [`Pack::verify`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::ModelError;
use super::info::Info;
use super::read::Model;
use crate::store::{sha256, sha256_of};
use crate::yolo::{Act, Graph, yolov8};

const MAGIC: [u8; 8] = *b"HAULPACK";
const VERSION: u32 = 1;
/// Magic, version, length; then the digest.
const BEFORE_DIGEST: usize = 16;
const PREFIX: usize = BEFORE_DIGEST + 32;
/// YOLOv8x has some 20 KiB; a thousand long labels are not much more.
const MAX_TEXT: usize = 8 << 20;
const PAGE: usize = 4096;

/// What a pack says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackHeader {
    /// The form of the weights, as the engine names it.
    pub form: String,
    /// The rules they were packed by, as the engine names them.
    pub rules: String,
    /// The checkpoint they come from.
    pub source: PackSource,
    /// The packed weights.
    pub weights: PackedWeights,
    /// What the checkpoint says about itself.
    pub info: Info,
    /// Name, output and input channels and side of the kernel of each convolution.
    pub convs: Vec<(String, usize, usize, usize)>,
}

/// A checkpoint's file when it was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackSource {
    /// Its size.
    pub bytes: u64,
    /// Its modification time in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Its digest.
    pub sha256: String,
}

/// The second half of a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedWeights {
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
}

/// An open pack with a sound header.
#[derive(Debug)]
pub struct Pack {
    /// What it says.
    pub header: PackHeader,
    /// The network's wiring, made anew from the header and checked as that of a checkpoint is.
    pub graph: Graph,
    /// The file.
    pub file: File,
    /// Where the weights begin in it.
    pub offset: usize,
}

/// A pack of `model` as a file: the same bytes whenever it is asked for the same.
///
/// # Errors
/// When the header cannot be written, which would be a bug.
pub fn write_pack(
    model: &Model,
    (bytes, mtime_ns): (u64, i64),
    (form, rules): (&str, &str),
    weights: &[u8],
) -> serde_json::Result<Vec<u8>> {
    let convs = model.network.graph.convs();
    let header = PackHeader {
        form: form.to_owned(),
        rules: rules.to_owned(),
        source: PackSource { bytes, mtime_ns, sha256: model.sha256.clone() },
        weights: PackedWeights { bytes: weights.len() as u64, sha256: sha256(weights) },
        info: model.info.clone(),
        convs: convs.map(|c| (c.name.clone(), c.cout, c.cin, c.kernel)).collect(),
    };
    let text = serde_json::to_vec(&header)?;
    let offset = weights_at(text.len());
    let mut file = Vec::with_capacity(offset + weights.len());
    file.extend(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend((text.len() as u32).to_le_bytes());
    file.extend([0; PREFIX - BEFORE_DIGEST]);
    file.extend(text);
    file.resize(offset, 0);
    let digest = digest(&file[..BEFORE_DIGEST], &file[PREFIX..]);
    file[BEFORE_DIGEST..PREFIX].copy_from_slice(&digest);
    file.extend(weights);
    Ok(file)
}

fn weights_at(text: usize) -> usize {
    (PREFIX + text).next_multiple_of(PAGE)
}

fn digest(before: &[u8], after: &[u8]) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    Sha256::new().chain_update(before).chain_update(after).finalize().into()
}

/// Opens the pack at `path`; `None` if what is there does not begin like one.
///
/// # Errors
/// [`ModelError::Read`] when it cannot be read, [`ModelError::Pack`] when its header is not sound
/// or the file not as long as that says.
pub fn open_pack(path: &Path) -> Result<Option<Pack>, ModelError> {
    let failed = |source| ModelError::Read { path: path.to_path_buf(), source };
    // A pipe has no second beginning for those who read checkpoints.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(None);
    }
    pack_in(File::open(path).map_err(failed)?, path)
}

/// The same of an open file; `path` serves messages only.
pub(super) fn pack_in(mut file: File, path: &Path) -> Result<Option<Pack>, ModelError> {
    let failed = |source| ModelError::Read { path: path.to_path_buf(), source };
    let wrong = |what: String| ModelError::Pack { path: path.to_path_buf(), what };
    let mut prefix = Vec::with_capacity(PREFIX);
    file.by_ref().take(PREFIX as u64).read_to_end(&mut prefix).map_err(failed)?;
    if !prefix.starts_with(&MAGIC) {
        return Ok(None);
    }
    let short = || wrong("it ends within its header (is the file complete?)".into());
    let prefix: [u8; PREFIX] = prefix.try_into().map_err(|_| short())?;
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| prefix[at + i]));
    if number(8) != VERSION {
        let version = number(8);
        return Err(wrong(format!("it is of format {version}, and this haul reads {VERSION}")));
    }
    let len = number(12) as usize;
    if len > MAX_TEXT {
        return Err(wrong(format!("its header claims {len} bytes")));
    }
    let offset = weights_at(len);
    let mut rest = Vec::new();
    file.by_ref().take((offset - PREFIX) as u64).read_to_end(&mut rest).map_err(failed)?;
    if rest.len() < offset - PREFIX {
        return Err(short());
    }
    if digest(&prefix[..BEFORE_DIGEST], &rest) != prefix[BEFORE_DIGEST..] {
        return Err(wrong("its header is damaged (the digest differs)".into()));
    }
    let header: PackHeader = serde_json::from_slice(&rest[..len])
        .map_err(|error| wrong(format!("its header makes no sense: {error}")))?;
    let found = file.metadata().map_err(failed)?.len();
    if (offset as u64).checked_add(header.weights.bytes) != Some(found) {
        let bytes = header.weights.bytes;
        return Err(wrong(format!(
            "it has {found} bytes where its header has {offset} and its weights {bytes} (is the \
             file complete?)"
        )));
    }
    let graph = graph(&header).map_err(wrong)?;
    Ok(Some(Pack { header, graph, file, offset }))
}

/// Wires the network up from the shapes in the header.
fn graph(header: &PackHeader) -> Result<Graph, String> {
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, cout, cin, kernel) in &header.convs {
        // Which of the two it has, the wiring knows.
        for weight in ["conv.weight", "weight"] {
            shapes.insert(format!("{name}.{weight}"), vec![*cout, *cin, *kernel, *kernel]);
        }
        for vector in ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bias"] {
            shapes.insert(format!("{name}.{vector}"), vec![*cout]);
        }
    }
    let info = &header.info;
    let act_of = |name: &str| -> Act { *info.act_overrides.get(name).unwrap_or(&info.act) };
    let graph = yolov8(|name| shapes.get(name).map(Vec::as_slice), act_of)
        .map_err(|error| format!("its header describes no YOLOv8: {error}"))?;
    if graph.classes != info.names.len() || graph.convs().count() != header.convs.len() {
        return Err("its header contradicts itself".into());
    }
    Ok(graph)
}

impl Pack {
    /// Reads the weights and compares their digest.
    ///
    /// # Errors
    /// [`ModelError::Read`] when they cannot be read, [`ModelError::Pack`] when they are not those
    /// that were packed.
    pub fn verify(&self, path: &Path) -> Result<(), ModelError> {
        let mut file = &self.file;
        let start = SeekFrom::Start(self.offset as u64);
        let found = file.seek(start).and_then(|_| sha256_of(file));
        let found =
            found.map_err(|source| ModelError::Read { path: path.to_path_buf(), source })?;
        if found == self.header.weights.sha256 {
            return Ok(());
        }
        let what = "its weights are damaged (the digest differs)".into();
        Err(ModelError::Pack { path: path.to_path_buf(), what })
    }
}
