//! `haul export`.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Output;
use crate::job::export::{Exported, Form, export};
use crate::job::{Exit, JobError, tell};

/// Write results in another program's form
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul export out/ --to coco --dest boxes.json
  haul export out/ --to csv | head
  haul export out/ --to megadetector --dest results.json
  haul export out/ --to yolo --dest labels/")]
pub(super) struct Export {
    #[command(flatten)]
    output: Output,
    /// The form
    #[arg(long, value_enum)]
    to: To,
    /// File, or - for stdout, never a link, pipe or device; for yolo a new folder
    #[arg(long, value_name = "PATH", required_if_eq("to", "yolo"), default_value = "-")]
    dest: PathBuf,
    /// Export what is committed of an unfinished job
    #[arg(long)]
    partial: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    /// One JSON file with images, categories and annotations
    Coco,
    /// A row for each detection; pictures without any have one too
    Csv,
    /// One JSON file in MegaDetector's form (1.6), for Timelapse and others; failed pictures too
    Megadetector,
    /// A text file for each picture: class cx cy w h score, normalised
    Yolo,
}

impl Export {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let form = match self.to {
            To::Coco => Form::Coco,
            To::Csv => Form::Csv,
            To::Megadetector => Form::Megadetector,
            To::Yolo => Form::Yolo,
        };
        if form == Form::Yolo && self.dest.as_os_str() == "-" {
            return Err(JobError::Usage("--to yolo needs a folder: --dest DIR".into()));
        }
        let exported = match export(&self.output.survey()?, form, &self.dest, self.partial) {
            // `haul export … | head`: the reader has what it wanted.
            Err(JobError::Store(error)) if error.source.kind() == ErrorKind::BrokenPipe => {
                return Ok(Exit::Done);
            }
            other => other?,
        };
        let left_out = match (form, exported.failed) {
            (_, 0) => String::new(),
            (Form::Csv | Form::Megadetector, failed) => {
                format!(", {failed} failed pictures with their error")
            }
            (_, failed) => format!("; {failed} failed pictures are left out"),
        };
        let Exported { pictures, detections, not_utf8, .. } = exported;
        tell(&format!("{pictures} pictures, {detections} detections{left_out}"));
        if not_utf8 > 0 {
            tell(&format!(
                "{not_utf8} names are not UTF-8: `file` has U+FFFD in them, and `image_b64` beside it \
                 the name itself, which readers of this form do not know"
            ));
        }
        Ok(Exit::Done)
    }
}
