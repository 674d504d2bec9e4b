//! Mini-batches from the plan to their commit: opened, filled line by line, committed or tried again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::committer::{Committed, Complete, Told, check_hold};
use super::{Dispatcher, Open};
use crate::failpoint;
use crate::job::chain::Chain;
use crate::job::events::{Answer, Event};
use crate::job::exit::{Exit, JobError};
use crate::job::feeder::Order;
use crate::job::line::Line;
use crate::job::manifest::{Done, Record, record_names};
use crate::job::notices::MOST_NAMED;
use crate::job::plan::{Batch, SEGMENT_BATCHES};
use crate::job::tally::Tally;

/// A mini-batch is tried so often in one run.
const TRIES: u64 = 3;

/// So long nobody looks again for a segment of the plan that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// So many faults in a row, without a commit between them, mean that the store or the engine is ill.
const FAULTS_IN_A_ROW: u64 = 5;

/// The names of so many records are held at once while they are read.
const NAMES_AT_ONCE: usize = 1024;

impl Dispatcher<'_> {
    /// What earlier runs have left: records, parts without one, and failures to be tried first.
    pub(super) fn read_state(&mut self) -> Result<(), JobError> {
        let session = self.session.clone();
        self.read_records(&session.manifest.records()?)?;
        self.committed_before = self.share.ok + self.share.failed;
        self.orphans = session
            .manifest
            .parts(&session.job)?
            .into_iter()
            .filter(|id| !self.done.contains_key(id))
            .collect();
        self.attempts = session.manifest.attempts()?;
        let failed: BTreeSet<u64> = self
            .attempts
            .keys()
            .copied()
            .filter(|&id| session.has(id) && !self.done.contains_key(&id))
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
            if self.first.len() >= SEGMENT_BATCHES {
                break;
            }
        }
        Ok(())
    }

    fn read_records(&mut self, ids: &[u64]) -> Result<(), JobError> {
        let session = self.session.clone();
        for some in ids.chunks(NAMES_AT_ONCE) {
            for record in session.manifest.read_records(&session.job, some, &record_names(some)) {
                self.add_done(record?);
            }
        }
        Ok(())
    }

    pub(super) fn add_done(&mut self, record: Record) {
        let Record { batch, ok, failed, sha256, classes, errors, .. } = record;
        if self.session.has(batch) {
            self.share.ok += ok;
            self.share.failed += failed;
            self.share.committed += 1;
        }
        self.totals.merge(Tally { ok, failed, classes, errors });
        self.done.insert(batch, Done { ok, failed, sha256 });
    }

    /// Reads what other shards have committed since the start. The last of them finds everything:
    /// each looks here only after its own last commit.
    pub(super) fn read_others(&mut self) -> Result<(), JobError> {
        let mut ids = self.manifest().records()?;
        ids.retain(|id| !self.done.contains_key(id));
        self.read_records(&ids)
    }

    pub(super) fn wants_more(&self) -> bool {
        let open: usize = self.open.values().map(|open| open.batch.objects.len()).sum();
        self.stopping.is_none() && open < self.open_pictures
    }

    /// Whether there may be a segment that was not there a moment ago. In a bucket it takes a request
    /// to find out, so that is asked when the lister says so, and now and then.
    fn segment_is_due(&mut self) -> bool {
        match self.looked_for_segment {
            Some(then) if then.elapsed() < LOOK_AGAIN => return false,
            Some(_) => self.looked_for_segment = None,
            None => {}
        }
        true
    }

    /// The next mini-batch that needs work; adopts on the way what a crash left without a record.
    pub(super) fn next_batch(
        &mut self,
        chain: &mut Chain<'_>,
        segment: &mut VecDeque<Batch>,
    ) -> Result<Option<(Arc<Batch>, u64)>, JobError> {
        loop {
            let (batch, planned) = if let Some(batch) = self.first.pop_front() {
                (batch, false)
            } else if let Some(batch) = segment.pop_front() {
                (Arc::new(batch), true)
            } else if self.segment_is_due()
                && let Some(next) = chain.next_segment()?
            {
                self.looked_for_segment = None;
                segment.extend(next.batches);
                continue;
            } else if chain.ended() {
                // Second tries come last: what ails the store may have passed by then.
                return Ok(self.again.pop_front());
            } else {
                self.looked_for_segment.get_or_insert_with(Instant::now);
                return Ok(None);
            };
            if !self.session.has(batch.id)
                || self.done.contains_key(&batch.id)
                || (planned && self.taken_first.contains(&batch.id))
            {
                continue;
            }
            if self.orphans.remove(&batch.id) {
                check_hold(&self.session)?;
                let attempt = self.next_attempt(batch.id);
                let record = self.manifest().adopt(&self.session.job, &batch, attempt)?;
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

    pub(super) fn begin(&mut self, batch: Arc<Batch>, try_number: u64) -> Result<(), JobError> {
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
            annotated: Vec::new(),
            missing: count,
            tally: Tally::default(),
            committing: false,
            batch,
        };
        self.open.insert(open.batch.id, open);
        Ok(())
    }

    /// Takes in an event; an exit code means that a threshold was passed or the store is ill.
    pub(super) fn hear(&mut self, event: Event, planned: bool) -> Result<Option<Exit>, JobError> {
        match event {
            Event::Segment | Event::Planned(_) => self.looked_for_segment = None,
            Event::Begun { batch, try_number } => {
                if let Some(open) = self.open.get_mut(&batch).filter(|o| o.try_number == try_number)
                {
                    open.begun = Some(Instant::now());
                }
            }
            Event::Fault { batch, try_number, reason } => {
                if self.open.get(&batch).is_some_and(|open| open.try_number == try_number) {
                    return self.fault(batch, &reason);
                }
            }
            Event::Lost { batch, try_number, reason } => {
                if self.open.get(&batch).is_some_and(|open| open.try_number == try_number) {
                    // Each device is lost once, so this comes to an end without being counted.
                    *self.forgiven.entry(batch).or_default() += 1;
                    self.try_failed(batch, &reason)?;
                }
            }
            Event::Exhausted { batch, try_number, reason } => {
                if self.open.get(&batch).is_some_and(|open| open.try_number == try_number) {
                    self.exhausted(batch, &reason);
                }
            }
            Event::Answer(answer) => return self.answer(*answer, planned),
        }
        Ok(None)
    }

    pub(super) fn answer(
        &mut self,
        answer: Answer,
        planned: bool,
    ) -> Result<Option<Exit>, JobError> {
        let current = |open: &&mut Open| open.try_number == answer.try_number;
        let Some(open) = self.open.get_mut(&answer.batch).filter(current) else { return Ok(None) };
        if answer.tally.failed > 0 {
            self.terminal.picture_failed(&answer.line);
            if self.failures.len() < MOST_NAMED {
                self.failures.extend(Line::parse(&answer.line));
            }
        }
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
        if let (Some(annotations), Some((key, jpeg))) = (&self.annotations, answer.annotated) {
            let start = Instant::now();
            let keep = Box::new(answer._ticket);
            let store = annotations.store();
            open.annotated.push(store.begin_replace(&annotations.name(&key), jpeg, keep)?);
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

    /// Hands over a mini-batch whose lines are all there, to be committed. Until that is done it
    /// counts as open.
    pub(super) fn commit(&mut self, id: u64) -> Result<(), JobError> {
        failpoint::hit("commit").map_err(JobError::Internal)?;
        let attempt = self.next_attempt(id);
        let Some(open) = self.open.get_mut(&id) else { return Ok(()) };
        open.committing = true;
        let complete = Complete {
            batch: id,
            attempt,
            lines: std::mem::take(&mut open.lines),
            annotated: std::mem::take(&mut open.annotated),
            tally: open.tally.clone(),
            seconds: open.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()),
        };
        self.committing += 1;
        let commits = self.commits.as_ref().expect("commits end with the run. This is a bug.");
        // If the committer has ended, it has said why.
        let _ = commits.send(complete);
        Ok(())
    }

    /// Hears what became of it. An exit code is [`Dispatcher::fault`]'s.
    pub(super) fn told(&mut self, told: Told) -> Result<Option<Exit>, JobError> {
        let Committed { batch, took, result } = match told {
            Told::Committed(committed) => committed,
            Told::Lost(error) => return Err(error),
        };
        self.committing -= 1;
        self.write += took;
        let record = match result {
            // What was written is in doubt, the job is not: it is done again, and found or written.
            Err(error) if error.passes() => return self.fault(batch, &error.to_string()),
            other => other?,
        };
        // A run that is being stopped has forgotten it already.
        self.open.remove(&batch);
        self.faults_in_a_row = 0;
        self.terminal.detail(&format!(
            "mini-batch {batch}: committed, {} ok, {} failed, {:.1} s",
            record.ok, record.failed, record.seconds
        ));
        self.add_done(record);
        Ok(None)
    }

    fn next_attempt(&self, batch: u64) -> u64 {
        self.attempts.get(&batch).map_or(1, |failed| failed + 1)
    }

    /// A try at a mini-batch has failed. Too many of them in a row give the exit code to stop with.
    pub(super) fn fault(&mut self, id: u64, reason: &str) -> Result<Option<Exit>, JobError> {
        if !self.try_failed(id, reason)? {
            return Ok(None);
        }
        self.faults_in_a_row += 1;
        if self.faults_in_a_row < FAULTS_IN_A_ROW {
            return Ok(None);
        }
        self.terminal.insist(&format!("stopping: {reason}"));
        self.given_up += self.again.len() as u64 + self.open.len() as u64;
        Ok(Some(self.stop_early(Exit::Failed)))
    }

    /// No record, but a file that says why; and another try, if it has not had enough of them. Says
    /// whether the mini-batch was open at all.
    fn try_failed(&mut self, id: u64, reason: &str) -> Result<bool, JobError> {
        let Some(open) = self.open.remove(&id) else { return Ok(false) };
        open.cancelled.store(true, Ordering::Relaxed);
        let attempt = self.next_attempt(id);
        match self.manifest().put_failure(&self.session.job, id, attempt, reason) {
            // What ails the output may be what there is to tell.
            Err(error) if error.passes() => self.terminal.warn(&error.to_string()),
            attempt => drop(self.attempts.insert(id, attempt?)),
        }
        let tries = open.try_number - self.forgiven.get(&id).copied().unwrap_or(0);
        self.terminal.try_failed(id, open.try_number, tries >= TRIES, reason);
        if tries < TRIES {
            self.terminal.detail(&format!("mini-batch {id}: {reason}; it will be tried again"));
            self.again.push_back((open.batch, open.try_number + 1));
        } else {
            self.terminal.warn(&format!("mini-batch {id} is given up in this run: {reason}"));
            self.given_up += 1;
        }
        Ok(true)
    }
}
