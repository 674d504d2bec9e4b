//! Reads pictures ahead of the workers, in plan order, within the budget.
//!
//! The feeder decides nothing about the job: it turns objects into work, or into the error line of
//! a picture that cannot be read, or into a fault of the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::events::{Answer, Event};
use super::line::{BoxUnit, write_detections, write_error};
use super::plan::Batch;
use super::strikes::Strikes;
use super::tally::Tally;
use crate::failpoint;
use crate::pool::{Budget, Failure, Outcome, Params, Spent, Work};
use crate::store::{Identity, Key, LinkFault, Object, ReadError, Source, one_line};

/// One try at a mini-batch.
pub(super) struct Order {
    pub(super) batch: Arc<Batch>,
    pub(super) try_number: u64,
    pub(super) cancelled: Arc<AtomicBool>,
}

/// What the feeder works with.
pub(super) struct Feeder {
    pub(super) source: Arc<dyn Source>,
    pub(super) budget: Arc<Budget>,
    pub(super) params: Arc<Params>,
    pub(super) labels: Arc<[String]>,
    pub(super) boxes: BoxUnit,
    pub(super) max_file: u64,
    pub(super) strikes: Arc<Strikes>,
    pub(super) work: Sender<Work>,
    pub(super) events: Sender<Event>,
    pub(super) fetch_nanos: Arc<AtomicU64>,
    /// The last key that could be read: the witness that the store is well.
    pub(super) witness: Option<Key>,
}

/// What keeps a picture from being read at all.
///
/// Fixed sentences: numbers from the file may join them, paths and system texts may not.
pub(super) fn picture_fault(
    object: &Object,
    max_file: u64,
    max_memory: u64,
) -> Option<(&'static str, String)> {
    let text = |code, message: &str| Some((code, message.to_owned()));
    match object.identity {
        Identity::Link(LinkFault::Broken) => {
            text("broken_link", "the symbolic link has no target (see --follow-symlinks)")
        }
        Identity::Link(LinkFault::Outside) => {
            text("outside_link", "the symbolic link leaves the input (--follow-symlinks reads it)")
        }
        Identity::Missing => text("gone", "the list names it, and there is no such file"),
        _ if object.size > max_file.min(max_memory) => {
            let most = max_file.min(max_memory);
            let size = object.size;
            Some(("too_large", format!("the file has {size} bytes, the limit is {most}")))
        }
        _ => None,
    }
}

