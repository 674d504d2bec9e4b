//! A small real job on a [`Machine`], and what must hold of its output after anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use haul::job::{
    Exit, JobError, Loaded, Mode, Opened, Outcome, Settings, Spec, Survey, Terminal, Verbosity,
    load_model, open_on, run, verify,
};
use haul::store::{LocalStore, Store};
use tempfile::TempDir;

use crate::common::binary::model;
use crate::machine::{Fate, Loss, Machine, Process};

/// Every file of an output but the temporaries, by name.
pub(crate) type Published = BTreeMap<String, Vec<u8>>;

/// A job over pictures in a real folder, on the model that comes with haul.
pub(crate) struct Job {
    _dir: TempDir,
    settings: Settings,
    loaded: Loaded,
    /// What an undisturbed run publishes, and its exit.
    pub(crate) whole: Published,
    pub(crate) exit: Exit,
}

fn png(side: u32, shade: u8) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([shade, (x * 8) as u8, (y * 8) as u8 ^ shade])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

impl Job {
    /// `pictures` of them, one of them broken, `each` to a mini-batch.
    pub(crate) fn new(pictures: usize, each: usize) -> Job {
        let dir = tempfile::tempdir().unwrap();
        let photos = dir.path().join("photos");
        std::fs::create_dir(&photos).unwrap();
        for n in 0..pictures {
            let mut bytes = png(32, n as u8);
            if n == pictures / 2 {
                bytes.truncate(40);
            }
            std::fs::write(photos.join(format!("{n:03}.png")), bytes).unwrap();
        }
        let settings = Settings {
            model: Some(model()),
            input: Some(photos),
            output: Some(dir.path().join("deep/out")),
            imgsz: Some(32),
            conf: Some(0.05),
            workers: Some(1),
            max_images: Some(each),
            memory_budget: Some("1GiB".into()),
            // A thread of the run before may still hold it for a moment.
            if_locked: Some("wait=60s".into()),
            ..Settings::default()
        };
        let loaded = load_model(&Spec::new(settings.clone()).unwrap(), None).unwrap();
        let mut job =
            Job { _dir: dir, settings, loaded, whole: Published::new(), exit: Exit::Failed };
        let machine = Machine::new();
        job.exit = job.attempt(&machine.process(Fate::Well), Mode::Run).unwrap();
        assert!(matches!(job.exit, Exit::Done | Exit::SomeFailed), "{:?}", job.exit);
        job.whole = job.published(&machine);
        job
    }

    /// The same pictures with another setting: another fingerprint.
    pub(crate) fn other(self) -> (Job, Job) {
        let settings = Settings { conf: Some(0.9), ..self.settings.clone() };
        let dir = tempfile::tempdir().unwrap();
        let (loaded, whole) = (self.loaded.clone(), Published::new());
        let mut job = Job { _dir: dir, settings, loaded, whole, exit: Exit::Failed };
        let machine = Machine::new();
        job.exit = job.attempt(&machine.process(Fate::Well), Mode::Run).unwrap();
        job.whole = job.published(&machine);
        (self, job)
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.settings.output.clone().unwrap()
    }

    fn store(&self, process: &Arc<Process>) -> Arc<dyn Store> {
        Arc::new(LocalStore::on(process.clone(), self.output(), "_manifest/tmp"))
    }

    /// One start of haul, on a process of a machine.
    pub(crate) fn attempt(&self, process: &Arc<Process>, mode: Mode) -> Result<Exit, JobError> {
        self.attempt_on(self.store(process), mode, &self.settings)
    }

    /// The same without a lock, so that several may run at once.
    pub(crate) fn unlocked(&self, process: &Arc<Process>) -> Result<Exit, JobError> {
        let settings = Settings { no_lock: Some(true), ..self.settings.clone() };
        self.attempt_on(self.store(process), Mode::Run, &settings)
    }

    /// One of several shards, each with a lock of its own.
    pub(crate) fn shard(&self, process: &Arc<Process>, shard: &str) -> Result<Exit, JobError> {
        let settings = Settings { shard: Some(shard.to_owned()), ..self.settings.clone() };
        self.attempt_on(self.store(process), Mode::Run, &settings)
    }

    pub(crate) fn attempt_on(
        &self,
        store: Arc<dyn Store>,
        mode: Mode,
        settings: &Settings,
    ) -> Result<Exit, JobError> {
        let never = crossbeam_channel::never();
        self.attempt_hearing(store, mode, settings, &never).map(|outcome| outcome.exit)
    }

