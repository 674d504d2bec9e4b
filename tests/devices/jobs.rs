//! Whole jobs on devices: the same bytes as by workers, whatever fails on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use haul::engine::Engine;
use haul::job::{
    Exit, JobError, Loaded, Mode, Opened, Outcome, Settings, Spec, Terminal, Verbosity, load_model,
    open_on, open_output, run,
};
use tempfile::TempDir;

use crate::common::binary::{model, testdata};
use crate::double::{OnDevices, TROUBLES, Trouble};

/// The pictures that come with haul, several times, and one that is broken.
struct Job {
    dir: TempDir,
    loaded: Loaded,
}

impl Job {
    fn new() -> Job {
        let dir = tempfile::tempdir().unwrap();
        let photos = dir.path().join("photos");
        std::fs::create_dir(&photos).unwrap();
        for entry in std::fs::read_dir(testdata("pictures")).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                for copy in 0..3 {
                    let name = format!("{copy}-{}", entry.file_name().to_str().unwrap());
                    std::fs::copy(entry.path(), photos.join(name)).unwrap();
                }
            }
        }
        std::fs::write(photos.join("broken.jpg"), b"no picture").unwrap();
        let spec = Spec::new(settings(&dir, "none")).unwrap();
        Job { loaded: load_model(&spec, None).unwrap(), dir }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One start of haul, with some engine.
    fn start(&self, settings: Settings, engine: &Arc<dyn Engine>) -> Result<Outcome, JobError> {
        let spec = Spec::new(settings)?;
        let store = open_output(&spec.output, &spec.s3);
        let load = |_: &Spec, _: Option<&str>| {
            Ok(Loaded { engine: engine.clone(), ..self.loaded.clone() })
        };
        let mut terminal = Terminal::new(Verbosity::Quiet);
        let Opened::Job(session) = open_on(spec, Mode::Run, &terminal, store, &load)? else {
            panic!("there is nothing to do")
        };
        run(*session, &crossbeam_channel::never(), &mut terminal)
    }

    fn on_devices(&self, devices: usize, pictures: usize) -> OnDevices {
        OnDevices::new(&self.loaded.engine, devices, pictures)
    }
}

fn settings(dir: &TempDir, out: &str) -> Settings {
    Settings {
        model: Some(model()),
        input: Some(dir.path().join("photos")),
        output: Some(dir.path().join(out)),
        imgsz: Some(96),
        conf: Some(0.05),
        workers: Some(2),
        max_images: Some(5),
        memory_budget: Some("1GiB".into()),
        if_locked: Some("wait=60s".into()),
        ..Settings::default()
    }
}

