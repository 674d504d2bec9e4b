//! The thread of a device: submits batches ahead, finishes them in order, hands back what it found.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::buckets::Shape;
use super::pending::{Computed, Fault, Filled, Pending};
use super::station::{Station, Wait};
use super::usage::Devices;
use crate::engine::{Answered, Batch, EngineError, Lane, Slot};
use crate::failpoint;
use crate::pool::answer::said;
use crate::pool::threads::with_cause;

/// Who runs a lane.
pub(super) struct Device {
    pub(super) number: usize,
    pub(super) depth: usize,
    pub(super) station: Arc<Station>,
    /// Where slots go when the device has read them.
    pub(super) slots: Sender<Slot>,
    /// Where pictures go when they are through.
    pub(super) computed: Sender<Computed>,
    pub(super) usage: Arc<Devices>,
}

/// Batches that were begun and are not finished, and how long that usually takes.
struct Flights {
    begun: VecDeque<(Vec<Pending>, Instant)>,
    /// When the last one was finished, and how long the device was at it.
    finished: Option<Instant>,
    usual: Duration,
    /// Up to when time is counted as busy or waited.
    counted: Instant,
}

impl Device {
    /// Computes until no more pictures come, or the device fails. Then its pictures fail, and it
    /// takes no more; others go on.
    pub(super) fn run(self, mut lane: Box<dyn Lane>) {
        let mut flights = Flights {
            begun: VecDeque::new(),
            finished: None,
            usual: Duration::ZERO,
            counted: Instant::now(),
        };
        let work = AssertUnwindSafe(|| self.work(&mut *lane, &mut flights));
        let fault = match catch_unwind(work) {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => fault,
            Err(panic) => {
                let text =
                    format!("the thread of device {} panicked: {}", self.number, said(&*panic));
                Fault::Failed(text)
            }
        };
        // Before anybody hears of it: who does may ask.
        self.usage.lost();
        let (fault, waiting) = self.station.lost(fault);
        let waiting = waiting.into_iter().map(|filled| filled.pending);
        let lost = flights.begun.into_iter().flat_map(|(pictures, _)| pictures).chain(waiting);
        for pending in lost {
            self.hand_back(Computed { pending, result: Err(fault.clone()) });
        }
        // Only now, when everybody knows: who can tell how long a broken device takes for it.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(lane)));
    }

    fn work(&self, lane: &mut dyn Lane, flights: &mut Flights) -> Result<(), Fault> {
        loop {
            if flights.begun.len() < self.depth {
                if let Some((shape, pictures)) = self.station.next(flights.patience()) {
                    self.submit(lane, shape, pictures, flights)?;
                    continue;
                }
                if flights.begun.is_empty() {
                    return Ok(());
                }
            }
            self.finish(lane, flights)?;
        }
    }

    fn submit(
        &self,
        lane: &mut dyn Lane,
        shape: Shape,
        pictures: Vec<Filled>,
        flights: &mut Flights,
    ) -> Result<(), Fault> {
        self.clock(flights);
        let (slots, pictures): (Vec<_>, Vec<_>) =
            pictures.into_iter().map(|filled| (filled.slot, filled.pending)).unzip();
        // At once: whatever happens now, these are this device's.
        flights.begun.push_back((pictures, Instant::now()));
        failpoint::hit("lane").map_err(|text| self.failed(&text))?;
        let Shape { width, height, conf } = shape;
        let batch = Batch { width, height, conf: f32::from_bits(conf), pictures: slots };
        lane.submit(batch).map_err(|error| self.fault(&error))?;
        // Setting up a new shape takes its time, which is not that of computing it.
        if let Some((_, submitted)) = flights.begun.back_mut() {
            *submitted = Instant::now();
        }
        Ok(())
    }

    fn finish(&self, lane: &mut dyn Lane, flights: &mut Flights) -> Result<(), Fault> {
        let Answered { slots, candidates } = lane.finish().map_err(|error| self.fault(&error))?;
        let expected = flights.begun.front().map_or(0, |(pictures, _)| pictures.len());
        if candidates.len() != expected || slots.len() != expected {
            let (answers, slots) = (candidates.len(), slots.len());
            return Err(self.failed(&format!(
                "it gave {answers} answers and {slots} slots for {expected} pictures. This is a bug."
            )));
        }
        self.clock(flights);
        // Of two in flight one waits for the other: that time is the other's.
        let took = flights.since().map_or(Duration::ZERO, |since| since.elapsed());
        let Some(pictures) = flights.landed() else { return Ok(()) };
        self.usage.finished(expected);
        for slot in slots {
            // Nobody wants it any more where no worker will bring pictures.
            let _ = self.slots.send(slot);
        }
        let took = took / u32::try_from(expected.max(1)).unwrap_or(u32::MAX);
        for (mut pending, candidates) in pictures.into_iter().zip(candidates) {
            pending.spent.infer = took;
            self.hand_back(Computed { pending, result: Ok(candidates) });
        }
        Ok(())
    }

    /// Counts the time since the last call.
    fn clock(&self, flights: &mut Flights) {
        let now = Instant::now();
        let time = now - std::mem::replace(&mut flights.counted, now);
        match flights.begun.is_empty() {
            true => self.usage.has_waited(time),
            false => self.usage.was_busy(time),
        }
    }

    /// To whichever worker comes first. Those who wait for memory look out for it, too.
    fn hand_back(&self, computed: Computed) {
        let budget = computed.pending.claim.ticket.budget().clone();
        // Workers stay until all devices have left.
        let _ = self.computed.send(computed);
        budget.nudge();
    }

    fn fault(&self, error: &EngineError) -> Fault {
        match error {
            EngineError::OutOfMemory { .. } => Fault::Exhausted(with_cause(error)),
            _ => self.failed(&with_cause(error)),
        }
    }

    fn failed(&self, text: &str) -> Fault {
        Fault::Failed(format!("device {} failed: {text}", self.number))
    }
}

impl Flights {
    /// When the device could begin with the oldest: it computes one after the other.
    fn since(&self) -> Option<Instant> {
        let (_, submitted) = self.begun.front()?;
        Some(self.finished.map_or(*submitted, |finished| finished.max(*submitted)))
    }

    /// How long to wait for the next batch. One that comes while the device is computing can be
    /// copied meanwhile; but a lane can only be waited for, not asked, and what is finished should
    /// be noticed. So most of the usual time is given to waiting for a batch, and then for the lane.
    fn patience(&self) -> Wait {
        self.since().map_or(Wait::Idle, |since| Wait::Until(since + self.usual * 3 / 4))
    }

    /// The oldest, which has been finished just now.
    fn landed(&mut self) -> Option<Vec<Pending>> {
        let now = Instant::now();
        self.usual = self.since().map_or(Duration::ZERO, |since| now - since);
        self.finished = Some(now);
        self.begun.pop_front().map(|(pictures, _)| pictures)
    }
}
