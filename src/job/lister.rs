//! The thread that publishes the plan, ahead of the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::Sender;

use super::events::Event;
use super::exit::JobError;
use super::planner::Planner;
use super::session::Session;
use crate::failpoint;

/// Publishes the plan to its end, ahead of the work; the dispatcher reads it back.
pub(super) struct Lister {
    pub(super) session: Arc<Session>,
    pub(super) events: Sender<Event>,
    pub(super) stop: Arc<AtomicBool>,
    /// Pictures planned so far.
    pub(super) listed: Arc<AtomicU64>,
    /// Those of them that are in this run's share.
    pub(super) share: Arc<AtomicU64>,
    /// Time spent on it.
    pub(super) nanos: Arc<AtomicU64>,
}

impl Lister {
    /// Lists until the end, or until told to stop.
    pub(super) fn run(&self) {
        let result = self.list();
        // Nobody listens any more once the dispatcher has stopped.
        let _ = self.events.send(Event::Planned(result));
    }

    fn list(&self) -> Result<(), JobError> {
        let store = self.session.manifest.store().clone();
        let mut planner = Planner::new(&*store, self.session.terms());
        loop {
            let start = Instant::now();
            let segment = planner.next_segment()?;
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.nanos.fetch_add(nanos, Ordering::Relaxed);
            self.listed.store(planner.summary().pictures, Ordering::Relaxed);
            let batches = segment.iter().flat_map(|segment| &segment.batches);
            let mine = batches.filter(|batch| self.session.has(batch.id));
            let pictures: u64 = mine.map(|batch| batch.objects.len() as u64).sum();
            self.share.fetch_add(pictures, Ordering::Relaxed);
            if segment.is_none() {
                self.session.manifest.put_plan(planner.summary())?;
                return failpoint::hit("after_plan").map_err(JobError::Internal);
            }
            if self.stop.load(Ordering::Relaxed) || self.events.send(Event::Segment).is_err() {
                return Ok(());
            }
        }
    }
}
