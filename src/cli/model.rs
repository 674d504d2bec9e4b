//! `haul model`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{print, print_json, shown};
use crate::engine::Precision;
use crate::job::{Exit, JobError, MadePack, S3Flags, pack_model, tell};
use crate::model::{Model, ModelFile, write_safetensors};
use crate::store::{LocalStore, PutNew, Store, one_line};

/// Look into a checkpoint, convert it, or pack its weights
#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    Inspect(Inspect),
    Convert(Convert),
    Pack(Pack),
}

/// Say what is in a checkpoint; nothing in it is executed
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A .pt or .safetensors file, or an archive with one (.tar.gz); also s3://...
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    s3: S3Flags,
}

/// Write a checkpoint as .safetensors with everything that haul needs to run it
#[derive(Debug, Args)]
pub(super) struct Convert {
    /// An Ultralytics .pt file, or an archive with one (.tar.gz); also s3://...
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The new file [default: FILE with .safetensors]
    #[arg(long, value_name = "PATH")]
    dest: Option<PathBuf>,
    #[command(flatten)]
    s3: S3Flags,
}

/// Write the weights as the kernels read them, so that runs start faster
///
/// `haul run --model FILE` takes the pack beside FILE by itself, as long as FILE's size and time
/// are those of when it was packed; or name the pack itself. Results are the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul model pack yolov8n.pt
  haul model pack yolov8n.pt --precision f32
  haul model pack yolov8n.pt -o image/model.haulpack && haul run --model image/model.haulpack ...")]
pub(super) struct Pack {
    /// A .pt or .safetensors file, or an archive with one (.tar.gz); also s3://...
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The CPU's arithmetic it is for: auto (the fastest here), f32 or bf16; GPUs read no packs
    #[arg(long, value_name = "KIND", default_value_t)]
    precision: Precision,
    /// The pack, replaced if it is there [default: FILE with the form and .haulpack added]
    #[arg(long, short = 'o', value_name = "PATH")]
    dest: Option<PathBuf>,
    #[command(flatten)]
    s3: S3Flags,
}

impl ModelCommand {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        match self {
            ModelCommand::Inspect(inspect) => inspect.execute(),
            ModelCommand::Convert(convert) => convert.execute(),
            ModelCommand::Pack(pack) => pack.execute(),
        }
    }
}

fn load(file: &Path, s3: &S3Flags) -> Result<Model, JobError> {
    Ok(ModelFile::find(file, &s3.options()?)?.read()?)
}

impl Inspect {
    fn execute(self) -> Result<Exit, JobError> {
        let Model { sha256, info, .. } = load(&self.file, &self.s3)?;
        if self.json {
            print_json(&serde_json::json!({ "sha256": sha256, "info": info }))?;
            return Ok(Exit::Done);
        }
        let dtypes: Vec<String> = info
            .dtypes
            .iter()
            .map(|(dtype, count)| format!("{count} {}", format!("{dtype:?}").to_lowercase()))
            .collect();
        let mut text = format!(
            "{}\n  sha256     {sha256}\n  form       {}\n  task       {}\n  input      {} pixels\n  \
             classes    {}: {}\n  parameters {}\n  tensors    {}\n  widths     {:?}\n  depths     {:?}\n  \
             strides    {:?}, {} bins a side\n  activation {:?}, BN eps {}\n",
            shown(&self.file),
            info.format,
            info.task,
            info.imgsz,
            info.names.len(),
            one_line(&info.names.join(", ")),
            info.parameters,
            dtypes.join(", "),
            info.widths,
            info.depths,
            info.strides,
            info.reg_max,
            info.act,
            info.bn_eps,
        );
        for (conv, act) in &info.act_overrides {
            text.push_str(&format!("             {}: {act:?}\n", one_line(conv)));
        }
        for (key, value) in &info.metadata {
            let (key, value) = (one_line(key), one_line(value));
            text.push_str(&format!("  {key:<10} {value}\n"));
        }
        print(&text)?;
        Ok(Exit::Done)
    }
}

impl Convert {
    fn execute(self) -> Result<Exit, JobError> {
        let found = ModelFile::find(&self.file, &self.s3.options()?)?;
        let Some(dest) = self.dest.or_else(|| Some(found.local()?.with_extension("safetensors")))
        else {
            return Err(JobError::Usage(format!(
                "`{}` is in a bucket: say where the new file is to be (--dest FILE)",
                self.file.display()
            )));
        };
        let model = found.read()?;
        let bytes = write_safetensors(&model);
        let folder = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (Some(name), true) = (dest.file_name(), folder.is_dir()) else {
            return Err(JobError::Usage(format!("`{}` is in no folder", dest.display())));
        };
        let store = LocalStore::new(folder, ".");
        if store.put_new(Path::new(name), &bytes)? == PutNew::Exists {
            return Err(JobError::Usage(format!("`{}` exists already", dest.display())));
        }
        tell(&format!("{}: {} bytes", shown(&dest), bytes.len()));
        Ok(Exit::Done)
    }
}

impl Pack {
    fn execute(self) -> Result<Exit, JobError> {
        let made =
            pack_model(&self.file, &self.s3.options()?, self.precision, self.dest.as_deref())?;
        let MadePack { path, form, numeric_class, bytes } = made;
        tell(&format!("{}: {bytes} bytes, {form}, for the class {numeric_class}", shown(&path)));
        Ok(Exit::Done)
    }
}
