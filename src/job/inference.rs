//! What is asked of a model, whichever front end asks: checked once, loaded, and put to the pool.

use std::path::PathBuf;
use std::sync::Arc;

use super::exit::JobError;
use super::fingerprint::ModelFacts;
use super::line::BoxUnit;
use super::memory::{Needs, Shares, divide};
use super::pack::{self, Ready};
use super::settings::Settings;
use super::spec::{at_least_one, choice, defaults, megabytes, show, size, usage};
use crate::engine::{self, Arithmetic, Chosen, Device, Engine, EngineError, Precision, Worker};
use crate::model::ModelFile;
use crate::picture::{Limits, Truncated};
use crate::pool::{self, Params};
use crate::store::S3Options;
use crate::yolo::{Network, NmsOptions};

/// A checkpoint, and what is asked of it.
#[derive(Clone, Debug)]
pub struct Inference {
    /// The checkpoint.
    pub model: PathBuf,
    /// Least confidence.
    pub conf: f64,
    /// Overlap that makes two boxes one object.
    pub iou: f64,
    /// Most detections of a picture.
    pub max_det: usize,
    /// Longest side of the network's input; `None` is the model's own.
    pub imgsz: Option<u32>,
    /// What computes the network, and how.
    pub arithmetic: Arithmetic,
    /// The device is what an earlier run was told, not this one: where it is not to be had, another
    /// one will do.
    pub device_is_inherited: bool,
    /// Classes to keep, as given.
    pub classes: Option<Vec<String>>,
    /// Suppress across classes.
    pub agnostic: bool,
    /// Letterbox to a square.
    pub square: bool,
    /// What sides of boxes are counted in.
    pub boxes: BoxUnit,
    /// What a picture may be.
    pub limits: Limits,
    /// Largest file in bytes.
    pub max_file: u64,
    /// Worker threads; `None` is one for each core.
    pub workers: Option<usize>,
    /// Memory in bytes; `None` is the default rule.
    pub memory_budget: Option<u64>,
}

/// A loaded model and what is asked of it.
#[derive(Clone)]
pub struct Loaded {
    /// Executes the network.
    pub engine: Arc<dyn Engine>,
    /// Where it does so.
    pub device: Device,
    /// Digest, labels, size, classes, numeric class.
    pub facts: ModelFacts,
    /// What people must be told about where it runs, since it may not be what they expect.
    pub remarks: Vec<String>,
    /// What people may want to know about where the weights came from.
    pub notes: Vec<String>,
}

impl Inference {
    /// Checks the settings that are about inference, and fills in the defaults.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the setting, its value and what it may be.
    pub fn new(given: Settings) -> Result<Inference, JobError> {
        Inference::from_filled(&given.over(defaults()))
    }

    /// The same of settings that have their defaults.
    pub(super) fn from_filled(s: &Settings) -> Result<Inference, JobError> {
        let Some(model) = s.model.clone() else {
            let what = "--model is missing: the checkpoint to run, for instance yolov8n.pt";
            return Err(usage(what.to_owned()));
        };
        let unit = |value: Option<f64>, name: &str| match value {
            Some(value) if (0.0..=1.0).contains(&value) => Ok(value),
            other => Err(usage(format!("--{name} is {}; it lies between 0 and 1", show(other)))),
        };
        if let Some(imgsz) = s.imgsz
            && !(32..=8192).contains(&imgsz)
        {
            return Err(usage(format!("--imgsz is {imgsz}; it lies between 32 and 8192")));
        }
        let truncated = match s.truncated.as_deref() {
            None | Some("reject") => Truncated::Reject,
            Some("accept") => Truncated::Accept,
            Some(other) => return Err(choice("truncated", other, "reject or accept")),
        };
        let boxes = match s.boxes.as_deref() {
            None => BoxUnit::Pixels,
            Some(name) => {
                name.parse().map_err(|()| choice("boxes", name, "pixels or normalized"))?
            }
        };
        let limits = Limits {
            max_pixels: s.max_pixels.unwrap_or_default(),
            max_memory: size(s.max_picture_memory.as_deref(), "max-picture-memory")?.unwrap_or(0),
            truncated,
        };
        Ok(Inference {
            model,
            conf: unit(s.conf, "conf")?,
            iou: unit(s.iou, "iou")?,
            max_det: at_least_one(s.max_det, "max-det")?.unwrap_or(1),
            imgsz: s.imgsz.map(|imgsz| imgsz.next_multiple_of(32)),
            arithmetic: arithmetic(s.precision.as_deref(), s.device.as_deref(), s.batch)?,
            device_is_inherited: false,
            classes: s.classes.clone().filter(|classes| !classes.is_empty()),
            agnostic: s.agnostic == Some(true),
            square: s.square == Some(true),
            boxes,
            limits,
            max_file: megabytes(s.max_file_mb, "max-file-mb")?,
            workers: at_least_one(s.workers, "workers")?,
            memory_budget: size(s.memory_budget.as_deref(), "memory-budget")?,
        })
    }

