//! The dispatcher: the one owner of manifest, parts and terminal.
//!
//! Lister, feeder and workers only send it events. It keeps a bounded number of mini-batches open,
//! puts their lines back in plan order, has each committed when its last line is there, and decides
//! when to stop.

mod annotations;
mod batches;
mod committer;
mod stopping;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use self::annotations::Annotations;
use self::committer::{Committer, Complete, Told, check_hold};
use crate::failpoint;
use crate::job::chain::Chain;
use crate::job::events::Event;
use crate::job::exit::{Exit, JobError};
use crate::job::feeder::{Feeder, Order};
use crate::job::fingerprint::ModelFacts;
use crate::job::line::Line;
use crate::job::lister::Lister;
use crate::job::manifest::{Done, Job, Manifest, Success, parts_digest};
use crate::job::memory::{mib, peak};
use crate::job::plan::Batch;
use crate::job::report::{Report, Share, Stages};
use crate::job::retry::Retry;
use crate::job::session::{Session, open_pictures};
use crate::job::spec::Spec;
use crate::job::strikes::Strikes;
use crate::job::tally::Tally;
use crate::job::terminal::{Standing, Terminal};
use crate::pool::{Annotate, Budget, Devices, Idle, Params, Pool, Spent};
use crate::store::{Hold, Place, Writing};

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How a run came out.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub exit: Exit,
    /// The summary.
    pub report: Report,
    /// What kept the job from going on.
    pub error: Option<JobError>,
    /// Pictures that failed in this run, committed or not; the first of them only.
    pub failures: Vec<Line>,
}

/// Works on a job until it is done, stopped or interrupted.
///
/// `signals` gives the number of a signal that asks to stop; the sender of a second one exits.
///
/// # Errors
/// When it cannot even start. One that cannot go on has an outcome, with the error in it; what is
/// committed stays committed.
pub fn run(
    session: Session,
    signals: &Receiver<i32>,
    terminal: &mut Terminal,
) -> Result<Outcome, JobError> {
    let session = Arc::new(session);
    let mut dispatcher = Dispatcher::start(&session, terminal)?;
    let result = dispatcher.work(signals);
    dispatcher.terminal.end();
    let (exit, error) = match result {
        Ok(exit) => (exit, None),
        Err(error) => (error.exit(), Some(error)),
    };
    let outcome = Outcome {
        exit,
        report: dispatcher.report(exit),
        error,
        failures: std::mem::take(&mut dispatcher.failures),
    };
    dispatcher.shut_down();
    Ok(outcome)
}

/// What a job asks of the pool.
pub(super) fn pool_params(spec: &Spec, facts: &ModelFacts) -> Params {
    let annotate = spec.annotate.as_ref().map(|_| Annotate::jpeg(&facts.labels));
    Params { annotate, ..spec.inference.params(facts) }
}

/// A mini-batch that is being worked on.
struct Open {
    batch: Arc<Batch>,
    try_number: u64,
    cancelled: Arc<AtomicBool>,
    begun: Option<Instant>,
    lines: Vec<Option<Vec<u8>>>,
    annotated: Vec<Writing>,
    missing: usize,
    tally: Tally,
    /// Its lines are with the committer.
    committing: bool,
}

