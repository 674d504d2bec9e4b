//! A worker's dealings with the devices: what it waits for, and answering what comes back meanwhile.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};

use super::pending::{Claim, Computed, Fault, Pending, Prepared};
use super::station::{Doing, Station};
use crate::engine::Slot;
use crate::failpoint;
use crate::pool::answer::{boxes, draw};
use crate::pool::budget::Ticket;
use crate::pool::crash::{AtWork, CrashNote};
use crate::pool::work::{Analysis, Failure, Idle, Outcome, Params, Spent, Work};
use crate::yolo::{Candidate, Nms};

use super::guard::guarded;

/// One worker's side of the station.
pub(super) struct Exchange {
    pub(super) station: Arc<Station>,
    /// Slots that nobody uses.
    pub(super) slots: Receiver<Slot>,
    pub(super) give_back: Sender<Slot>,
    /// Pictures that devices are through with.
    pub(super) computed: Receiver<Computed>,
    /// Disconnects when no device is left.
    pub(super) no_device: Receiver<Infallible>,
    pub(super) idle: Arc<Idle>,
    pub(super) nms: Nms,
}

/// What a worker finds to do.
pub(super) enum Next {
    /// A picture that comes back.
    Computed(Computed),
    /// A new one.
    Work(Work),
}

impl Exchange {
    /// Waits for something to do. None when there will be no more new pictures.
    pub(super) fn next(&self, queue: &Receiver<Work>) -> Option<Next> {
        // First what is nearly through: it makes room.
        if let Ok(computed) = self.computed.try_recv() {
            return Some(Next::Computed(computed));
        }
        match queue.try_recv() {
            Ok(work) => return Some(Next::Work(work)),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        let start = Instant::now();
        let next = select! {
            recv(self.computed) -> computed => computed.ok().map(Next::Computed),
            recv(queue) -> work => work.ok().map(Next::Work),
        };
        self.idle.add_queue(start.elapsed());
        next
    }

    /// Answers what comes back, until nothing more will.
    pub(super) fn drain(&mut self) {
        loop {
            let start = Instant::now();
            let Ok(computed) = self.computed.recv() else { return };
            self.idle.add_devices(start.elapsed());
            self.answer(computed);
        }
    }

    /// Takes memory for a picture, and answers others as long as there is not enough: they may be
    /// the ones that hold it.
    pub(super) fn memory(&mut self, ticket: &mut Ticket, bytes: u64) -> Result<(), Failure> {
        if ticket.try_grow(bytes).map_err(|_| Failure::Cancelled)? {
            return Ok(());
        }
        let station = self.station.clone();
        let _blocked = station.count(Doing::Blocked);
        loop {
            let start = Instant::now();
            let come_back = || !self.computed.is_empty();
            let grown = ticket.grow_unless(bytes, &come_back).map_err(|_| Failure::Cancelled)?;
            self.idle.add_budget(start.elapsed());
            if grown {
                return Ok(());
            }
            if let Ok(computed) = self.computed.try_recv() {
                self.answer(computed);
            }
        }
    }

    /// Takes a slot, and answers others as long as there is none. It may be the only worker.
    pub(super) fn slot(&mut self) -> Result<Slot, Failure> {
        if let Ok(slot) = self.slots.try_recv() {
            return Ok(slot);
        }
        let station = self.station.clone();
        let _starved = station.count(Doing::Starved);
        loop {
            let start = Instant::now();
            let computed = select! {
                recv(self.slots) -> slot => Err(slot.ok()),
                recv(self.computed) -> computed => computed.map_err(|_| None),
                recv(self.no_device) -> _ => Err(None),
            };
            self.idle.add_devices(start.elapsed());
            match computed {
                Ok(computed) => self.answer(computed),
                Err(Some(slot)) => return Ok(slot),
                Err(None) => return Err(self.no_device()),
            }
        }
    }

    fn no_device(&self) -> Failure {
        let unknown =
            || Fault::Failed("no device is left, and none said why. This is a bug.".into());
        self.station.dead().unwrap_or_else(unknown).into()
    }

    /// Answers a picture that comes back.
    pub(super) fn answer(&mut self, computed: Computed) {
        let Computed { pending, result } = computed;
        let Pending { claim, mut spent, prepared } = pending;
        let result = match result {
            _ if claim.is_cancelled() => Err(Failure::Cancelled),
            Err(fault) => Err(fault.into()),
            Ok(mut candidates) => {
                let nms = &mut self.nms;
                let analyse =
                    || analyse(nms, &claim.params, &prepared, &mut candidates, &mut spent);
                let analysis = guarded(claim.note.as_ref(), analyse);
                if analysis.is_err() {
                    self.nms = Nms::new();
                }
                analysis
            }
        };
        drop(prepared);
        claim.answer(result, spent);
    }
}

impl Claim {
    /// Answers, and gives back what the answer does not need.
    pub(super) fn answer(self, result: Result<Analysis, Failure>, spent: Spent) {
        let Claim { mut ticket, note, reply, .. } = self;
        let _at_work = AtWork::with(note.as_ref());
        failpoint::about(note.as_ref().map_or(&[], CrashNote::line));
        let kept = result.as_ref().ok().and_then(|analysis| analysis.annotated.as_ref());
        ticket.shrink_to(kept.map_or(0, |file| file.len() as u64));
        reply(Outcome { result, spent, ticket });
    }
}

fn analyse(
    nms: &mut Nms,
    params: &Params,
    prepared: &Prepared,
    candidates: &mut Vec<Candidate>,
    spent: &mut Spent,
) -> Analysis {
    let start = Instant::now();
    let found = boxes(nms, &params.nms, candidates, &prepared.geometry);
    spent.boxes = start.elapsed();

    let start = Instant::now();
    let annotated = match (&params.annotate, &prepared.picture) {
        // What cannot be drawn has its line all the same.
        (Some(how), Some(picture)) => draw(picture, &found, how).ok(),
        _ => None,
    };
    spent.draw = start.elapsed();
    let (width, height) = prepared.size;
    Analysis { width, height, truncated: prepared.truncated, found, annotated }
}