    /// Reads the model, for the numeric class of a job that exists, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, is no YOLOv8 detector, or lacks a class that was asked for; when this
    /// machine has no such arithmetic.
    pub fn load(&self, s3: &S3Options, class: Option<&str>) -> Result<Loaded, JobError> {
        self.load_as(s3, class, class.is_some())
    }

    /// Reads the model of a server once more, which computed on `device` before. GPUs are not given up
    /// for a CPU then, which has other answers and another pace. It has fitted, so one without memory
    /// for it is a passing fault.
    ///
    /// # Errors
    /// As [`Inference::load`].
    pub fn load_again(&self, s3: &S3Options, device: &Device) -> Result<Loaded, JobError> {
        let mut again = self.clone();
        if let Device::Cuda(_) = device {
            again.arithmetic.device = device.clone();
        }
        again.load_as(s3, None, true)
    }

    fn load_as(
        &self,
        s3: &S3Options,
        class: Option<&str>,
        begun: bool,
    ) -> Result<Loaded, JobError> {
        let (mut remarks, mut notes) = (Vec::new(), Vec::new());
        let file = ModelFile::find(&self.model, s3)?;
        let decided = self.decide(class, &mut remarks);
        let (arithmetic, mut chosen) = decided.map_err(|error| refused(&error, &remarks))?;
        let ready = match pack::load(&file, &chosen, &mut notes)? {
            Some(ready) => ready,
            None => {
                let (opened, sha256, labels, imgsz) = {
                    let model = file.read()?;
                    let (sha256, imgsz) = (model.sha256, model.info.imgsz);
                    let labels = model.network.labels.clone();
                    let side = self.longest_side(imgsz) as usize;
                    let asked = Asked { arithmetic: &arithmetic, class, side };
                    // The engine keeps its own form of the weights; this was the last use of the
                    // file's.
                    let network = Arc::new(model.network);
                    let instead = self.device_is_inherited;
                    (asked.open(network, &mut chosen, instead, &mut remarks), sha256, labels, imgsz)
                };
                let engine = opened.map_err(|error| match unopened(&error, begun) {
                    JobError::Usage(_) => refused(&error, &remarks),
                    other => other,
                })?;
                Ready { engine, sha256, labels, imgsz }
            }
        };
        let Ready { engine, sha256, labels, imgsz } = ready;
        let together = engine.batching().map(|batching| batching.pictures);
        remarks.extend(about_batch(self.arithmetic.batch, together, class.is_some()));
        remarks.extend(engine.remarks());
        let imgsz = self.longest_side(imgsz);
        let classes =
            self.classes.as_ref().map(|wanted| resolve_classes(wanted, &labels)).transpose()?;
        let numeric_class = engine.numeric_class().to_owned();
        let facts = ModelFacts { sha256, labels, imgsz, classes, numeric_class };
        Ok(Loaded { engine, device: device(&chosen), facts, remarks, notes })
    }

