//! The dispatcher: the one owner of manifest, parts and terminal.
//!
//! Lister, feeder and workers only send it events. It keeps a bounded number of mini-batches open,
//! puts their lines back in plan order, commits each when its last line is there, and decides when
//! to stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::chain::Chain;
use super::events::{Answer, Event};
use super::exit::{Exit, JobError};
use super::feeder::{Feeder, Order};
use super::fingerprint::ModelFacts;
use super::lister::Lister;
use super::manifest::{Done, Job, Manifest, Success, parts_digest};
use super::memory::{mib, peak};
use super::plan::Batch;
use super::report::{Report, Stages};
use super::session::{Session, open_pictures};
use super::spec::{MaxFailures, Spec};
use super::tally::Tally;
use super::terminal::Terminal;
use crate::pool::{Budget, Idle, Params, Pool, Spent};
use crate::store::{LocalStore, Store, annotated_name};
use crate::yolo::NmsOptions;

/// A mini-batch is tried so often in one run.
const TRIES: u64 = 3;

/// So many faults in a row, without a commit between them, mean that the store or the engine is ill.
const FAULTS_IN_A_ROW: u64 = 5;

/// If the first so many pictures all fail, something is wrong with all of them.
const FAIL_FAST: u64 = 20;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How a run came out.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub exit: Exit,
    /// The summary.
    pub report: Report,
}

/// Works on a job until it is done, stopped or interrupted.
///
/// `signals` gives the number of a signal that asks to stop; the sender of a second one exits.
///
/// # Errors
/// When the job cannot go on at all; what is committed stays committed.
pub fn run(
    session: Session,
    signals: &Receiver<i32>,
    terminal: &mut Terminal,
) -> Result<Outcome, JobError> {
    let session = Arc::new(session);
    let mut dispatcher = Dispatcher::start(&session, terminal)?;
    let result = dispatcher.work(signals);
    dispatcher.terminal.end();
    let outcome = result.map(|exit| Outcome { exit, report: dispatcher.report(exit) });
    dispatcher.shut_down();
    outcome
}

/// What a job asks of the pool.
pub(super) fn pool_params(spec: &Spec, facts: &ModelFacts) -> Params {
    Params {
        limits: spec.limits,
        imgsz: facts.imgsz,
        square: spec.square,
        nms: NmsOptions {
            conf: spec.conf as f32,
            iou: spec.iou as f32,
            max_det: spec.max_det,
            max_nms: 30_000,
            agnostic: spec.agnostic,
            classes: facts.classes.clone(),
        },
        annotate: spec.annotate.is_some().then(|| facts.labels.clone().into()),
    }
}

/// A mini-batch that is being worked on.
struct Open {
    batch: Arc<Batch>,
    try_number: u64,
    cancelled: Arc<AtomicBool>,
    begun: Option<Instant>,
    lines: Vec<Option<Vec<u8>>>,
    missing: usize,
    tally: Tally,
}

struct Dispatcher<'a> {
    session: Arc<Session>,
    terminal: &'a mut Terminal,
    annotations: Option<LocalStore>,
    pool: Option<Pool>,
    idle: Arc<Idle>,
    budget: Arc<Budget>,
    events: Receiver<Event>,
    orders: Option<Sender<Order>>,
    stop_listing: Arc<AtomicBool>,
    /// Written by the lister: pictures seen, and time taken.
    listed: Arc<AtomicU64>,
    list_nanos: Arc<AtomicU64>,
    fetch_nanos: Arc<AtomicU64>,

    /// Pictures that may be in open mini-batches before another one is opened.
    open_pictures: usize,
    open: BTreeMap<u64, Open>,
    /// Mini-batches to be worked on before the plan is read on: failed ones of earlier runs.
    first: VecDeque<Arc<Batch>>,
    again: VecDeque<(Arc<Batch>, u64)>,
    taken_first: BTreeSet<u64>,
    orphans: BTreeSet<u64>,
    done: BTreeMap<u64, Done>,
    committed_before: u64,
    totals: Tally,
    given_up: u64,
    adopted: u64,
    faults_in_a_row: u64,
    last_fault: String,

    pictures: u64,
    pictures_ok: u64,
    spent: Spent,
    write: Duration,
    start: Instant,
    stopping: Option<Instant>,
    report: Report,
}

