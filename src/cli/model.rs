//! `haul model`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{print, print_json};
use crate::job::{Exit, JobError, tell};
use crate::model::{Model, read, write_safetensors};
use crate::store::{LocalStore, PutNew, Store};

/// Look into a checkpoint, or convert it
#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    Inspect(Inspect),
    Convert(Convert),
}

/// Say what is in a checkpoint; nothing in it is executed
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A .pt or .safetensors file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write a checkpoint as .safetensors with everything that haul needs to run it
#[derive(Debug, Args)]
pub(super) struct Convert {
    /// An Ultralytics .pt file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The new file [default: FILE with .safetensors]
    #[arg(long, value_name = "PATH")]
    dest: Option<PathBuf>,
}

impl ModelCommand {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        match self {
            ModelCommand::Inspect(inspect) => inspect.execute(),
            ModelCommand::Convert(convert) => convert.execute(),
        }
    }
}

fn load(file: &Path) -> Result<Model, JobError> {
    read(file).map_err(|error| JobError::usage(&error))
}

impl Inspect {
    fn execute(self) -> Result<Exit, JobError> {
        let Model { sha256, info, .. } = load(&self.file)?;
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
            self.file.display(),
            info.format,
            info.task,
            info.imgsz,
            info.names.len(),
            info.names.join(", "),
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
            text.push_str(&format!("             {conv}: {act:?}\n"));
        }
        for (key, value) in &info.metadata {
            text.push_str(&format!("  {key:<10} {value}\n"));
        }
        print(&text)?;
        Ok(Exit::Done)
    }
}

impl Convert {
    fn execute(self) -> Result<Exit, JobError> {
        let model = load(&self.file)?;
        let dest = self.dest.unwrap_or_else(|| self.file.with_extension("safetensors"));
        let bytes = write_safetensors(&model);
        let folder = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (Some(name), true) = (dest.file_name(), folder.is_dir()) else {
            return Err(JobError::Usage(format!("`{}` is in no folder", dest.display())));
        };
        let store = LocalStore::new(folder, ".");
        if store.put_new(Path::new(name), &bytes)? == PutNew::Exists {
            return Err(JobError::Usage(format!("`{}` exists already", dest.display())));
        }
        tell(&format!("{}: {} bytes", dest.display(), bytes.len()));
        Ok(Exit::Done)
    }
}
