//! Crashes and faults at every operation on the disk, and what haul makes of them.
//!
//! The job is real (pictures, model, threads); only the disk under its output is a double that
//! knows what is durable (`machine`). After each crash the real code opens what the next boot would
//! find, and `job` says what must hold: nothing recorded is lost, nothing published is altered, no
//! marker lies, a restart finishes, and the bytes are those of a run that nobody disturbed.
//!
//! `HAUL_CRASH_SEED` gives another set of random crashes, `HAUL_CRASH_COUNT` how many double ones,
//! `HAUL_CRASH_STEP` how many operations of the large job lie between its crashes.

#[path = "../common/mod.rs"]
mod common;
mod far;
mod job;
mod machine;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use haul::job::{Exit, JobError, Mode, Survey, verify};
use haul::store::{LocalStore, PutNew, Store, StoreError};
use job::Job;
use machine::{Draw, Fate, Lie, Loss, Machine, Process};
use nix::errno::Errno;

/// Three mini-batches of 20 pictures, one of which is broken.
fn small() -> Job {
    Job::new(20, 7)
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// What a power cut may leave of what was pending on this machine.
fn losses(machine: &Machine, seed: u64) -> Vec<Loss> {
    let mut losses = vec![Loss::Everything, Loss::Nothing];
    losses.extend((0..3).map(|n| Loss::Some(seed.wrapping_mul(31).wrapping_add(n))));
    if machine.can_tear() {
        losses.extend([0, 1, 2, 4].map(Loss::Torn));
    }
    losses
}

/// Crashes a job at every operation, before and after it, in all losses; gives runs and failures.
fn crash_everywhere(
    job: &Job,
    mode: Mode,
    begin: &dyn Fn() -> Machine,
    step: u64,
) -> (u64, Vec<String>) {
    let seed = from_env("HAUL_CRASH_SEED", 1);
    let (mut runs, mut wrong) = (0, Vec::new());
    for at in (0..).step_by(step as usize) {
        let mut through = true;
        for fate in [Fate::DiesBefore(at), Fate::DiesAfter(at)] {
            let machine = begin();
            let process = machine.process(fate);
            let ended = job.attempt(&process, mode);
            if !process.struck() {
                continue;
            }
            through = false;
            // Whoever is dead has not said that all is well.
            if let Ok(exit @ (Exit::Done | Exit::SomeFailed)) = ended
                && let Err(what) = job.check_whole(&machine.image(Loss::Everything))
            {
                wrong.push(format!("{fate:?} ended with {exit:?}: {what}"));
            }
            for loss in losses(&machine, seed ^ at) {
                runs += 1;
                if let Err(what) = job.recovers(&machine.image(loss), mode) {
                    wrong.push(format!("{fate:?}, {loss:?}: {what}"));
                }
            }
            // The process alone was killed; the machine lives.
            runs += 1;
            if let Err(what) = job.recovers(&machine, mode) {
                wrong.push(format!("{fate:?}, killed: {what}"));
            }
        }
        if through {
            break;
        }
    }
    (runs, wrong)
}

fn none(wrong: &[String]) {
    let shown: Vec<&String> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "{} failures, the first: {shown:#?}", wrong.len());
}

#[test]
fn a_crash_at_every_operation_is_survived() {
    let job = small();
    let (runs, wrong) = crash_everywhere(&job, Mode::Run, &Machine::new, 1);
    println!("{runs} crashes of a job of 3 mini-batches");
    none(&wrong);
    assert!(runs > 800, "only {runs} runs");
}

#[test]
fn a_crash_in_a_plan_of_several_segments_is_survived() {
    let job = Job::new(70, 1);
    // A prime, so that in time every kind of operation is hit.
    let (runs, wrong) =
        crash_everywhere(&job, Mode::Run, &Machine::new, from_env("HAUL_CRASH_STEP", 61));
    println!("{runs} crashes of a job of 70 mini-batches in 2 segments");
    none(&wrong);
    assert!(runs > 50, "only {runs} runs");
}