struct Dispatcher<'a> {
    session: Arc<Session>,
    terminal: &'a mut Terminal,
    annotations: Option<Annotations>,
    strikes: Arc<Strikes>,
    pool: Option<Pool>,
    idle: Arc<Idle>,
    devices: Option<Arc<Devices>>,
    budget: Arc<Budget>,
    events: Receiver<Event>,
    orders: Option<Sender<Order>>,
    commits: Option<Sender<Complete>>,
    told: Receiver<Told>,
    stop_committing: Arc<AtomicBool>,
    /// Mini-batches that the committer has not told about yet.
    committing: usize,
    stop_listing: Arc<AtomicBool>,
    /// Written by the lister: pictures seen, and time taken.
    listed: Arc<AtomicU64>,
    share_listed: Arc<AtomicU64>,
    list_nanos: Arc<AtomicU64>,
    fetch_nanos: Arc<AtomicU64>,

    /// Pictures that may be in open mini-batches before another one is opened.
    open_pictures: usize,
    open: BTreeMap<u64, Open>,
    /// Mini-batches to be worked on before the plan is read on: failed ones of earlier runs.
    first: VecDeque<Arc<Batch>>,
    /// When the next segment of the plan was found not to be there yet.
    looked_for_segment: Option<Instant>,
    again: VecDeque<(Arc<Batch>, u64)>,
    taken_first: BTreeSet<u64>,
    orphans: BTreeSet<u64>,
    /// How often mini-batches have failed, as far as this run knows.
    attempts: BTreeMap<u64, u64>,
    done: BTreeMap<u64, Done>,
    committed_before: u64,
    /// All that this run knows to be committed, by whomever.
    totals: Tally,
    /// What of it is this run's to do: everything, or its shard.
    share: Share,
    given_up: u64,
    adopted: u64,
    faults_in_a_row: u64,
    /// Tries that devices took with them, by mini-batch: no fault of these.
    forgiven: BTreeMap<u64, u64>,

    pictures: u64,
    pictures_ok: u64,
    failures: Vec<Line>,
    spent: Spent,
    write: Duration,
    start: Instant,
    stopping: Option<Instant>,
    /// The success marker is there.
    finished: bool,
    report: Report,
}

