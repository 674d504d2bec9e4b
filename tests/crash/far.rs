//! A store that answers late, or not as hoped: commits are made beside the work.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use haul::job::{Exit, JobError, Mode, Settings};
use haul::store::{Owner, PutNew, Store, StoreError};

use crate::job::Job;
use crate::machine::{Fate, Machine, Process};
use crate::small;

/// What a store far away does otherwise than the one below it.
#[derive(Default)]
struct Ways {
    /// How long each write takes.
    late: Duration,
    /// Faults that pass, before parts can be written.
    faults: u64,
    /// A part that a listing does not show yet.
    hides: Option<&'static str>,
    /// Whose every object is.
    owner: Option<Owner>,
    /// Told when the first part is being written.
    signal: Option<crossbeam_channel::Sender<i32>>,
}

/// What was written, in that order; the job's id beside it where it was said.
type Puts = Vec<(String, Option<String>)>;

struct Far {
    below: Arc<dyn Store>,
    ways: Mutex<Ways>,
    puts: Arc<Mutex<Puts>>,
}

impl std::fmt::Debug for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, far away", self.below)
    }
}

impl Far {
    fn put(&self, name: &Path, bytes: &[u8], job: Option<&str>) -> Result<PutNew, StoreError> {
        let late = {
            let mut ways = self.ways.lock().unwrap();
            if name.to_string_lossy().starts_with("part-") {
                ways.signal.take().iter().for_each(|signal| signal.send(15).unwrap());
                if ways.faults > 0 {
                    ways.faults -= 1;
                    let reset = std::io::ErrorKind::ConnectionReset.into();
                    return Err(StoreError::new("write", name, reset));
                }
            }
            ways.late
        };
        std::thread::sleep(late);
        let put = self.below.put_new(name, bytes);
        let said = (name.to_string_lossy().into_owned(), job.map(str::to_owned));
        self.puts.lock().unwrap().push(said);
        put
    }
}

impl Store for Far {
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError> {
        self.put(name, bytes, None)
    }
    fn put_new_of(&self, name: &Path, bytes: &[u8], job: &str) -> Result<PutNew, StoreError> {
        self.put(name, bytes, Some(job))
    }
    fn owner(&self, _: &Path) -> Result<Owner, StoreError> {
        Ok(self.ways.lock().unwrap().owner.clone().unwrap_or(Owner::Unsaid))
    }
    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.below.replace(name, bytes)
    }
    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        self.below.read(name)
    }
    fn list(&self, folder: &Path) -> Result<Vec<String>, StoreError> {
        let mut names = self.below.list(folder)?;
        let hidden = self.ways.lock().unwrap().hides;
        names.retain(|name| hidden != Some(name));
        Ok(names)
    }
    fn delete(&self, names: &[PathBuf]) -> Result<(), StoreError> {
        self.below.delete(names)
    }
    fn settle(&self, folder: &Path) -> Result<(), StoreError> {
        self.below.settle(folder)
    }
    fn clear_temporaries(&self) -> Result<(), StoreError> {
        self.below.clear_temporaries()
    }
    fn describe(&self) -> String {
        self.below.describe()
    }
}

/// How it ended, and what it wrote.
fn attempt(job: &Job, process: &Arc<Process>, ways: Ways) -> (Result<Exit, JobError>, Puts) {
    let puts = Arc::new(Mutex::new(Vec::new()));
    let kept = puts.clone();
    let ended = job.outcome(process, &crossbeam_channel::never(), |below| {
        Arc::new(Far { below, ways: Mutex::new(ways), puts: kept })
    });
    let ended = ended.and_then(|outcome| outcome.error.map_or(Ok(outcome.exit), Err));
    let puts = std::mem::take(&mut *puts.lock().unwrap());
    (ended, puts)
}

fn names(job: &Job, machine: &Machine, start: &str) -> Vec<String> {
    job.published(machine).into_keys().filter(|name| name.starts_with(start)).collect()
}

/// Each part comes before its record, and says whose it is.
fn in_order(puts: &Puts) {
    let at = |name: String| puts.iter().position(|(put, _)| *put == name);
    let parts = puts.iter().enumerate().filter(|(_, (name, _))| name.starts_with("part-"));
    for (part, (name, job)) in parts {
        let record = at(name.replace("part-", "_manifest/done/").replace("jsonl", "json"));
        assert!(record.is_none_or(|record| part < record), "{puts:?}");
        assert!(job.is_some(), "{puts:?}");
    }
}