#[test]
fn a_crash_during_a_recovery_is_survived() {
    let job = small();
    let seed = from_env("HAUL_CRASH_SEED", 1);
    let whole = Machine::new().process(Fate::Well);
    job.attempt(&whole, Mode::Run).unwrap();
    let operations = whole.changes();
    let mut draw = Draw(seed);
    let mut wrong = Vec::new();
    let (mut runs, mut twice) = (0, 0);
    for _ in 0..from_env("HAUL_CRASH_COUNT", 300) {
        let mut machine = Machine::new();
        let mut story = Vec::new();
        for _ in 0..2 {
            let fate = Fate::DiesBefore(draw.below(operations));
            let process = machine.process(fate);
            let _ = job.attempt(&process, Mode::Run);
            twice += u64::from(process.struck() && !story.is_empty());
            let losses = losses(&machine, draw.next());
            let loss = losses[draw.below(losses.len() as u64) as usize];
            story.push((fate, loss));
            machine = machine.image(loss);
            if let Err(what) = job.check_image(&machine) {
                wrong.push(format!("{story:?}: {what}"));
            }
        }
        runs += 1;
        if let Err(what) = job.recovers(&machine, Mode::Run) {
            wrong.push(format!("{story:?}: {what}"));
        }
    }
    println!("{runs} double crashes ({twice} of them struck twice), seed {seed}");
    none(&wrong);
    assert!(twice > runs / 2, "only {twice} of {runs} were struck twice");
}

#[test]
fn a_crash_while_starting_over_mixes_nothing() {
    let (old, new) = small().other();
    let begin = || {
        let machine = Machine::new();
        old.attempt(&machine.process(Fate::Well), Mode::Run).unwrap();
        machine.image(Loss::Nothing)
    };
    let seed = from_env("HAUL_CRASH_SEED", 1);
    let (mut runs, mut wrong) = (0, Vec::new());
    for at in 0.. {
        let machine = begin();
        let process = machine.process(Fate::DiesBefore(at));
        let _ = new.attempt(&process, Mode::StartOver);
        if !process.struck() {
            break;
        }
        for loss in losses(&machine, seed ^ at) {
            runs += 1;
            let image = machine.image(loss);
            let mut check = |what: &str, result: Result<(), String>| {
                if let Err(error) = result {
                    wrong.push(format!("before {at}, {loss:?}, {what}: {error}"));
                }
            };
            check("image", new.check_image(&image));
            // Without --new it is the old job, the new one, or refused; never some of each.
            let either = image.image(Loss::Nothing);
            match new.attempt(&either.process(Fate::Well), Mode::Run) {
                Ok(_) => check("without --new", new.check_whole(&either)),
                Err(JobError::Fingerprint(_)) => {
                    check("the old one", old.recovers(&image.image(Loss::Nothing), Mode::Run));
                }
                Err(error) => check("without --new", Err(error.to_string())),
            }
            check("again", new.recovers(&image, Mode::StartOver));
        }
    }
    println!("{runs} crashes while starting over");
    none(&wrong);
    assert!(runs > 300, "only {runs} runs");
}

#[test]
fn every_fault_of_an_operation_is_survived() {
    let job = small();
    let well = Machine::new().process(Fate::Well);
    job.attempt(&well, Mode::Run).unwrap();
    let kinds = well.kinds();
    println!(
        "operations: {} of which {} change something: {kinds:?}",
        well.operations(),
        well.changes()
    );
    let (mut runs, mut alone, mut wrong) = (0, 0, Vec::new());
    for at in 0..well.operations() {
        let errors = [Errno::EIO, Errno::ENOSPC, Errno::EACCES, Errno::EINTR];
        let fates = errors
            .into_iter()
            .flat_map(|errno| [false, true].map(|forever| Fate::Fails { at, errno, forever }))
            .filter(|fate| !matches!(fate, Fate::Fails { errno: Errno::EINTR, forever: true, .. }))
            .chain([false, true].map(|forever| Fate::ShortWrite { at, forever }));
        for fate in fates {
            let machine = Machine::new();
            let process = machine.process(fate);
            let ended = job.attempt(&process, Mode::Run);
            if !process.struck() {
                continue;
            }
            runs += 1;
            let mut check = |what: &str, result: Result<(), String>| {
                if let Err(error) = result {
                    wrong.push(format!("{fate:?}, {what} ({ended:?}): {error}"));
                }
            };
            let exit = ended.as_ref().map_or_else(JobError::exit, |exit| *exit);
            match (exit, fate) {
                (Exit::Done | Exit::SomeFailed, _) => {
                    alone += 1;
                    assert_eq!(exit, job.exit);
                    check("finished", job.check_whole(&machine));
                    check("finished, durably", job.check_whole(&machine.image(Loss::Everything)));
                }
                (Exit::Failed, _) => {}
                // What no later run can mend is said to be so; all else may be tried again.
                (Exit::Refused, Fate::Fails { errno: Errno::EACCES, .. }) => {}
                _ => check("exit", Err(format!("it ended with {exit:?}"))),
            }
            check("power cut", job.recovers(&machine.image(Loss::Everything), Mode::Run));
            check("run again", job.recovers(&machine, Mode::Run));
        }
    }
    println!("{runs} faults, {alone} of them survived by the run itself");
    none(&wrong);
    assert!(runs > 500, "only {runs} runs");
    assert!(alone > runs / 10, "a run survives only {alone} of {runs} faults");
}

