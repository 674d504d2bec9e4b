//! The thread that publishes: a mini-batch's part, then its record, one mini-batch after the other.
//!
//! In a bucket each of them waits for an answer from far away, and sometimes for several. Meanwhile
//! the dispatcher goes on hearing workers: it hands over whole mini-batches and is told what became
//! of them. Both channels have room for all that can be in them, so that neither waits for the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::job::exit::JobError;
use crate::job::manifest::Record;
use crate::job::session::Session;
use crate::job::tally::Tally;
use crate::store::{Hold, Writing};

/// A mini-batch whose lines are all there.
pub(super) struct Complete {
    pub(super) batch: u64,
    pub(super) attempt: u64,
    pub(super) lines: Vec<Option<Vec<u8>>>,
    /// Its annotated pictures, which are there before its lines are.
    pub(super) annotated: Vec<Writing>,
    pub(super) tally: Tally,
    pub(super) seconds: f64,
}

/// What became of it.
pub(super) struct Committed {
    pub(super) batch: u64,
    pub(super) took: Duration,
    pub(super) result: Result<Record, JobError>,
}

/// Commits what it is given.
pub(super) struct Committer {
    pub(super) session: Arc<Session>,
    pub(super) work: Receiver<Complete>,
    pub(super) told: Sender<Committed>,
    /// Nothing more is to be committed.
    pub(super) stop: Arc<AtomicBool>,
}

impl Committer {
    /// Works until nobody gives any more, or something is wrong that no other try mends: after that
    /// nothing is committed.
    pub(super) fn run(self) {
        for complete in self.work.iter().take_while(|_| !self.stop.load(Ordering::Relaxed)) {
            let (batch, start) = (complete.batch, Instant::now());
            let result = self.commit(complete);
            let over = result.as_ref().is_err_and(|error| !error.passes());
            let told = self.told.send(Committed { batch, took: start.elapsed(), result });
            if over || told.is_err() {
                return;
            }
        }
    }

    fn commit(&self, complete: Complete) -> Result<Record, JobError> {
        let Complete { batch, attempt, lines, annotated, tally, seconds } = complete;
        annotated.into_iter().try_for_each(Writing::wait)?;
        let Session { manifest, job, .. } = &*self.session;
        let mut part = Vec::with_capacity(lines.iter().flatten().map(Vec::len).sum());
        lines.into_iter().flatten().for_each(|line| part.extend(line));
        let part = job.compress()?.pack(part).map_err(|error| {
            JobError::Internal(format!("cannot compress the part of mini-batch {batch}: {error}"))
        })?;
        let record = manifest.new_record(job, batch, &part, tally, seconds, attempt);
        check_hold(&self.session)?;
        manifest.commit(job, &part, &record)?;
        Ok(record)
    }
}

/// Whether the output is still ours to publish in.
pub(super) fn check_hold(session: &Session) -> Result<(), JobError> {
    Ok(session.lock.as_ref().map_or(Ok(()), Hold::check)?)
}
