//! Packs of weights: making them, and using the one that lies beside a checkpoint.
//!
//! A pack only saves work. It carries the digest of its checkpoint, so results and fingerprint are
//! those of the checkpoint; and one that is not exactly what would be packed now is left aside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::exit::JobError;
use crate::engine::{self, Chosen, Engine, EngineError, PackedFile, Precision};
use crate::model::{self, ModelError, ModelFile, Pack};
use crate::store::{LocalStore, S3Options, Store};

/// What names of packs end in.
const SUFFIX: &str = "haulpack";

/// A pack that was made.
#[derive(Clone, Debug)]
pub struct MadePack {
    /// Where it is.
    pub path: PathBuf,
    /// The form of its weights.
    pub form: &'static str,
    /// The numeric class of the runs that can use it.
    pub numeric_class: &'static str,
    /// Its size.
    pub bytes: usize,
}

/// Packs the checkpoint `file` for the tier that a new job of this precision would get here, and
/// publishes the result at `dest`, or beside the checkpoint, if that lies on this machine. What is
/// there is replaced; who has it mapped keeps the old one.
///
/// # Errors
/// When the checkpoint cannot be read, this CPU has no such arithmetic, or the pack cannot be
/// written.
pub fn pack_model(
    file: &Path,
    s3: &S3Options,
    precision: Precision,
    dest: Option<&Path>,
) -> Result<MadePack, JobError> {
    let usage = |error: EngineError| JobError::usage(&error);
    if precision == Precision::F16 {
        return Err(JobError::Usage(
            "--precision f16 is for GPUs, which read the checkpoint itself; a pack is for CPUs \
             (auto, f32 or bf16)"
                .into(),
        ));
    }
    let forced = engine::forced().map_err(usage)?;
    let tier = engine::choose(precision, None, forced).map_err(usage)?;
    let found = ModelFile::find(file, s3)?;
    // Nothing lies beside an object, so its pack is named itself and compared with nothing.
    let stamp = || found.local().map_or(Ok((0, 0)), stamp);
    let path = |form| match (dest, found.local()) {
        (Some(dest), _) => Ok(dest.to_owned()),
        (None, Some(file)) => Ok(beside(file, form)),
        (None, None) => Err(JobError::Usage(format!(
            "`{}` is in a bucket: say where the pack is to be (--dest FILE)",
            file.display()
        ))),
    };
    path("")?;
    let before = stamp()?;
    let model = found.read()?;
    if stamp()? != before {
        let file = file.display();
        return Err(JobError::Usage(format!("`{file}` was changed while it was read (try again)")));
    }
    let (packing, weights) = engine::packed(&model.network, tier).map_err(usage)?;
    let form = (packing.form, packing.rules.as_str());
    let bytes = model::write_pack(&model, before, form, weights.bytes())
        .map_err(|error| JobError::Internal(format!("cannot write the pack's header: {error}")))?;
    let path = path(packing.form)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (Some(name), true) = (path.file_name(), folder.is_dir()) else {
        return Err(JobError::Usage(format!("`{}` is in no folder", path.display())));
    };
    LocalStore::new(folder, ".").replace(Path::new(name), &bytes)?;
    let (form, numeric_class, bytes) = (packing.form, tier.numeric_class(), bytes.len());
    Ok(MadePack { path, form, numeric_class, bytes })
}

/// Size and modification time of a checkpoint.
fn stamp(file: &Path) -> Result<(u64, i64), JobError> {
    let metadata = std::fs::metadata(file)
        .map_err(|source| JobError::usage(&ModelError::Read { path: file.to_owned(), source }))?;
    Ok((metadata.len(), nanos(&metadata)))
}

fn nanos(metadata: &std::fs::Metadata) -> i64 {
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let since = metadata.modified().ok().and_then(since).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Where the pack of a checkpoint lies: `yolov8n.pt` → `yolov8n.pt.f32-winograd.haulpack`.
fn beside(file: &Path, form: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{form}.{SUFFIX}"));
    PathBuf::from(name)
}

/// A model whose weights need no more work.
pub(super) struct Ready {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) sha256: String,
    pub(super) labels: Vec<String>,
    pub(super) imgsz: usize,
}