impl<'a> Dispatcher<'a> {
    fn start(
        session: &Arc<Session>,
        terminal: &'a mut Terminal,
    ) -> Result<Dispatcher<'a>, JobError> {
        let (spec, facts, shares) = (&session.spec, &session.loaded.facts, &session.shares);
        let engine = &session.loaded.engine;
        let open_pictures = open_pictures(spec, shares.workers);
        if let Some(note) = &shares.note {
            terminal.warn(note);
        }
        terminal.detail(&format!(
            "model {}, {} classes, {} pixels, {}; {} workers, {} of memory; input {}",
            spec.model.display(),
            facts.labels.len(),
            facts.imgsz,
            facts.numeric_class,
            shares.workers,
            mib(shares.budget),
            session.source.describe(),
        ));
        let budget = Budget::new(shares.free, shares.reserve);
        let pool =
            Pool::start(engine, shares.workers, 2 * shares.workers).map_err(JobError::Internal)?;
        let (event_sender, events) = bounded(64);
        // Never blocks the dispatcher: `open_pictures` bounds what is in it, not the channel.
        let (orders, feeder_orders) = unbounded::<Order>();
        let fetch_nanos = Arc::new(AtomicU64::new(0));
        let feeder = Feeder {
            source: session.source.clone(),
            budget: budget.clone(),
            params: Arc::new(pool_params(spec, facts)),
            labels: facts.labels.clone().into(),
            boxes: spec.boxes,
            max_file: spec.max_file,
            work: pool.queue(),
            events: event_sender.clone(),
            fetch_nanos: fetch_nanos.clone(),
            witness: None,
        };
        spawn("feeder", move || feeder.run(&feeder_orders))?;
        let stop_listing = Arc::new(AtomicBool::new(false));
        let (listed, list_nanos) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let lister = Lister {
            session: session.clone(),
            events: event_sender,
            stop: stop_listing.clone(),
            listed: listed.clone(),
            nanos: list_nanos.clone(),
        };
        spawn("lister", move || lister.run())?;
        let report = Report {
            output: spec.output.display().to_string(),
            annotated: spec.annotate.as_ref().map(|dir| dir.display().to_string()),
            workers: shares.workers,
            numeric_class: facts.numeric_class.clone(),
            memory_budget: shares.budget,
            ..Report::default()
        };
        Ok(Dispatcher {
            annotations: spec.annotate.as_ref().map(|dir| LocalStore::new(dir, ".haul-tmp")),
            session: session.clone(),
            terminal,
            idle: pool.idle(),
            pool: Some(pool),
            budget,
            events,
            orders: Some(orders),
            stop_listing,
            listed,
            list_nanos,
            fetch_nanos,
            open_pictures,
            open: BTreeMap::new(),
            first: VecDeque::new(),
            again: VecDeque::new(),
            taken_first: BTreeSet::new(),
            orphans: BTreeSet::new(),
            done: BTreeMap::new(),
            committed_before: 0,
            totals: Tally::default(),
            given_up: 0,
            adopted: 0,
            faults_in_a_row: 0,
            last_fault: String::new(),
            pictures: 0,
            pictures_ok: 0,
            spent: Spent::default(),
            write: Duration::ZERO,
            start: Instant::now(),
            stopping: None,
            report,
        })
    }

    fn manifest(&self) -> &Manifest {
        &self.session.manifest
    }

    fn work(&mut self, signals: &Receiver<i32>) -> Result<Exit, JobError> {
        let session = self.session.clone();
        let store = session.manifest.store().clone();
        self.read_state()?;
        let mut chain = Chain::new(&*store);
        let stopped = self.drive(&mut chain, signals)?;
        let summary = chain.summary().clone();
        self.report.plan_complete = chain.ended();
        self.report.planned = summary.pictures;
        self.report.batches = summary.batches;
        self.report.skipped = summary.skipped.clone();
        if let Some(exit) = stopped {
            return Ok(exit);
        }
        if !chain.ended() || (self.done.len() as u64) < summary.batches {
            return Ok(if self.stopping.is_some() { Exit::Interrupted } else { Exit::Failed });
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
        self.manifest().put_success(&success(&session.job, &summary, &self.done)?)?;
        Ok(if self.totals.failed > 0 { Exit::SomeFailed } else { Exit::Done })
    }

    /// The loop: opens mini-batches and listens, until nothing is left or somebody says stop. An
    /// exit code means that a threshold was passed or that the store or the engine is ill.
    fn drive(
        &mut self,
        chain: &mut Chain<'_>,
        signals: &Receiver<i32>,
    ) -> Result<Option<Exit>, JobError> {
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
                recv(signals) -> signal => match signal {
                    Ok(signal) => self.interrupt(signal),
                    // Nobody will ever ask to stop.
                    Err(_) => signals = crossbeam_channel::never(),
                },
                default(TICK) => {}
            }
            self.watch_the_clock()?;
            let (done, failed) = self.progress();
            let listed = self.listed.load(Ordering::Relaxed).max(chain.summary().pictures);
            self.terminal.progress(done, failed, listed, planned);
        }
    }

    /// What earlier runs have left: records, parts without one, and failures to be tried first.
    fn read_state(&mut self) -> Result<(), JobError> {
        let session = self.session.clone();
        for id in session.manifest.records()? {
            let record = session.manifest.record(&session.job, id)?;
            self.add_done(record);
        }
        self.committed_before = self.totals.ok + self.totals.failed;
        self.orphans = session
            .manifest
            .parts(&session.job)?
            .into_iter()
            .filter(|id| !self.done.contains_key(id))
            .collect();
        let failed: BTreeSet<u64> = session
            .manifest
            .failed()?
            .into_iter()
            .filter(|id| !self.done.contains_key(id))
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        let store = session.manifest.store().clone();
        let mut chain = Chain::new(&*store);
        while let Some(segment) = chain.next_segment()? {
            let wanted = segment.batches.into_iter().filter(|batch| failed.contains(&batch.id));
            for batch in wanted {
                self.taken_first.insert(batch.id);
                self.first.push_back(Arc::new(batch));
            }
            // Enough to be "first"; the rest has its turn in plan order.
            if self.first.len() >= super::plan::SEGMENT_BATCHES {
                break;
            }
        }
        Ok(())
    }

    fn add_done(&mut self, record: super::manifest::Record) {
        let super::manifest::Record { batch, ok, failed, sha256, classes, errors, .. } = record;
        self.totals.merge(Tally { ok, failed, classes, errors });
        self.done.insert(batch, Done { ok, failed, sha256 });
    }

    fn wants_more(&self) -> bool {
        let open: usize = self.open.values().map(|open| open.batch.objects.len()).sum();
        self.stopping.is_none() && open < self.open_pictures
    }

    /// The next mini-batch that needs work; adopts on the way what a crash left without a record.
    fn next_batch(
        &mut self,
        chain: &mut Chain<'_>,
        segment: &mut VecDeque<Batch>,
    ) -> Result<Option<(Arc<Batch>, u64)>, JobError> {
        loop {
            let (batch, planned) = if let Some(batch) = self.first.pop_front() {
                (batch, false)
            } else if let Some(batch) = segment.pop_front() {
                (Arc::new(batch), true)
            } else if let Some(next) = chain.next_segment()? {
                segment.extend(next.batches);
                continue;
            } else if chain.ended() {
                // Second tries come last: what ails the store may have passed by then.
                return Ok(self.again.pop_front());
            } else {
                return Ok(None);
            };
            if self.done.contains_key(&batch.id)
                || (planned && self.taken_first.contains(&batch.id))
            {
                continue;
            }
            if self.orphans.remove(&batch.id) {
                let record = self.manifest().adopt(&self.session.job, &batch)?;
                if let Some(record) = record {
                    self.terminal.detail(&format!("mini-batch {}: adopted its part", batch.id));
                    self.adopted += 1;
                    self.add_done(record);
                    continue;
                }
            }
            return Ok(Some((batch, 1)));
        }
    }

    fn begin(&mut self, batch: Arc<Batch>, try_number: u64) -> Result<(), JobError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let count = batch.objects.len();
        let order = Order { batch: batch.clone(), try_number, cancelled: cancelled.clone() };
        let orders = self.orders.as_ref().expect("orders end with the run. This is a bug.");
        orders.send(order).map_err(|_| JobError::Internal("the feeder ended early".into()))?;
        let open = Open {
            try_number,
            cancelled,
            begun: None,
            lines: vec![None; count],
            missing: count,
            tally: Tally::default(),
            batch,
        };
        self.open.insert(open.batch.id, open);
        Ok(())
    }

    /// Takes in an event; an exit code means that a threshold was passed or the store is ill.
    fn hear(&mut self, event: Event, planned: bool) -> Result<Option<Exit>, JobError> {
        match event {
            Event::Segment | Event::Planned(_) => {}
            Event::Begun { batch, try_number } => {
                if let Some(open) = self.open.get_mut(&batch).filter(|o| o.try_number == try_number)
                {
                    open.begun = Some(Instant::now());
                }
            }
            Event::Fault { batch, try_number, reason } => {
                if self.open.get(&batch).is_some_and(|open| open.try_number == try_number) {
                    self.fault(batch, &reason)?;
                    if self.faults_in_a_row >= FAULTS_IN_A_ROW {
                        self.terminal.insist(&format!("stopping: {}", self.last_fault));
                        self.given_up += self.again.len() as u64 + self.open.len() as u64;
                        return Ok(Some(self.stop_early(Exit::Failed)));
                    }
                }
            }
            Event::Answer(answer) => return self.answer(*answer, planned),
        }
        Ok(None)
    }

    fn answer(&mut self, answer: Answer, planned: bool) -> Result<Option<Exit>, JobError> {
        let current = |open: &&mut Open| open.try_number == answer.try_number;
        let Some(open) = self.open.get_mut(&answer.batch).filter(current) else { return Ok(None) };
        if open.lines[answer.index].replace(answer.line).is_some() {
            return Err(JobError::Internal("a picture was answered twice. This is a bug.".into()));
        }
        open.missing -= 1;
        let complete = open.missing == 0;
        let failed = answer.tally.failed > 0;
        open.tally.merge(answer.tally);
        self.pictures += 1;
        self.pictures_ok += u64::from(!failed);
        self.spent.decode += answer.spent.decode;
        self.spent.letterbox += answer.spent.letterbox;
        self.spent.infer += answer.spent.infer;
        self.spent.boxes += answer.spent.boxes;
        self.spent.draw += answer.spent.draw;
        if let (Some(store), Some((key, jpeg))) = (&self.annotations, &answer.annotated) {
            let start = Instant::now();
            store.replace(&annotated_name(key), jpeg)?;
            self.write += start.elapsed();
        }
        if failed && let Some(reason) = self.threshold(planned) {
            self.terminal.insist(&reason);
            return Ok(Some(self.stop_early(Exit::Threshold)));
        }
        if complete {
            self.commit(answer.batch)?;
        }
        Ok(None)
    }

    fn commit(&mut self, id: u64) -> Result<(), JobError> {
        let Some(open) = self.open.remove(&id) else { return Ok(()) };
        let start = Instant::now();
        let mut part = Vec::with_capacity(open.lines.iter().flatten().map(Vec::len).sum());
        open.lines.into_iter().flatten().for_each(|line| part.extend(line));
        let seconds = open.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let session = self.session.clone();
        let part = session.job.compress()?.pack(part).map_err(|error| {
            JobError::Internal(format!("cannot compress the part of mini-batch {id}: {error}"))
        })?;
        let record = session.manifest.new_record(&session.job, id, &part, open.tally, seconds)?;
        session.manifest.commit(&session.job, &part, &record)?;
        self.write += start.elapsed();
        self.faults_in_a_row = 0;
        self.terminal.detail(&format!(
            "mini-batch {id}: committed, {} ok, {} failed, {seconds:.1} s",
            record.ok, record.failed
        ));
        self.add_done(record);
        Ok(())
    }

    /// A try at a mini-batch has failed: no part, no record, but a file that says why.
    fn fault(&mut self, id: u64, reason: &str) -> Result<(), JobError> {
        let Some(open) = self.open.remove(&id) else { return Ok(()) };
        open.cancelled.store(true, Ordering::Relaxed);
        self.faults_in_a_row += 1;
        self.last_fault = reason.to_owned();
        self.manifest().put_failure(&self.session.job, id, reason)?;
        if open.try_number < TRIES {
            self.terminal.detail(&format!("mini-batch {id}: {reason}; it will be tried again"));
            self.again.push_back((open.batch, open.try_number + 1));
        } else {
            self.terminal.warn(&format!("mini-batch {id} is given up in this run: {reason}"));
            self.given_up += 1;
        }
        Ok(())
    }

    /// Failed pictures, committed or not yet.
    fn failed(&self) -> u64 {
        self.totals.failed + self.open.values().map(|open| open.tally.failed).sum::<u64>()
    }

    fn threshold(&self, planned: bool) -> Option<String> {
        let failed = self.failed();
        let total = self.listed.load(Ordering::Relaxed);
        match self.session.spec.max_failures {
            Some(MaxFailures::Count(most)) if failed > most => {
                return Some(format!(
                    "stopping: {failed} pictures failed, --max-failures is {most}"
                ));
            }
            // A share of what is not known yet cannot be judged.
            Some(MaxFailures::Share(most)) if planned && failed as f64 > most * total as f64 => {
                return Some(format!(
                    "stopping: {failed} of {total} pictures failed, --max-failures is {} %",
                    most * 100.0
                ));
            }
            Some(MaxFailures::Share(most)) if most >= 1.0 => return None,
            _ => {}
        }
        let none_ok = self.pictures_ok == 0 && self.totals.ok == 0;
        (none_ok && self.pictures >= FAIL_FAST).then(|| {
            format!(
                "stopping: the first {FAIL_FAST} pictures all failed, so something is wrong with all \
                 of them (--max-failures 100% goes on all the same)"
            )
        })
    }

    fn stop_early(&mut self, exit: Exit) -> Exit {
        for open in self.open.values() {
            open.cancelled.store(true, Ordering::Relaxed);
        }
        self.open.clear();
        exit
    }

    /// The first signal: finish the mini-batches that fit into the grace, drop the others.
    fn interrupt(&mut self, signal: i32) {
        if self.stopping.is_some() {
            return;
        }
        let grace = self.session.spec.grace;
        let rate = self.pictures as f64 / self.start.elapsed().as_secs_f64();
        let mut ahead = 0;
        let mut dropped = 0;
        self.open.retain(|_, open| {
            // Work goes in order, so an open mini-batch waits for those before it.
            ahead += open.missing;
            let keep = ahead as f64 / rate <= grace.as_secs_f64();
            if !keep {
                ahead -= open.missing;
                open.cancelled.store(true, Ordering::Relaxed);
                dropped += 1;
            }
            keep
        });
        self.stopping = Some(Instant::now() + grace);
        self.again.clear();
        self.stop_listing.store(true, Ordering::Relaxed);
        self.terminal.say(&format!(
            "signal {signal}: finishing {} of {} open mini-batches and leaving the rest for the next \
             run (a second signal stops at once)",
            self.open.len(),
            self.open.len() + dropped
        ));
    }

    fn watch_the_clock(&mut self) -> Result<(), JobError> {
        let limit = self.session.spec.batch_timeout;
        let late = |open: &Open| open.begun.is_some_and(|begun| begun.elapsed() > limit);
        let late: Vec<u64> = self.open.iter().filter(|(_, o)| late(o)).map(|(id, _)| *id).collect();
        for id in late {
            let limit = humantime::format_duration(limit);
            self.fault(id, &format!("it took longer than --batch-timeout {limit}"))?;
        }
        Ok(())
    }

    fn progress(&self) -> (u64, u64) {
        let open: u64 = self.open.values().map(|open| open.tally.ok + open.tally.failed).sum();
        (self.totals.ok + self.totals.failed + open, self.failed())
    }

    fn report(&mut self, exit: Exit) -> Report {
        let mut report = std::mem::take(&mut self.report);
        report.state = match exit {
            Exit::Done | Exit::SomeFailed => "done",
            Exit::Interrupted => "interrupted",
            Exit::Threshold => "stopped",
            _ => "failed",
        }
        .to_owned();
        report.exit = exit as u8;
        report.planned = report.planned.max(self.listed.load(Ordering::Relaxed));
        report.ok = self.totals.ok;
        report.failed = self.totals.failed;
        report.committed = self.done.len() as u64;
        report.batches = report.batches.max(report.committed);
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
        };
        report.peak_memory = peak();
        report.judge();
        report
    }

    /// Lets the threads go. None of them holds anything that the next run needs.
    fn shut_down(mut self) {
        self.stop_listing.store(true, Ordering::Relaxed);
        self.orders = None;
        self.budget.close();
        drop(self.events);
        if let Some(store) = &self.annotations {
            store.remove_temporaries();
        }
        if let Some(pool) = self.pool.take() {
            pool.stop(Duration::from_secs(1));
        }
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
        schema: super::manifest::MANIFEST_SCHEMA.to_owned(),
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