    /// What computes, and how.
    fn decide(
        &self,
        class: Option<&str>,
        remarks: &mut Vec<String>,
    ) -> Result<(Arithmetic, Chosen), EngineError> {
        let mut arithmetic = self.arithmetic.clone();
        if class.is_some() {
            // It has its batch in its class. The same command must be able to go on with it, also
            // where the batch that it asks for did not fit when the job was begun.
            arithmetic.batch = None;
        }
        if let Some(class) = class
            && self.device_is_inherited
            && matches!(arithmetic.device, Device::Cuda(_)) != class.starts_with(ON_GPUS)
            && arithmetic.device != Device::Auto
        {
            // A retry has the settings of its job, and may have been begun elsewhere.
            let Arithmetic { device, .. } = &arithmetic;
            remarks.push(format!("not on {device}, as before: the job's class is `{class}`"));
            arithmetic.device = Device::Auto;
        }
        match engine::decide(&arithmetic, class, remarks) {
            Err(EngineError::Device { device, reason }) if self.device_is_inherited => {
                remarks.push(format!("not on {device}, as before: {reason}"));
                arithmetic.device = Device::Auto;
            }
            decided => return Ok((arithmetic, decided?)),
        }
        let chosen = engine::decide(&arithmetic, class, remarks)?;
        Ok((arithmetic, chosen))
    }

    /// The longest side of the network's input: asked for, or the model's own.
    fn longest_side(&self, own: usize) -> u32 {
        let own = u32::try_from(own).unwrap_or(640).clamp(32, 8192);
        self.imgsz.unwrap_or(own).next_multiple_of(32)
    }

    /// What there is to know of the model of a job in which nothing is left to be computed, so that it
    /// does not matter where it could be.
    ///
    /// # Errors
    /// When it cannot be read, or lacks a class that was asked for.
    pub(super) fn describe(&self, s3: &S3Options, class: &str) -> Result<Loaded, JobError> {
        let model = ModelFile::find(&self.model, s3)?.read()?;
        let labels = model.network.labels;
        let classes =
            self.classes.as_ref().map(|wanted| resolve_classes(wanted, &labels)).transpose()?;
        let imgsz = self.longest_side(model.info.imgsz);
        let numeric_class = class.to_owned();
        let facts = ModelFacts { sha256: model.sha256, labels, imgsz, classes, numeric_class };
        let engine = Arc::new(Elsewhere(class.to_owned()));
        Ok(Loaded { engine, device: Device::Cpu, facts, remarks: Vec::new(), notes: Vec::new() })
    }

    /// What is asked of the pool for each picture.
    #[must_use]
    pub fn params(&self, facts: &ModelFacts) -> Params {
        Params {
            limits: self.limits,
            imgsz: facts.imgsz,
            square: self.square,
            nms: NmsOptions {
                conf: self.conf as f32,
                iou: self.iou as f32,
                max_det: self.max_det,
                max_nms: 30_000,
                agnostic: self.agnostic,
                classes: facts.classes.clone(),
            },
            annotate: None,
        }
    }

    /// Worker threads that are asked for.
    #[must_use]
    pub fn workers(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.workers.unwrap_or(cores)
    }

    /// Divides the memory budget among the workers; `answers` bytes are kept for what is written.
    ///
    /// # Errors
    /// [`JobError::Usage`] when not even one worker fits.
    pub fn shares(&self, loaded: &Loaded, answers: u64) -> Result<Shares, JobError> {
        let side = loaded.facts.imgsz as usize;
        // Where devices compute, their memory is their own.
        let network = match loaded.engine.batching() {
            None => loaded.engine.scratch_bytes(side, side),
            Some(_) => 0,
        };
        let needs = Needs {
            weights: loaded.engine.weight_bytes(),
            arena: network + pool::kept_bytes(side),
            slots: pool::slot_bytes(&*loaded.engine, side),
            parts: answers,
            picture: self.limits.max_memory,
        };
        divide(self.memory_budget, self.workers(), needs)
    }
}

/// What numeric classes of GPUs begin with.
const ON_GPUS: &str = "cuda-";

/// What an engine is opened for.
pub(crate) struct Asked<'a> {
    pub(crate) arithmetic: &'a Arithmetic,
    /// That of a job that exists.
    pub(crate) class: Option<&'a str>,
    /// Longest side of inputs.
    pub(crate) side: usize,
}

