//! When a run stops before it is through: thresholds, signals, time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Dispatcher, Open};
use crate::job::exit::{Exit, JobError};
use crate::job::spec::MaxFailures;

/// If the first so many pictures all fail, something is wrong with all of them.
const FAIL_FAST: u64 = 20;

/// How long a run that ends waits for what is being committed …
const PATIENCE: Duration = Duration::from_secs(30);

/// … and at least, where the grace is over.
const LEAST_PATIENCE: Duration = Duration::from_secs(3);

impl Dispatcher<'_> {
    /// Failed pictures, committed or not yet.
    pub(super) fn failed(&self) -> u64 {
        self.totals.failed + self.open.values().map(|open| open.tally.failed).sum::<u64>()
    }

    pub(super) fn threshold(&self, planned: bool) -> Option<String> {
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
        // What failed before may well fail again, and says nothing about all the others.
        let first_try = self.session.spec.retry.is_none();
        let none_ok = first_try && self.pictures_ok == 0 && self.totals.ok == 0;
        (none_ok && self.pictures >= FAIL_FAST).then(|| {
            format!(
                "stopping: the first {FAIL_FAST} pictures all failed, so something is wrong with all \
                 of them (--max-failures 100% goes on all the same)"
            )
        })
    }

    pub(super) fn stop_early(&mut self, exit: Exit) -> Exit {
        for open in self.open.values() {
            open.cancelled.store(true, Ordering::Relaxed);
        }
        self.open.clear();
        exit
    }

    /// The first signal, or the end of --max-runtime: finish the mini-batches that fit into the
    /// grace, drop the others.
    pub(super) fn interrupt(&mut self, reason: &str, another: &str) {
        if self.stopping.is_some() {
            // A signal after the end of --max-runtime: a second one.
            self.stopping = Some(Instant::now());
            return;
        }
        let grace = self.session.spec.grace;
        let rate = self.pictures as f64 / self.start.elapsed().as_secs_f64();
        let mut ahead = 0;
        let mut dropped = 0;
        self.open.retain(|_, open| {
            // Work goes in order, so an open mini-batch waits for those before it.
            ahead += open.missing;
            // What is being committed cannot be taken back.
            let keep = open.committing || ahead as f64 / rate <= grace.as_secs_f64();
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
            "{reason}: finishing {} of {} open mini-batches and leaving the rest for the next run \
             ({another} stops at once)",
            self.open.len(),
            self.open.len() + dropped
        ));
    }

    /// A device has run out of memory in the middle of a mini-batch. Nobody is at fault, and it may be
    /// free again another time: the run ends as if by a signal, without that mini-batch.
    pub(super) fn exhausted(&mut self, id: u64, reason: &str) {
        if let Some(open) = self.open.remove(&id) {
            open.cancelled.store(true, Ordering::Relaxed);
        }
        if self.stopping.is_none() {
            self.terminal.insist(&format!("stopping: {reason}"));
            self.interrupt("out of memory", "a signal");
        }
    }

    /// Waits for what is being committed, whatever has ended the run: each of these mini-batches is
    /// complete. Not for ever, though: what is left undone, the next run does.
    pub(super) fn finish_commits(&mut self) -> Result<(), JobError> {
        let now = Instant::now();
        let until = self.stopping.map_or(now + PATIENCE, |grace| grace.max(now + LEAST_PATIENCE));
        while self.committing > 0 {
            let Ok(told) = self.told.recv_deadline(until) else { break };
            self.told(told)?;
        }
        Ok(())
    }

    pub(super) fn watch_the_clock(&mut self) -> Result<Option<Exit>, JobError> {
        if self.stopping.is_none()
            && let Some(limit) = self.session.spec.max_runtime
            && self.start.elapsed() >= limit
        {
            let limit = humantime::format_duration(limit);
            self.interrupt(&format!("--max-runtime {limit} is over"), "a signal");
        }
        let limit = self.session.spec.batch_timeout;
        let late = |open: &Open| {
            !open.committing && open.begun.is_some_and(|begun| begun.elapsed() > limit)
        };
        let late: Vec<u64> = self.open.iter().filter(|(_, o)| late(o)).map(|(id, _)| *id).collect();
        for id in late {
            let limit = humantime::format_duration(limit);
            let reason = format!("it took longer than --batch-timeout {limit}");
            if let Some(exit) = self.fault(id, &reason)? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }
}