#[test]
fn two_runs_at_once_agree_and_one_may_die() {
    let job = small();
    let mut draw = Draw(from_env("HAUL_CRASH_SEED", 1));
    let whole = Machine::new().process(Fate::Well);
    job.attempt(&whole, Mode::Run).unwrap();
    for round in 0..20 {
        let machine = Machine::new();
        let fate = match round % 2 {
            0 => Fate::Well,
            _ => Fate::DiesBefore(draw.below(whole.changes())),
        };
        let (doomed, well) = (machine.process(fate), machine.process(Fate::Well));
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| job.unlocked(&doomed));
            let second = scope.spawn(|| job.unlocked(&well));
            (first.join().unwrap(), second.join().unwrap())
        });
        assert_eq!(second.unwrap(), job.exit, "round {round}");
        if fate == Fate::Well {
            assert_eq!(first.unwrap(), job.exit, "round {round}");
        }
        job.check_whole(&machine).unwrap();
        job.check_whole(&machine.image(Loss::Everything)).unwrap();
    }
}

#[test]
fn shards_at_once_agree_and_one_may_die() {
    let job = small();
    let mut draw = Draw(from_env("HAUL_CRASH_SEED", 1));
    let whole = Machine::new().process(Fate::Well);
    job.attempt(&whole, Mode::Run).unwrap();
    let mut struck = 0;
    for round in 0..30 {
        let machine = Machine::new();
        let fate = match round % 3 {
            0 => Fate::Well,
            _ => Fate::DiesBefore(draw.below(whole.changes())),
        };
        let doomed = machine.process(fate);
        std::thread::scope(|scope| {
            for shard in ["1/4", "2/4", "3/4"] {
                let process = match shard {
                    "2/4" => doomed.clone(),
                    _ => machine.process(Fate::Well),
                };
                let (job, doomed) = (&job, &doomed);
                scope.spawn(move || {
                    let ended = job.shard(&process, shard);
                    let well = matches!(ended, Ok(Exit::Done | Exit::SomeFailed));
                    let died = shard == "2/4" && doomed.struck();
                    assert!(well || died, "round {round}, {shard}: {ended:?}");
                });
            }
        });
        if doomed.struck() {
            struck += 1;
            for loss in losses(&machine, draw.next()) {
                job.recovers(&machine.image(loss), Mode::Run).unwrap();
            }
            // The dead one again, alone; its share was all that was missing.
            assert!(job.shard(&machine.process(Fate::Well), "2/4").is_ok(), "round {round}");
        }
        job.check_whole(&machine).unwrap();
        job.check_whole(&machine.image(Loss::Everything)).unwrap();
    }
    println!("{struck} of 20 doomed shards died");
    assert!(struck > 5, "only {struck}");
}

/// A store that lets another run do the whole job right before the first time that a name is asked
/// for.
struct Overtaken {
    below: Arc<dyn Store>,
    at: &'static str,
    job: Arc<Job>,
    other: Arc<Process>,
    done: Arc<std::sync::Mutex<bool>>,
}

impl std::fmt::Debug for Overtaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, overtaken at {}", self.below, self.at)
    }
}

impl Overtaken {
    fn reached(&self, at: &str) {
        if at == self.at && !std::mem::replace(&mut *self.done.lock().unwrap(), true) {
            assert_eq!(self.job.unlocked(&self.other).unwrap(), self.job.exit, "{at}");
        }
    }
}