#[test]
fn a_store_that_answers_late_gets_the_same_job() {
    let job = Job::new(40, 2);
    let machine = Machine::new();
    let ways = Ways { late: Duration::from_millis(15), ..Ways::default() };
    let (ended, puts) = attempt(&job, &machine.process(Fate::Well), ways);
    assert_eq!(ended.unwrap(), job.exit);
    in_order(&puts);
    job.check_whole(&machine).unwrap();
}

#[test]
fn a_commit_that_fails_is_made_again() {
    let job = small();
    for faults in 1..4 {
        let machine = Machine::new();
        let ways = Ways { faults, ..Ways::default() };
        let (ended, puts) = attempt(&job, &machine.process(Fate::Well), ways);
        assert_eq!(ended.unwrap(), job.exit);
        in_order(&puts);
        job.check_whole(&machine).unwrap();
        assert_eq!(names(&job, &machine, "_manifest/failed/").len() as u64, faults);
    }
    // So many in a row are the store's fault, whichever mini-batches they hit.
    let machine = Machine::new();
    let ways = Ways { faults: 99, ..Ways::default() };
    let (ended, _) = attempt(&job, &machine.process(Fate::Well), ways);
    assert_eq!(ended.unwrap(), Exit::Failed);
    assert_eq!(names(&job, &machine, "_manifest/failed/").len(), 5);
    // The next run counts on from there.
    let (ended, _) =
        attempt(&job, &machine.process(Fate::Well), Ways { faults: 1, ..Ways::default() });
    assert_eq!(ended.unwrap(), job.exit);
    assert_eq!(names(&job, &machine, "_manifest/failed/").len(), 6);
    job.check_whole(&machine).unwrap();
}

#[test]
fn a_run_that_is_stopped_finishes_what_it_is_committing() {
    // One picture to a mini-batch, so that many are complete when the first is being written.
    let job = Job::new(20, 1);
    let (signal, signals) = crossbeam_channel::bounded(1);
    let machine = Machine::new();
    let late = Duration::from_millis(60);
    let ways = Ways { late, signal: Some(signal), ..Ways::default() };
    let outcome = job.outcome(&machine.process(Fate::Well), &signals, |below| {
        Arc::new(Far { below, ways: Mutex::new(ways), puts: Arc::default() })
    });
    assert_eq!(outcome.unwrap().exit, Exit::Interrupted);
    let (parts, records) =
        (names(&job, &machine, "part-").len(), names(&job, &machine, "_manifest/done/").len());
    assert!(0 < parts && parts == records && parts < 20, "{parts} parts, {records} records");
    job.recovers(&machine, Mode::Run).unwrap();

    // The tenth picture is broken, and the first nine are complete by then.
    let machine = Machine::new();
    let settings = Settings { max_failures: Some("0".to_owned()), ..job.settings() };
    let exit = job.attempt_with(&machine.process(Fate::Well), &settings, |below| {
        let ways = Mutex::new(Ways { late, ..Ways::default() });
        Arc::new(Far { below, ways, puts: Arc::default() })
    });
    assert_eq!(exit.unwrap(), Exit::Threshold);
    assert_eq!(names(&job, &machine, "_manifest/done/").len(), 10);
    assert_eq!(names(&job, &machine, "part-").len(), 10);
}

#[test]
fn a_part_of_somebody_else_is_refused_by_name() {
    let job = small();
    let part = "part-00000001.jsonl";
    // Found at the start, and found when its own is to be written.
    for hides in [None, Some(part)] {
        let begin = || {
            let machine = Machine::new();
            let process = machine.process(Fate::Well);
            job.attempt(&process, Mode::Run).unwrap();
            let gone = ["_SUCCESS.json", "_manifest/done/00000001.json"].map(PathBuf::from);
            haul::store::LocalStore::on(process, job.output(), "_manifest/tmp")
                .delete(&gone)
                .unwrap();
            machine
        };
        for owner in [Owner::Nobody, Owner::Job("another".into())] {
            let (machine, owner) = (begin(), Some(owner));
            let ways = Ways { hides, owner, ..Ways::default() };
            let error = attempt(&job, &machine.process(Fate::Well), ways).0.unwrap_err();
            assert_eq!(error.exit(), Exit::Refused);
            let text = error.to_string();
            assert!(text.contains(part) && text.contains("--new"), "{text}");
            assert!(names(&job, &machine, "_manifest/done/00000001").is_empty());
        }
        let machine = begin();
        let bytes = job.published(&machine).remove("_manifest/job.json").unwrap();
        let id = serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["id"].clone();
        let owner = Some(Owner::Job(id.as_str().unwrap().to_owned()));
        let ways = Ways { hides, owner, ..Ways::default() };
        assert_eq!(attempt(&job, &machine.process(Fate::Well), ways).0.unwrap(), job.exit);
        job.check_whole(&machine).unwrap();
    }
}