impl Feeder {
    /// Works off orders until nobody gives any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        for order in orders {
            if self.feed(&order).is_none() {
                return;
            }
        }
    }

    /// `None` when the dispatcher is gone.
    fn feed(&mut self, order: &Order) -> Option<()> {
        let (batch, try_number) = (order.batch.id, order.try_number);
        self.events.send(Event::Begun { batch, try_number }).ok()?;
        for index in 0..order.batch.objects.len() {
            if order.cancelled.load(Ordering::Relaxed) {
                return Some(());
            }
            if let Err(reason) = self.picture(order, index)? {
                order.cancelled.store(true, Ordering::Relaxed);
                return self.events.send(Event::Fault { batch, try_number, reason }).ok();
            }
        }
        Some(())
    }

    /// Reads and submits one picture. The inner error is a fault of the store.
    fn picture(&mut self, order: &Order, index: usize) -> Option<Result<(), String>> {
        let object = &order.batch.objects[index];
        let max_memory = self.params.limits.max_memory;
        if self.strikes.quarantined(&object.key) {
            let message = "haul itself died more than once while it was at work on this picture";
            return self.refuse(order, index, "quarantined", message);
        }
        if let Some((code, message)) = picture_fault(object, self.max_file, max_memory) {
            return self.refuse(order, index, code, &message);
        }
        failpoint::about(object.key.as_bytes());
        if let Err(reason) = failpoint::hit("fetch") {
            return Some(Err(reason));
        }
        let mut ticket = self.budget.open();
        ticket.grow(object.size).ok()?;
        let start = Instant::now();
        let read = self.source.read(object);
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.fetch_nanos.fetch_add(nanos, Ordering::Relaxed);
        let (code, message) = match read {
            Ok(bytes) => {
                self.witness = Some(object.key.clone());
                let work = Work {
                    bytes,
                    params: self.params.clone(),
                    ticket,
                    cancelled: order.cancelled.clone(),
                    note: Some(self.strikes.note(&object.key)),
                    reply: self.reply(order, index),
                };
                return self.work.send(work).ok().map(Ok);
            }
            Err(ReadError::Store(error)) => return Some(Err(error.to_string())),
            Err(ReadError::Changed) => {
                return self.refuse(
                    order,
                    index,
                    "changed",
                    "the file is not the one that was planned",
                );
            }
            Err(ReadError::Gone) => ("gone", "the file is gone since it was planned"),
            Err(ReadError::Archived) => {
                ("archived", "the object is in an archive and has to be restored first")
            }
            Err(ReadError::Denied) => ("denied", "the file may not be read"),
            Err(ReadError::Unreadable) => ("unreadable", "the file cannot be read"),
        };
        drop(ticket);
        if self.vouched(order, index) {
            return self.refuse(order, index, code, message);
        }
        Some(Err(format!(
            "`{}` is {code}, and so is everything else in `{}` (is it still mounted?)",
            object.key,
            one_line(&self.source.describe())
        )))
    }

    /// Whether some other key can be read just now, in the input we started with.
    fn vouched(&self, order: &Order, index: usize) -> bool {
        if self.witness.is_some() && self.source.vouches(self.witness.as_ref()) {
            return true;
        }
        let objects = &order.batch.objects;
        let others = objects[index + 1..].iter().chain(&objects[..index]);
        let mut others =
            others.filter(|object| picture_fault(object, u64::MAX, u64::MAX).is_none());
        match others.next() {
            // The only picture there is: the root alone can vouch.
            None => self.witness.is_none() && self.source.vouches(None),
            Some(first) => std::iter::once(first)
                .chain(others)
                .any(|object| self.source.vouches(Some(&object.key))),
        }
    }

    fn refuse(
        &self,
        order: &Order,
        index: usize,
        code: &str,
        message: &str,
    ) -> Option<Result<(), String>> {
        let mut answer = blank(order, index);
        let object = &order.batch.objects[index];
        let meta = object.meta.as_deref();
        write_error(&mut answer.line, &object.key, meta, code, "fetch", message);
        answer.tally = failed(code);
        self.events.send(Event::Answer(Box::new(answer))).ok().map(Ok)
    }

    /// What becomes of a picture once a worker is through with it; runs on the worker's thread.
    fn reply(&self, order: &Order, index: usize) -> Box<dyn FnOnce(Outcome) + Send> {
        let (events, labels, unit) = (self.events.clone(), self.labels.clone(), self.boxes);
        let batch = order.batch.clone();
        let mut answer = blank(order, index);
        Box::new(move |outcome: Outcome| {
            let Outcome { result, spent, ticket } = outcome;
            let Object { key, meta, .. } = &batch.objects[index];
            let meta = meta.as_deref();
            answer.spent = spent;
            match result {
                Ok(analysis) => {
                    write_detections(&mut answer.line, key, meta, &analysis, &labels, unit);
                    answer.tally.ok = 1;
                    for found in &analysis.found {
                        let label = labels.get(found.class as usize).cloned().unwrap_or_default();
                        *answer.tally.classes.entry(label).or_default() += 1;
                    }
                    answer.annotated = analysis.annotated.map(|jpeg| (key.clone(), jpeg));
                }
                Err(Failure::Picture(error)) => {
                    let code = error.code.as_str();
                    write_error(&mut answer.line, key, meta, code, "decode", &error.message);
                    answer.tally = failed(code);
                }
                Err(Failure::Worker(reason)) => {
                    let Answer { batch, try_number, .. } = answer;
                    let _ = events.send(Event::Fault { batch, try_number, reason });
                    return;
                }
                Err(Failure::Cancelled) => return,
            }
            answer._ticket = Some(ticket);
            // Nobody listens any more once the dispatcher has stopped.
            let _ = events.send(Event::Answer(Box::new(answer)));
        })
    }
}

fn blank(order: &Order, index: usize) -> Answer {
    Answer {
        batch: order.batch.id,
        try_number: order.try_number,
        index,
        line: Vec::new(),
        tally: Tally::default(),
        spent: Spent::default(),
        annotated: None,
        _ticket: None,
    }
}

fn failed(code: &str) -> Tally {
    Tally { failed: 1, errors: [(code.to_owned(), 1)].into(), ..Tally::default() }
}