impl Asked<'_> {
    /// Opens what was `chosen`. A GPU that is there and cannot be used is no reason to stop where
    /// nobody named it, or another device will do `instead`, and no job has its class: then it is the
    /// CPU, which `remarks` says.
    ///
    /// # Errors
    /// When there is no such engine here, or it cannot take the network.
    pub(crate) fn open(
        &self,
        network: Arc<Network>,
        chosen: &mut Chosen,
        instead: bool,
        remarks: &mut Vec<String>,
    ) -> Result<Arc<dyn Engine>, EngineError> {
        let Asked { arithmetic, class, side } = *self;
        let free = instead || arithmetic.device == Device::Auto;
        let spare =
            (free && class.is_none() && matches!(chosen, Chosen::Gpus(_))).then(|| network.clone());
        match (engine::open(network, chosen, arithmetic, class, side), spare) {
            (Err(EngineError::Device { reason, .. }), Some(network)) => {
                // What follows the first line is where in the code that was found.
                let reason = reason.lines().next().unwrap_or_default();
                remarks.push(format!("on the CPU: {reason}"));
                let arithmetic = Arithmetic { device: Device::Cpu, ..arithmetic.clone() };
                *chosen = engine::decide(&arithmetic, None, remarks)?;
                engine::open(network, chosen, &arithmetic, None, side)
            }
            (opened, _) => opened,
        }
    }
}

/// The engine of a job that is complete: it has a numeric class, and computes nothing.
struct Elsewhere(String);

impl Engine for Elsewhere {
    fn numeric_class(&self) -> &str {
        &self.0
    }

    fn weight_bytes(&self) -> u64 {
        0
    }

    fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        let step = format!("class {} for a job in which nothing is left to be done", self.0);
        Err(EngineError::Unsupported { step })
    }
}

/// That something is not to be had here, and what was left aside before.
pub(crate) fn refused(error: &EngineError, remarks: &[String]) -> JobError {
    match JobError::usage(error) {
        JobError::Usage(text) if !remarks.is_empty() => {
            JobError::Usage(format!("{text} ({})", remarks.join("; ")))
        }
        error => error,
    }
}

/// Why there is no engine, for a job that was `begun` or for a new one.
fn unopened(error: &EngineError, begun: bool) -> JobError {
    match JobError::usage(error) {
        // A device that fails while it is tried is nobody's mistake.
        JobError::Usage(text) if matches!(error, EngineError::Execute { .. }) => {
            JobError::Internal(text)
        }
        // What has fitted before will do so again, once others have given back what they took.
        JobError::Usage(text) if begun && matches!(error, EngineError::OutOfMemory { .. }) => {
            JobError::Exhausted(text)
        }
        error => error,
    }
}

/// Where that computes.
fn device(chosen: &Chosen) -> Device {
    match chosen {
        Chosen::Kernels(_) | Chosen::Candle => Device::Cpu,
        Chosen::Gpus(gpus) => Device::Cuda(gpus.clone()),
    }
}

/// Most pictures that a GPU is asked to compute together.
const MOST_TOGETHER: usize = 1024;

/// What computes, as `--precision`, `--device` and `--batch` say it.
///
/// # Errors
/// [`JobError::Usage`] naming the setting, its value and what it may be.
pub fn arithmetic(
    precision: Option<&str>,
    device: Option<&str>,
    batch: Option<usize>,
) -> Result<Arithmetic, JobError> {
    let precision = match precision {
        None => Precision::Auto,
        Some(name) => {
            name.parse().map_err(|_| choice("precision", name, "auto, f32, bf16 or f16"))?
        }
    };
    let device = match device {
        None => Device::Auto,
        Some(name) => name.parse().map_err(|reason| usage(format!("--device: {reason}")))?,
    };
    match batch {
        Some(batch) if !(1..=MOST_TOGETHER).contains(&batch) => {
            Err(usage(format!("--batch is {batch}; it lies between 1 and {MOST_TOGETHER}")))
        }
        batch => Ok(Arithmetic { precision, device, batch }),
    }
}

/// What there is to say where `--batch` asks for other than what the engine does: it computes so many
/// pictures `together`, or one at a time. `begun` is for a job that exists.
pub(crate) fn about_batch(
    asked: Option<usize>,
    together: Option<usize>,
    begun: bool,
) -> Option<String> {
    let asked = asked?;
    match together {
        Some(together) if together == asked => None,
        None => Some(format!("--batch {asked} is for GPUs: a CPU computes picture by picture")),
        Some(together) if begun => Some(format!(
            "--batch {asked} is left aside: the job was begun with batches of {together}"
        )),
        Some(together) => Some(format!(
            "batches of {together} instead of {asked}: larger ones do not fit into the GPU's memory, or \
             give a picture other bits by its place in them"
        )),
    }
}