impl Store for Overtaken {
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError> {
        self.reached(&format!("put {}", name.display()));
        self.below.put_new(name, bytes)
    }
    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.below.replace(name, bytes)
    }
    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        self.below.read(name)
    }
    fn list(&self, folder: &Path) -> Result<Vec<String>, StoreError> {
        self.reached(&format!("list {}", folder.display()));
        self.below.list(folder)
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

#[test]
fn a_job_that_another_run_makes_first_is_adopted() {
    let job = Arc::new(small());
    for at in ["list ", "list _manifest", "put _manifest/job.json", "put _SUCCESS.json"] {
        let machine = Machine::new();
        let (other, done) = (machine.process(Fate::Well), Arc::default());
        let exit = job.attempt_through(&machine.process(Fate::Well), |below| {
            Arc::new(Overtaken { below, at, job: job.clone(), other, done: Arc::clone(&done) })
        });
        assert_eq!(exit.unwrap(), job.exit, "{at}");
        assert!(*done.lock().unwrap(), "{at}: nobody came first");
        job.check_whole(&machine).unwrap();
    }
}

#[test]
fn rot_is_found() {
    // Two segments, so that one is sealed by the other.
    let job = Job::new(66, 1);
    let machine = Machine::new();
    job.attempt(&machine.process(Fate::Well), Mode::Run).unwrap();
    let mut flips = 0;
    for (name, bytes) in &job.whole {
        // A job's own description and a record's times are not sealed by anything.
        let each = match name {
            name if name.starts_with("part-") => 3,
            name if name.starts_with("_manifest/plan") || name == "_SUCCESS.json" => 40,
            _ => continue,
        };
        for at in (0..bytes.len()).step_by(bytes.len().div_ceil(each)) {
            let rotten = machine.image(Loss::Nothing);
            rotten.rot(&job.output().join(name), at);
            let found = job.check_image(&rotten);
            assert!(found.is_err(), "byte {at} of {name} was flipped, and nobody noticed");
            flips += 1;
        }
    }
    println!("{flips} flipped bytes, each found by verify");
    assert!(flips > 300, "only {flips}");
}

// --- negative controls: the suite must notice what is taken out --------------------------------

/// How many of the crashes of a job whose processes break a promise are noticed.
fn noticed(lie: Lie) -> (u64, usize) {
    let job = small();
    let mut wrong = 0;
    let mut runs = 0;
    let whole = Machine::new().process(Fate::Well);
    job.attempt(&whole, Mode::Run).unwrap();
    // A process that lies and dies: the power goes after it has ended.
    let machine = Machine::new();
    job.attempt(&machine.process(Fate::Lies(lie)), Mode::Run).unwrap();
    for loss in [Loss::Everything, Loss::Some(1), Loss::Some(2), Loss::Torn(2)] {
        runs += 1;
        let image = machine.image(loss);
        let whole = job.check_whole(&image);
        wrong += usize::from(whole.is_err());
    }
    (runs, wrong)
}

#[test]
fn a_missing_fsync_of_files_is_noticed() {
    let (runs, wrong) = noticed(Lie::FileSync);
    println!("without fsync of files: {wrong} of {runs} power cuts are noticed");
    assert!(wrong > 0);
}

#[test]
fn a_missing_fsync_of_folders_is_noticed() {
    let (runs, wrong) = noticed(Lie::FolderSync);
    println!("without fsync of folders: {wrong} of {runs} power cuts are noticed");
    assert!(wrong > 0);
}

/// A store that publishes each part only after its record.
#[derive(Debug)]
struct RecordFirst {
    below: Arc<dyn Store>,
    held: std::sync::Mutex<Vec<(PathBuf, Vec<u8>)>>,
}

impl Store for RecordFirst {
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError> {
        if name.to_str().is_some_and(|name| name.starts_with("part-")) {
            self.held.lock().unwrap().push((name.to_owned(), bytes.to_owned()));
            return Ok(PutNew::Created);
        }
        let put = self.below.put_new(name, bytes)?;
        for (name, bytes) in self.held.lock().unwrap().drain(..) {
            self.below.put_new(&name, &bytes)?;
        }
        Ok(put)
    }
    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.below.replace(name, bytes)
    }
    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        self.below.read(name)
    }
    fn list(&self, folder: &Path) -> Result<Vec<String>, StoreError> {
        self.below.list(folder)
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

#[test]
fn a_record_before_its_part_is_noticed() {
    let job = small();
    let (mut runs, mut wrong) = (0, 0);
    for at in 0.. {
        let machine = Machine::new();
        let process = machine.process(Fate::DiesBefore(at));
        let _ = job.attempt_through(&process, |below| {
            Arc::new(RecordFirst { below, held: std::sync::Mutex::default() })
        });
        if !process.struck() {
            break;
        }
        runs += 1;
        wrong += u64::from(job.check_image(&machine.image(Loss::Everything)).is_err());
    }
    println!("records before parts: {wrong} of {runs} crashes are noticed");
    assert!(wrong > 0);
}

#[test]
fn the_double_keeps_only_what_was_synced() {
    let machine = Machine::new();
    let store = LocalStore::on(machine.process(Fate::Well), "/a/out", "tmp");
    store.put_new(Path::new("kept"), b"1").unwrap();
    let process = machine.process(Fate::Lies(Lie::FolderSync));
    LocalStore::on(process, "/a/out", "tmp").put_new(Path::new("lost"), b"2").unwrap();
    let names = |loss| machine.image(loss).below(Path::new("/a/out"));
    let kept = names(Loss::Everything);
    assert_eq!(kept.get("kept").unwrap(), b"1");
    assert!(!kept.contains_key("lost"));
    assert_eq!(names(Loss::Nothing).get("lost").unwrap(), b"2");
    assert!(Survey::on(Arc::new(store)).and_then(|survey| verify(&survey)).is_err());
}