/// Everything in a folder, by name, but what is only about the run.
fn published(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(out).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() && entry.file_name() != "_SUCCESS.json" {
            let name = entry.file_name().to_str().unwrap().to_owned();
            all.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[test]
fn a_job_on_devices_publishes_what_workers_publish() {
    let job = Job::new();
    let annotated = |name: &str| Settings {
        annotate: Some(job.out(&format!("{name}-drawn"))),
        ..settings(&job.dir, name)
    };
    let outcome = job.start(annotated("workers"), &job.loaded.engine).unwrap();
    assert_eq!((outcome.exit, outcome.report.devices), (Exit::SomeFailed, None));
    let whole = (published(&job.out("workers")), published(&job.out("workers-drawn")));
    assert!(whole.0.len() > 5 && whole.1.len() > 30, "{:?}", whole.0.keys());
    for (devices, pictures) in [(1, 1), (1, 8), (2, 3)] {
        let name = format!("devices-{devices}-{pictures}");
        let engine: Arc<dyn Engine> = Arc::new(job.on_devices(devices, pictures));
        let outcome = job.start(annotated(&name), &engine).unwrap();
        assert_eq!(outcome.exit, Exit::SomeFailed);
        assert!(whole.0 == published(&job.out(&name)), "{name}");
        assert!(whole.1 == published(&job.out(&format!("{name}-drawn"))), "{name}");
        let did = outcome.report.devices.unwrap();
        assert_eq!((did.devices, did.batch), (devices, pictures));
        assert_eq!(did.pictures, outcome.report.pictures - outcome.report.failed);
    }
}

/// One of two devices fails, with pictures of more mini-batches than faults may come in a row: they
/// are tried again, and the job is whole.
#[test]
fn the_other_device_does_what_one_has_left() {
    let job = Job::new();
    let small = |out: &str| Settings { max_images: Some(1), ..settings(&job.dir, out) };
    job.start(small("workers"), &job.loaded.engine).unwrap();
    let whole = published(&job.out("workers"));
    let troubles = TROUBLES.into_iter().filter(|&trouble| trouble != Trouble::Exhausted);
    let mut most = 0;
    for (round, trouble) in (0..10).flat_map(|round| troubles.clone().map(move |t| (round, t))) {
        let name = format!("{trouble:?}-{round}");
        let mut engine = job.on_devices(2, 8);
        engine.troubles = [(0, (1, trouble))].into();
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let outcome = job.start(small(&name), &engine).unwrap();
        assert_eq!((outcome.exit, outcome.report.given_up), (Exit::SomeFailed, 0), "{name}");
        // What the device had has a try that failed. It may never have come to its turn.
        let tries = std::fs::read_dir(job.out(&name).join("_manifest/failed"));
        most = most.max(tries.map_or(0, Iterator::count));
        assert!(whole == published(&job.out(&name)), "{name}");
        if trouble == Trouble::Forgets && most > 5 {
            return;
        }
    }
    panic!("at most {most} tries have failed at once");
}

/// All devices fail: the run ends with their reason, and the next one finishes the job.
#[test]
fn without_a_device_the_run_fails_and_the_next_one_goes_on() {
    let job = Job::new();
    job.start(settings(&job.dir, "workers"), &job.loaded.engine).unwrap();
    let mut engine = job.on_devices(1, 2);
    engine.troubles = [(0, (4, Trouble::Loses))].into();
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let outcome = job.start(settings(&job.dir, "out"), &engine).unwrap();
    assert_eq!(outcome.exit, Exit::Failed, "{:?}", outcome.report);
    let reason = outcome.report.reason.unwrap();
    assert!(reason.contains("device 0 failed: executing `the network` failed"), "{reason}");
    // Nobody's picture has a strike for it.
    assert!(!job.out("out/_manifest/strikes").exists());
    let engine: Arc<dyn Engine> = Arc::new(job.on_devices(1, 2));
    let outcome = job.start(settings(&job.dir, "out"), &engine).unwrap();
    assert_eq!(outcome.exit, Exit::SomeFailed);
    assert!(published(&job.out("workers")) == published(&job.out("out")));
}

/// A device that has no memory left interrupts the run: what is finished is committed, the exit code
/// says "run it again", and that finishes the job. On one device and on two, of which one goes on.
#[test]
fn a_device_without_memory_interrupts_the_run() {
    let job = Job::new();
    let small = |out: &str| Settings { max_images: Some(2), ..settings(&job.dir, out) };
    job.start(small("workers"), &job.loaded.engine).unwrap();
    let whole = published(&job.out("workers"));
    for (devices, at) in [(1, 10), (2, 5)] {
        let name = format!("out-{devices}");
        let mut engine = job.on_devices(devices, 2);
        // Each of them: one alone may leave all the work to the other.
        engine.troubles = (0..devices).map(|device| (device, (at, Trouble::Exhausted))).collect();
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let outcome = job.start(small(&name), &engine).unwrap();
        assert_eq!(outcome.exit, Exit::Interrupted, "{:?}", outcome.report);
        let report = &outcome.report;
        assert!(report.reason.as_ref().unwrap().contains("is out of memory"), "{report:?}");
        assert!(report.committed > 0 && report.committed < report.batches, "{report:?}");
        assert_eq!((report.given_up, report.state.as_str()), (0, "interrupted"));
        // No try has failed: nothing is held against a mini-batch.
        let failed = std::fs::read_dir(job.out(&name).join("_manifest/failed"));
        assert_eq!(failed.map_or(0, Iterator::count), 0);
        let engine: Arc<dyn Engine> = Arc::new(job.on_devices(devices, 2));
        let outcome = job.start(small(&name), &engine).unwrap();
        assert_eq!(outcome.exit, Exit::SomeFailed);
        assert!(whole == published(&job.out(&name)), "{name}");
    }
    // At the start there is not even a mini-batch to be interrupted.
    let mut engine = job.on_devices(1, 2);
    engine.troubles = [(0, (0, Trouble::Exhausted))].into();
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let error = job.start(small("never"), &engine).err().unwrap();
    assert_eq!(error.exit(), Exit::Interrupted);
    assert!(error.to_string().contains("run again when it is free"), "{error}");
}

/// What is on its way to devices is in the budget.
#[test]
fn slots_are_counted() {
    let job = Job::new();
    let engine: Arc<dyn Engine> = Arc::new(job.on_devices(1, 1024));
    let small = Settings { memory_budget: Some("600MiB".into()), ..settings(&job.dir, "out") };
    let error = job.start(small, &engine).err().unwrap();
    assert_eq!(error.exit(), Exit::Refused);
    let text = error.to_string();
    assert!(text.contains("pictures for the devices 162 MiB"), "{text}");
}