/// The numbers of classes that were asked for by name or number, each once, in order.
///
/// # Errors
/// [`JobError::Usage`] naming the one that the model has not.
pub fn resolve_classes(wanted: &[String], labels: &[String]) -> Result<Vec<u32>, JobError> {
    let mut classes = Vec::new();
    for word in wanted {
        let word = word.trim();
        let by_name = labels.iter().position(|label| label == word);
        let by_number = || word.parse::<usize>().ok().filter(|&index| index < labels.len());
        let Some(index) = by_name.or_else(by_number) else {
            return Err(JobError::Usage(format!(
                "--classes: the model has no class `{word}`; it has {}",
                labels.join(", ")
            )));
        };
        classes.push(index as u32);
    }
    classes.sort_unstable();
    classes.dedup();
    Ok(classes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Exit;

    fn on(device: Device) -> Inference {
        let settings = Settings { model: Some("/m.pt".into()), ..Settings::default() };
        let inference = Inference::new(settings).unwrap();
        let arithmetic = Arithmetic { device, batch: Some(64), ..inference.arithmetic };
        Inference { arithmetic, ..inference }
    }

    #[test]
    fn a_job_that_exists_has_its_own_batch() {
        let decided = |class| on(Device::Cpu).decide(class, &mut Vec::new()).unwrap();
        assert_eq!(decided(None).0.batch, Some(64));
        let (arithmetic, chosen) = decided(Some("f32-portable"));
        assert_eq!((arithmetic.batch, device(&chosen)), (None, Device::Cpu));
    }

    #[test]
    fn a_device_of_another_run_is_left_where_it_is_not_here() {
        let elsewhere = on(Device::Cuda(vec![9999]));
        let mut remarks = Vec::new();
        assert!(elsewhere.decide(Some("f32-portable"), &mut remarks).is_err());
        assert!(elsewhere.decide(None, &mut remarks).is_err());
        let inherited = Inference { device_is_inherited: true, ..elsewhere };
        let (arithmetic, chosen) = inherited.decide(Some("f32-portable"), &mut remarks).unwrap();
        assert_eq!((arithmetic.device, device(&chosen)), (Device::Auto, Device::Cpu));
        assert!(remarks[0].starts_with("not on cuda:9999, as before: "), "{remarks:?}");
    }

    #[test]
    fn a_job_begun_on_a_cpu_leaves_the_device_that_its_settings_came_with() {
        // Whether it is here or not.
        let inherited = Inference { device_is_inherited: true, ..on(Device::Cuda(vec![0])) };
        let mut remarks = Vec::new();
        let (arithmetic, chosen) = inherited.decide(Some("f32-portable"), &mut remarks).unwrap();
        assert_eq!((arithmetic.device, device(&chosen)), (Device::Auto, Device::Cpu));
        assert_eq!(remarks, ["not on cuda:0, as before: the job's class is `f32-portable`"]);
    }

    #[test]
    fn a_refusal_has_what_was_left_aside_before() {
        let text = |remarks: &[String]| refused(&EngineError::Half, remarks).to_string();
        assert!(text(&[]).ends_with("(use auto)"));
        assert!(text(&["on the CPU: no GPU".into()]).ends_with("(use auto) (on the CPU: no GPU)"));
    }

    #[test]
    fn what_is_said_of_a_batch_is_what_became_of_it() {
        let said = |asked, together, begun| about_batch(asked, together, begun).unwrap_or_default();
        assert_eq!(said(None, Some(32), true), "");
        assert_eq!(said(Some(32), Some(32), false), "");
        assert!(said(Some(8), None, false).contains("--batch 8 is for GPUs"));
        assert!(said(Some(8), Some(32), true).contains("begun with batches of 32"));
        assert!(said(Some(64), Some(32), false).starts_with("batches of 32 instead of 64: "));
    }

    #[test]
    fn a_full_gpu_is_a_passing_fault_for_what_has_fitted_before() {
        let full = EngineError::OutOfMemory { device: "0".into(), needs: "8 MiB".into() };
        assert_eq!(unopened(&full, true).exit(), Exit::Interrupted);
        assert_eq!(unopened(&full, false).exit(), Exit::Refused);
        assert_eq!(unopened(&EngineError::Half, true).exit(), Exit::Refused);
    }
}
