//! Other programs' forms of a job's lines. Each streams; none holds the whole.

mod coco;
mod csv;
mod megadetector;
mod yolo;

use std::io::Write;
use std::path::Path;

use super::exit::JobError;
use super::line::{BoxUnit, Line};
use super::manifest::part_name;
use super::notices::check_target;
use super::survey::Survey;
use crate::store::StoreError;

/// What an export came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Pictures with detections, maybe none.
    pub pictures: u64,
    /// Detections.
    pub detections: u64,
    /// Pictures with an error: a row in CSV, an entry for MegaDetector, left out of the others.
    pub failed: u64,
    /// Names that are not UTF-8, where the form can only hold them with U+FFFD.
    pub not_utf8: u64,
}

/// The forms there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON file with images, categories and annotations.
    Coco,
    /// One row for each detection, and one for each picture without any.
    Csv,
    /// One JSON file in MegaDetector's form, failed pictures included.
    Megadetector,
    /// A text file for each picture, in a mirrored tree.
    Yolo,
}

/// Writes a job's committed lines in another form, to a file (`-` is stdout) or, for YOLO, a folder.
///
/// # Errors
/// When the job is not finished and `partial` is not set, a part is damaged, or the target cannot
/// be written.
pub fn export(survey: &Survey, form: Form, to: &Path, partial: bool) -> Result<Exported, JobError> {
    if survey.manifest.success()?.is_none() && !partial {
        let out = survey.manifest.store().describe();
        return Err(JobError::Usage(format!(
            "`{out}` is not finished (haul resume {out}; or --partial exports what there is)"
        )));
    }
    if form == Form::Yolo {
        return yolo::export(survey, to);
    }
    let fault = |error| StoreError::new("write", to, error);
    let target = || {
        check_target(to).map_err(|error| {
            JobError::Usage(format!("--dest `{}`: {error} (- is stdout)", to.display()))
        })
    };
    if to == Path::new("-") {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let exported = write(survey, form, &mut out)?;
        out.flush().map_err(fault)?;
        return Ok(exported);
    }
    target()?;
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(fault)?;
    let mut out = std::io::BufWriter::new(file);
    let exported = write(survey, form, &mut out)?;
    let file = out.into_inner().map_err(|error| fault(error.into_error()))?;
    file.as_file().sync_all().map_err(fault)?;
    target()?;
    file.persist(to).map_err(|error| fault(error.error))?;
    Ok(exported)
}

fn write(survey: &Survey, form: Form, out: &mut impl Write) -> Result<Exported, JobError> {
    match form {
        Form::Coco => coco::export(survey, out),
        Form::Csv => csv::export(survey, out),
        Form::Megadetector => megadetector::export(survey, out),
        Form::Yolo => unreachable!("it has its own writer"),
    }
}

/// Visits every committed line in plan order, with boxes in pixels whatever the job's unit.
fn lines(
    survey: &Survey,
    mut visitor: impl FnMut(Line) -> Result<(), JobError>,
) -> Result<(), JobError> {
    let (compress, unit) = (survey.job.compress()?, survey.job.boxes()?);
    survey.visit_whole(|batch, _, record| {
        if record.is_none() {
            return Ok(());
        }
        let name = part_name(batch.id, compress);
        let damaged = |what: String| JobError::Damaged(format!("{name}: {what} (try haul verify)"));
        let part = survey.manifest.part(&survey.job, batch.id)?;
        let part = part.ok_or_else(|| damaged("it is missing".into()))?;
        let part = survey.job.lines(batch, &part).map_err(damaged)?;
        for line in part.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let mut line = Line::parse(line).map_err(damaged)?;
            if unit == BoxUnit::Normalized {
                to_pixels(&mut line);
            }
            visitor(line)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Not rounded: forms that are normalised themselves get back the numbers of the line.
fn to_pixels(line: &mut Line) {
    let sides = [line.width, line.height, line.width, line.height];
    let sides = sides.map(|side| f64::from(side.unwrap_or(1)));
    for found in line.detections.iter_mut().flatten() {
        found.bbox.iter_mut().zip(sides).for_each(|(value, side)| *value *= side);
    }
}

/// The three decimals that pixels have in a line; no change to those that were read from one.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// A fault while writing the export.
fn io_error(error: std::io::Error) -> JobError {
    JobError::Store(StoreError::new("write", "the export", error))
}