impl<'a> Dispatcher<'a> {
    fn start(
        session: &Arc<Session>,
        terminal: &'a mut Terminal,
    ) -> Result<Dispatcher<'a>, JobError> {
        let (spec, facts, shares) = (&session.spec, &session.loaded.facts, &session.shares);
        let engine = &session.loaded.engine;
        let open_pictures = open_pictures(spec, &**engine, shares.workers, session.source.ahead());
        if let Some(note) = &shares.note {
            terminal.warn(note);
        }
        terminal.detail(&format!(
            "model {}, {} classes, {} pixels, {}; {} workers, {} of memory; input {}",
            spec.inference.model.display(),
            facts.labels.len(),
            facts.imgsz,
            facts.numeric_class,
            shares.workers,
            mib(shares.budget),
            session.source.describe(),
        ));
        let strikes = Strikes::open(&spec.output, &session.job.id, session.shard.is_some())?;
        let strikes = Arc::new(strikes);
        strikes.remarks().iter().for_each(|remark| terminal.warn(remark));
        let budget = Budget::new(shares.free, shares.reserve);
        let side = facts.imgsz as usize;
        let pool = Pool::start(engine, shares.workers, 2 * shares.workers, side)?;
        let (event_sender, events) = bounded(64);
        // Never blocks the dispatcher: `open_pictures` bounds what is in it, not the channel.
        let (orders, feeder_orders) = unbounded::<Order>();
        let fetch_nanos = Arc::new(AtomicU64::new(0));
        let feeder = Feeder {
            source: session.source.clone(),
            budget: budget.clone(),
            params: Arc::new(pool_params(spec, facts)),
            labels: facts.labels.clone().into(),
            boxes: spec.inference.boxes,
            max_file: spec.inference.max_file,
            most_ahead: shares.most_ahead(),
            strikes: strikes.clone(),
            work: pool.queue(),
            events: event_sender.clone(),
            fetch_nanos: fetch_nanos.clone(),
            witness: session.job.retry.as_ref().and_then(Retry::witness),
            plan: Some(session.manifest.store().clone()),
        };
        spawn("feeder", move || feeder.run(&feeder_orders))?;
        let stop_listing = Arc::new(AtomicBool::new(false));
        let (listed, list_nanos) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let share_listed = Arc::new(AtomicU64::new(0));
        let lister = Lister {
            session: session.clone(),
            events: event_sender,
            stop: stop_listing.clone(),
            listed: listed.clone(),
            share: share_listed.clone(),
            nanos: list_nanos.clone(),
        };
        spawn("lister", move || lister.run())?;
        let stop_committing = Arc::new(AtomicBool::new(false));
        // Neither holds anybody up: `open_pictures` bounds what is in them.
        let (commits, complete) = unbounded::<Complete>();
        let (tell, told) = unbounded::<Told>();
        let committer = Committer {
            session: session.clone(),
            work: complete,
            told: tell,
            stop: stop_committing.clone(),
        };
        spawn("committer", move || committer.run())?;
        let annotations = Annotations::of(session);
        let report = Report {
            output: spec.output.to_string(),
            annotated: spec.annotate.as_ref().map(Place::to_string),
            workers: shares.workers,
            device: session.loaded.device.to_string(),
            numeric_class: facts.numeric_class.clone(),
            memory_budget: shares.budget,
            ..Report::default()
        };
        Ok(Dispatcher {
            annotations,
            strikes,
            session: session.clone(),
            terminal,
            idle: pool.idle(),
            devices: pool.devices(),
            pool: Some(pool),
            budget,
            events,
            orders: Some(orders),
            commits: Some(commits),
            told,
            stop_committing,
            committing: 0,
            stop_listing,
            listed,
            share_listed,
            list_nanos,
            fetch_nanos,
            open_pictures,
            open: BTreeMap::new(),
            first: VecDeque::new(),
            looked_for_segment: None,
            again: VecDeque::new(),
            taken_first: BTreeSet::new(),
            orphans: BTreeSet::new(),
            attempts: BTreeMap::new(),
            done: BTreeMap::new(),
            committed_before: 0,
            totals: Tally::default(),
            share: Share::default(),
            given_up: 0,
            adopted: 0,
            faults_in_a_row: 0,
            forgiven: BTreeMap::new(),
            pictures: 0,
            pictures_ok: 0,
            failures: Vec::new(),
            spent: Spent::default(),
            write: Duration::ZERO,
            start: Instant::now(),
            stopping: None,
            finished: false,
            report,
        })
    }

    fn manifest(&self) -> &Manifest {
        &self.session.manifest
    }

    fn work(&mut self, signals: &Receiver<i32>) -> Result<Exit, JobError> {
        let session = self.session.clone();
        let store = session.manifest.store().clone();
        if let Some(store) = self.annotations.as_ref().filter(|_| !session.spec.no_lock) {
            store.clear_temporaries()?;
        }
        self.read_state()?;
        let mut chain = Chain::new(&*store);
        let driven = self.drive(&mut chain, signals);
        // An output that is not ours any more gets nothing more.
        let finished = match driven {
            Err(JobError::Lock(_)) => Ok(()),
            _ => self.finish_commits(),
        };
        self.stop_committing.store(true, Ordering::Relaxed);
        let stopped = driven?;
        finished?;
        let summary = chain.summary().clone();
        self.report.plan_complete = chain.ended();
        self.report.planned = summary.pictures;
        self.report.batches = summary.batches;
        self.report.skipped = summary.skipped.clone();
        self.share.batches = session.shard.map_or(summary.batches, |s| s.share(summary.batches));
        if let Some(exit) = stopped {
            return Ok(exit);
        }
        if !chain.ended() || self.share.committed < self.share.batches {
            return Ok(if self.stopping.is_some() { Exit::Interrupted } else { Exit::Failed });
        }
        if session.shard.is_some() {
            self.read_others()?;
        }
        if let Some(&beyond) =
            self.done.keys().chain(&self.orphans).find(|&&id| id >= summary.batches)
        {
            return Err(JobError::Foreign(format!(
                "`{}` holds a part or record of mini-batch {beyond}, and the plan has only {} (move \
                 it away, or use --new to start over)",
                self.report.output, summary.batches
            )));
        }
        if (self.done.len() as u64) < summary.batches {
            // Whoever finds all shares committed puts the marker.
            return Ok(if self.share.failed > 0 { Exit::SomeFailed } else { Exit::Done });
        }
        // Whoever is killed after the marker is not run again to tidy up.
        self.annotations.iter().for_each(Annotations::remove_temporaries);
        failpoint::hit("before_success").map_err(JobError::Internal)?;
        check_hold(&session)?;
        self.manifest().put_success(&success(&session.job, &summary, &self.done)?)?;
        failpoint::hit("after_success").map_err(JobError::Internal)?;
        self.finished = true;
        Ok(if self.totals.failed > 0 { Exit::SomeFailed } else { Exit::Done })
    }

    /// The loop: opens mini-batches and listens, until nothing is left or somebody says stop. An
    /// exit code means that a threshold was passed or that the store or the engine is ill.
    fn drive(
        &mut self,
        chain: &mut Chain<'_>,
        signals: &Receiver<i32>,
    ) -> Result<Option<Exit>, JobError> {
        let session = self.session.clone();
        let mut signals = signals.clone();
        let mut segment: VecDeque<Batch> = VecDeque::new();
        let mut planned = false;
        let mut nothing_more = false;
        self.terminal.begin(self.committed_before);
        loop {
            nothing_more = nothing_more && self.again.is_empty();
            while self.wants_more() && !nothing_more {
                match self.next_batch(chain, &mut segment)? {
                    Some((batch, try_number)) => self.begin(batch, try_number)?,
                    // The lister has not got further yet, or the plan has ended.
                    None if chain.ended() && self.open.is_empty() => nothing_more = true,
                    None => break,
                }
            }
            if self.open.is_empty() {
                let through = chain.ended() && planned && nothing_more;
                if through || self.stopping.is_some() {
                    return Ok(None);
                }
            }
            if self.stopping.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            crossbeam_channel::select! {
                recv(self.events) -> event => match event {
                    Err(_) => return Err(JobError::Internal("all threads ended early".into())),
                    Ok(Event::Planned(result)) => {
                        result?;
                        planned = true;
                        self.looked_for_segment = None;
                        if let Some(reason) = self.threshold(planned) {
                            self.terminal.insist(&reason);
                            return Ok(Some(self.stop_early(Exit::Threshold)));
                        }
                    }
                    Ok(event) => {
                        if let Some(exit) = self.hear(event, planned)? {
                            return Ok(Some(exit));
                        }
                    }
                },
                recv(self.told) -> told => match told {
                    Err(_) => return Err(JobError::Internal("the committer ended early".into())),
                    Ok(told) => {
                        if let Some(exit) = self.told(told)? {
                            return Ok(Some(exit));
                        }
                    }
                },
                recv(signals) -> signal => match signal {
                    Ok(signal) => {
                        self.interrupt(&format!("signal {signal}"), "a second signal");
                    }
                    // Nobody will ever ask to stop.
                    Err(_) => signals = crossbeam_channel::never(),
                },
                default(TICK) => {}
            }
            if let Some(exit) = self.watch_the_clock()? {
                return Ok(Some(exit));
            }
            let (done, failed) = self.progress();
            let batches = chain.summary().batches;
            self.terminal.progress(Standing {
                done,
                failed,
                planned: self.share_listed.load(Ordering::Relaxed),
                complete: planned,
                batches: session.shard.map_or(batches, |shard| shard.share(batches)),
                committed: self.share.committed,
            });
        }
    }

    /// Pictures of this run's share that have a line, and those of them that failed.
    fn progress(&self) -> (u64, u64) {
        let open = self.open.values().map(|open| &open.tally);
        let (ok, failed) = open.fold((self.share.ok, self.share.failed), |(ok, failed), tally| {
            (ok + tally.ok, failed + tally.failed)
        });
        (ok + failed, failed)
    }

    fn report(&mut self, exit: Exit) -> Report {
        let mut report = std::mem::take(&mut self.report);
        report.state = match exit {
            Exit::Done | Exit::SomeFailed if !self.finished => "share done",
            Exit::Done | Exit::SomeFailed => "done",
            Exit::Interrupted => "interrupted",
            Exit::Threshold => "stopped",
            _ => "failed",
        }
        .to_owned();
        report.exit = exit as u8;
        report.reason = self.terminal.reason().map(str::to_owned);
        report.planned = report.planned.max(self.listed.load(Ordering::Relaxed));
        report.ok = self.totals.ok;
        report.failed = self.totals.failed;
        report.committed = self.done.len() as u64;
        report.batches = report.batches.max(report.committed);
        report.shard = self.session.shard.map(|shard| {
            let share = std::mem::take(&mut self.share);
            Share {
                shard: shard.to_string(),
                planned: self.share_listed.load(Ordering::Relaxed),
                ..share
            }
        });
        report.given_up = self.given_up;
        report.adopted = self.adopted;
        report.classes = self.totals.classes.clone();
        report.errors = self.totals.errors.clone();
        report.pictures = self.pictures;
        report.seconds = self.start.elapsed().as_secs_f64();
        report.images_per_second = report.pictures as f64 / report.seconds.max(1e-9);
        let nanos = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64 / 1e9;
        report.stages = Stages {
            list: nanos(&self.list_nanos),
            fetch: nanos(&self.fetch_nanos),
            decode: self.spent.decode.as_secs_f64(),
            letterbox: self.spent.letterbox.as_secs_f64(),
            infer: self.spent.infer.as_secs_f64(),
            boxes: self.spent.boxes.as_secs_f64(),
            draw: self.spent.draw.as_secs_f64(),
            write: self.write.as_secs_f64(),
            idle: self.idle.queue().as_secs_f64(),
            memory: self.idle.budget().as_secs_f64(),
            devices: self.idle.devices().as_secs_f64(),
        };
        report.devices = self.devices.as_ref().map(|devices| devices.so_far());
        report.store = self.session.s3().map(|s3| s3.traffic());
        report.peak_memory = peak();
        report.judge();
        report
    }

    /// Lets the threads go. None of them holds anything that the next run needs.
    fn shut_down(mut self) {
        self.stop_listing.store(true, Ordering::Relaxed);
        self.orders = None;
        self.stop_committing.store(true, Ordering::Relaxed);
        self.commits = None;
        self.budget.close();
        drop(self.events);
        if let Some(store) = &self.annotations {
            store.remove_temporaries();
        }
        if let Some(pool) = self.pool.take() {
            pool.stop(Duration::from_secs(1));
        }
        let lock = self.session.lock.as_ref();
        let alone = lock.map_or(Ok(self.session.shard.is_none()), Hold::leave);
        // Where that cannot be told, an empty file stays: it means the same as none.
        if alone.unwrap_or(false) {
            self.strikes.tidy();
        }
        let _ = lock.map(Hold::open_door);
    }
}

/// The marker for a plan whose every mini-batch is committed.
fn success(
    job: &Job,
    plan: &super::plan::PlanSummary,
    done: &BTreeMap<u64, Done>,
) -> Result<Success, JobError> {
    let digests = done.iter().map(|(id, done)| (*id, done.sha256.as_str()));
    Ok(Success {
        schema: crate::job::manifest::MANIFEST_SCHEMA.to_owned(),
        job: job.id.clone(),
        planned: plan.pictures,
        ok: done.values().map(|done| done.ok).sum(),
        failed: done.values().map(|done| done.failed).sum(),
        parts: plan.batches,
        plan_sha256: plan.sha256.clone(),
        parts_sha256: parts_digest(job.compress()?, digests),
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), JobError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| JobError::Internal(format!("cannot start the {name} thread: {error}")))
}