    fn attempt_hearing(
        &self,
        store: Arc<dyn Store>,
        mode: Mode,
        settings: &Settings,
        signals: &Receiver<i32>,
    ) -> Result<Outcome, JobError> {
        let spec = Spec::new(settings.clone())?;
        let mut terminal = Terminal::new(Verbosity::Silent);
        let load = |_: &Spec, _: Option<&str>| Ok(self.loaded.clone());
        match open_on(spec, mode, &terminal, store, &load)? {
            Opened::Job(session) => run(*session, signals, &mut terminal),
            Opened::Skipped(text) | Opened::Nothing(text) => panic!("{text}"),
        }
    }

    /// As [`Job::attempt`], on a store of the caller's that lies over a process.
    pub(crate) fn attempt_through(
        &self,
        process: &Arc<Process>,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Result<Exit, JobError> {
        self.attempt_with(process, &self.settings, wrap)
    }

    /// The same with other settings that are not fingerprinted.
    pub(crate) fn attempt_with(
        &self,
        process: &Arc<Process>,
        settings: &Settings,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Result<Exit, JobError> {
        self.attempt_on(wrap(self.store(process)), Mode::Run, settings)
    }

    /// The same, hearing signals, and all that is told of it.
    pub(crate) fn outcome(
        &self,
        process: &Arc<Process>,
        signals: &Receiver<i32>,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Result<Outcome, JobError> {
        self.attempt_hearing(wrap(self.store(process)), Mode::Run, &self.settings, signals)
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// What is published on a machine: no temporaries, no lock.
    pub(crate) fn published(&self, machine: &Machine) -> Published {
        let mut all = machine.below(&self.output());
        all.retain(|name, _| !name.starts_with("_manifest/tmp/"));
        all
    }

    /// I1, I4, I8 of a disk as a crash left it: what is claimed is there, and can be looked at.
    pub(crate) fn check_image(&self, machine: &Machine) -> Result<(), String> {
        let store = self.store(&machine.process(Fate::Well));
        if store.read("_manifest/job.json".as_ref()).map_err(|e| e.to_string())?.is_none() {
            return match self.published(machine).keys().next() {
                None => Ok(()),
                Some(name) => Err(format!("there is {name}, and no job")),
            };
        }
        let survey = Survey::on(store).map_err(|error| format!("status: {error}"))?;
        survey.status().map_err(|error| format!("status: {error}"))?;
        let verdict = verify(&survey).map_err(|error| format!("verify: {error}"))?;
        match verdict.mismatches.is_empty() {
            true => Ok(()),
            false => Err(format!("verify: {}", verdict.mismatches.join("; "))),
        }
    }

    /// I2, I3, I4, I6 of a finished output: the same files with the same bytes as without trouble.
    /// Only what tells one run from another may differ.
    pub(crate) fn check_whole(&self, machine: &Machine) -> Result<(), String> {
        self.check_image(machine)?;
        let mut there = self.published(machine);
        there.retain(|name, _| !name.starts_with("_manifest/failed/"));
        for (name, expected) in &self.whole {
            let bytes = there.remove(name).ok_or_else(|| format!("{name} is missing"))?;
            if comparable(name, &bytes) != comparable(name, expected) {
                return Err(format!("{name} differs"));
            }
        }
        match there.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("there is {name}, which an undisturbed run does not write")),
        }
    }

    /// The whole oracle for a disk that the next boot finds: it is right so far; a restart left
    /// alone finishes; nothing that was published is altered; and what it says is durable is.
    pub(crate) fn recovers(&self, machine: &Machine, mode: Mode) -> Result<(), String> {
        self.check_image(machine)?;
        let before = self.published(machine);
        let exit = self
            .attempt(&machine.process(Fate::Well), mode)
            .map_err(|error| format!("the restart failed: {error}"))?;
        if exit != self.exit {
            return Err(format!("the restart ended with {exit:?}, not {:?}", self.exit));
        }
        let after = self.published(machine);
        if mode == Mode::Run {
            let altered = before.iter().find(|(name, bytes)| after.get(*name) != Some(bytes));
            if let Some((name, _)) = altered {
                return Err(format!("the restart altered {name}"));
            }
        }
        self.check_whole(machine)?;
        let durable = machine.image(Loss::Everything);
        self.check_whole(&durable).map_err(|what| format!("after a power cut at the end: {what}"))
    }
}

/// What of a file must be equal: all of it, but for the job's id, times and tries.
fn comparable(name: &str, bytes: &[u8]) -> Vec<u8> {
    if !name.ends_with(".json") {
        return bytes.to_vec();
    }
    let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    if let Some(object) = value.as_object_mut() {
        for field in ["id", "job", "created_ms", "seconds", "attempt", "settings"] {
            object.remove(field);
        }
    }
    serde_json::to_vec(&value).unwrap()
}