/// The model from a pack, if `file` is one or has one beside it that fits. Says in `notes` which one
/// is used, or why one is not.
///
/// # Errors
/// When `file` itself is a pack and of no use here. A pack that merely lies there is no error.
pub(super) fn load(
    file: &ModelFile,
    chosen: &Chosen,
    notes: &mut Vec<String>,
) -> Result<Option<Ready>, JobError> {
    if let Some(pack) = file.open_pack()? {
        let ready = match chosen {
            Chosen::Kernels(tier) => map(&pack, *tier).map_err(|error| error.to_string()),
            Chosen::Candle => Err("the job was begun with candle, which reads no packs".into()),
            Chosen::Gpus(_) => Err("it is for CPUs, and this runs on a GPU (--device)".into()),
        };
        return ready.map(Some).map_err(|reason| {
            JobError::Usage(format!(
                "the pack `{}` cannot be used: {reason} (name the checkpoint, or a pack that \
                 `haul model pack` made with this --precision on such a CPU)",
                file.given().display()
            ))
        });
    }
    let Some(file) = file.local() else { return Ok(None) };
    let &Chosen::Kernels(tier) = chosen else { return Ok(None) };
    let path = beside(file, engine::form(tier));
    if !path.exists() {
        return Ok(None);
    }
    let ready = match model::open_pack(&path) {
        Err(ModelError::Pack { what, .. }) => Err(what),
        Err(error) => Err(error.to_string()),
        Ok(None) => Err("it is no pack".into()),
        Ok(Some(pack)) => {
            let source = &pack.header.source;
            match stamp(file)? == (source.bytes, source.mtime_ns) {
                true => map(&pack, tier).map_err(|error| error.to_string()),
                false => Err(format!(
                    "`{}` has another size or time than when it was packed",
                    file.display()
                )),
            }
        }
    };
    let path = path.display();
    notes.push(match &ready {
        Ok(_) => format!("weights from `{path}`"),
        Err(reason) => {
            format!("`{path}` is not used: {reason} (make it again with `haul model pack`)")
        }
    });
    Ok(ready.ok())
}

fn map(pack: &Pack, tier: crate::kernels::Tier) -> Result<Ready, EngineError> {
    let header = &pack.header;
    let packed = PackedFile {
        file: &pack.file,
        offset: pack.offset,
        bytes: usize::try_from(header.weights.bytes).unwrap_or(usize::MAX),
        form: &header.form,
        rules: &header.rules,
    };
    Ok(Ready {
        engine: engine::load_packed(&pack.graph, tier, &packed)?,
        sha256: header.source.sha256.clone(),
        labels: header.info.names.clone(),
        imgsz: header.info.imgsz,
    })
}

/// What [`check_packs`] found out about a pack.
#[derive(Clone, Debug)]
pub struct CheckedPack {
    /// Where it is.
    pub path: PathBuf,
    /// The form of its weights, if its header is sound.
    pub form: Option<String>,
    /// Digest of the checkpoint it was made from, if its header is sound.
    pub source_sha256: Option<String>,
    /// What is wrong with it; `None` if every byte of it is what was packed.
    pub fault: Option<String>,
}

/// Reads all of a pack, or of all packs beside a checkpoint on this machine, and compares digests:
/// that of the weights with the header's, and where `file` is the checkpoint, the one it was made
/// from with `sha256`, that of the checkpoint's bytes.
///
/// # Errors
/// When `file` cannot be read. What is wrong with a pack is in its result.
pub fn check_packs(file: &ModelFile, sha256: Option<&str>) -> Result<Vec<CheckedPack>, JobError> {
    let whole = |opened: Result<Option<Pack>, ModelError>, path: &Path| -> Option<CheckedPack> {
        let checked = |form, source_sha256, fault| {
            Some(CheckedPack { path: path.to_owned(), form, source_sha256, fault })
        };
        match opened {
            Ok(None) => None,
            Err(error) => checked(None, None, Some(error.to_string())),
            Ok(Some(pack)) => {
                let source = pack.header.source.sha256.clone();
                let fault = match pack.verify(path) {
                    Err(error) => Some(error.to_string()),
                    Ok(()) if sha256.is_some_and(|sha256| sha256 != source) => {
                        Some(format!("`{}` was made from another checkpoint", path.display()))
                    }
                    Ok(()) => None,
                };
                checked(Some(pack.header.form), Some(source), fault)
            }
        }
    };
    file.local().map(stamp).transpose()?;
    if let Some(pack) = whole(file.open_pack(), file.given()) {
        return Ok(vec![pack]);
    }
    let Some(file) = file.local() else { return Ok(Vec::new()) };
    let mut forms = crate::kernels::Tier::ALL.map(engine::form).to_vec();
    forms.sort_unstable();
    forms.dedup();
    let packs = forms.into_iter().map(|form| beside(file, form)).filter(|path| path.exists());
    Ok(packs.filter_map(|path| whole(model::open_pack(&path), &path)).collect())
}
