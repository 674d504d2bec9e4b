//! Reads pictures ahead of the workers, in plan order, within the budget.
//!
//! Where a source can read several at once, their readings are begun in plan order and waited for
//! in plan order. So tickets of the budget, which are opened in that order, are queued in it, too.
//!
//! The feeder decides nothing about the job: it turns objects into work, or into the error line of
//! a picture that cannot be read, or into a fault of the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::chain::Chain;
use super::events::{Answer, Event};
use super::line::{BoxUnit, write_detections, write_error};
use super::plan::Batch;
use super::strikes::Strikes;
use super::tally::Tally;
use crate::failpoint;
use crate::pool::{Budget, Failure, Outcome, Params, Spent, Ticket, Work};
use crate::store::{Identity, Key, LinkFault, Object, ReadError, Reading, Source, Store, one_line};

/// One try at a mini-batch.
pub(super) struct Order {
    pub(super) batch: Arc<Batch>,
    pub(super) try_number: u64,
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Order {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// What the feeder works with.
pub(super) struct Feeder {
    pub(super) source: Arc<dyn Source>,
    pub(super) budget: Arc<Budget>,
    pub(super) params: Arc<Params>,
    pub(super) labels: Arc<[String]>,
    pub(super) boxes: BoxUnit,
    pub(super) max_file: u64,
    /// Bytes of pictures that may be on their way at once; a larger picture comes alone.
    pub(super) most_ahead: u64,
    pub(super) strikes: Arc<Strikes>,
    pub(super) work: Sender<Work>,
    pub(super) events: Sender<Event>,
    pub(super) fetch_nanos: Arc<AtomicU64>,
    /// The last key that could be read: the witness that the store is well.
    pub(super) witness: Option<Key>,
    /// Where the plan is: what else there is, for a picture that is alone in its mini-batch.
    pub(super) plan: Option<Arc<dyn Store>>,
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
        _ => size_fault(object.size, max_file.min(max_memory)),
    }
}

/// What keeps a file of so many bytes from being read, where `most` are allowed.
#[must_use]
pub fn size_fault(size: u64, most: u64) -> Option<(&'static str, String)> {
    let message = || format!("the file has {size} bytes, the limit is {most}");
    (size > most).then(|| ("too_large", message()))
}

/// A picture that waits for its turn to be judged.
struct Step {
    order: Arc<Order>,
    index: usize,
    turn: Turn,
}

/// What its turn will bring.
enum Turn {
    /// The bytes, which are there or on their way, and the room that they take.
    Read(Reading, Ticket),
    /// The line of an error: it is not read at all.
    Refused(&'static str, String),
    /// A fault of its mini-batch.
    Fault(String),
}

/// How far the plan is read: an order and the next of its pictures, with its place in the budget.
struct Cursor {
    order: Arc<Order>,
    index: usize,
    ticket: Option<Ticket>,
}

impl Step {
    fn bytes(&self) -> u64 {
        match self.turn {
            Turn::Read(..) => self.order.batch.objects[self.index].size,
            Turn::Refused(..) | Turn::Fault(_) => 0,
        }
    }
}

impl Feeder {
    /// Works off orders until nobody gives any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        // `None` is the end, too: nobody is there who would hear of it.
        let _ = self.feed(orders);
    }

    /// Keeps as many readings under way as the source wants, and hands over the oldest of them.
    /// `None` when the dispatcher is gone.
    fn feed(&mut self, orders: &Receiver<Order>) -> Option<()> {
        let mut under_way: VecDeque<Step> = VecDeque::new();
        let mut cursor: Option<Cursor> = None;
        loop {
            if under_way.len() >= self.source.ahead().max(1) {
                self.finish(&mut under_way)?;
                continue;
            }
            let Some(mut next) = cursor.take() else {
                // What is under way reaches over the end of a mini-batch, if the next one is there.
                let order = match under_way.is_empty() {
                    true => orders.recv().ok()?,
                    false => match orders.try_recv() {
                        Ok(order) => order,
                        Err(_) => {
                            self.finish(&mut under_way)?;
                            continue;
                        }
                    },
                };
                let (batch, try_number) = (order.batch.id, order.try_number);
                self.events.send(Event::Begun { batch, try_number }).ok()?;
                cursor = Some(Cursor { order: Arc::new(order), index: 0, ticket: None });
                continue;
            };
            if next.index == next.order.batch.objects.len() || next.order.is_cancelled() {
                continue;
            }
            let Some(turn) = self.begin(&mut next, &under_way)? else {
                // There is no room for it until some of those before it are through.
                cursor = Some(next);
                self.finish(&mut under_way)?;
                continue;
            };
            under_way.push_back(Step { order: next.order.clone(), index: next.index, turn });
            cursor = Some(Cursor { index: next.index + 1, ..next });
        }
    }

    /// Begins with a picture, if there is room for it. With nothing under way it waits for room: then
    /// all that is older is in the queue or with a worker, and comes to an end without us.
    fn begin(&mut self, next: &mut Cursor, under_way: &VecDeque<Step>) -> Option<Option<Turn>> {
        let object = &next.order.batch.objects[next.index];
        let max_memory = self.params.limits.max_memory;
        if self.strikes.quarantined(&object.key) {
            let message = "haul itself died more than once while it was at work on this picture";
            return Some(Some(Turn::Refused("quarantined", message.to_owned())));
        }
        if let Some((code, message)) = picture_fault(object, self.max_file, max_memory) {
            return Some(Some(Turn::Refused(code, message)));
        }
        let ticket = next.ticket.get_or_insert_with(|| self.budget.open());
        if under_way.is_empty() {
            ticket.grow(object.size).ok()?;
        } else {
            let bytes: u64 = under_way.iter().map(Step::bytes).sum();
            if bytes + object.size > self.most_ahead || !ticket.try_grow(object.size).ok()? {
                return Some(None);
            }
        }
        let ticket = next.ticket.take()?;
        failpoint::about(object.key.as_bytes());
        if let Err(reason) = failpoint::hit("fetch") {
            return Some(Some(Turn::Fault(reason)));
        }
        let start = Instant::now();
        let reading = self.source.begin(object);
        self.took(start);
        Some(Some(Turn::Read(reading, ticket)))
    }

    /// Waits for the oldest picture that is under way, and passes it on.
    fn finish(&mut self, under_way: &mut VecDeque<Step>) -> Option<()> {
        let Some(Step { order, index, turn }) = under_way.pop_front() else { return Some(()) };
        if order.is_cancelled() {
            return Some(());
        }
        let judged = match turn {
            Turn::Refused(code, message) => self.refuse(&order, index, code, &message)?,
            Turn::Fault(reason) => Err(reason),
            Turn::Read(reading, ticket) => {
                let start = Instant::now();
                let read = reading.wait();
                self.took(start);
                self.judge(&order, index, read, ticket)?
            }
        };
        let Err(reason) = judged else { return Some(()) };
        order.cancelled.store(true, Ordering::Relaxed);
        let (batch, try_number) = (order.batch.id, order.try_number);
        self.events.send(Event::Fault { batch, try_number, reason }).ok()
    }

    /// Counts the time that we waited for the source, not what it did meanwhile.
    fn took(&self, since: Instant) {
        let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.fetch_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Submits a picture that was read, or says what kept us from it. The inner error is a fault of
    /// the store.
    fn judge(
        &mut self,
        order: &Order,
        index: usize,
        read: Result<Vec<u8>, ReadError>,
        ticket: Ticket,
    ) -> Option<Result<(), String>> {
        let object = &order.batch.objects[index];
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
                let message = "the file is not the one that was planned";
                return self.refuse(order, index, "changed", message);
            }
            // The store says so of this object, which a store that is ill does not.
            Err(ReadError::Archived) => {
                let message = "the object is in an archive and has to be restored first";
                return self.refuse(order, index, "archived", message);
            }
            Err(ReadError::Gone) => ("gone", "the file is gone since it was planned"),
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
        // In a bucket each question may take its time, and a few answers are enough.
        let most = if self.source.ahead() > 1 { 4 } else { usize::MAX };
        match others.next() {
            None if self.witness.is_some() => false,
            None => match self.planned_beside(&objects[index].key) {
                None => false,
                // The only picture there is: the root alone can vouch.
                Some(keys) if keys.is_empty() => self.source.vouches(None),
                Some(keys) => keys.iter().any(|key| self.source.vouches(Some(key))),
            },
            Some(first) => std::iter::once(first)
                .chain(others)
                .take(most)
                .take_while(|_| !order.cancelled.load(Ordering::Relaxed))
                .any(|object| self.source.vouches(Some(&object.key))),
        }
    }

    /// A picture of each other mini-batch in the plan's first segment; `None` where that cannot be
    /// read.
    fn planned_beside(&self, key: &Key) -> Option<Vec<Key>> {
        let Some(store) = &self.plan else { return Some(Vec::new()) };
        let segment = Chain::new(&**store).next_segment().ok()??;
        let some = |batch: &Batch| {
            let fit = |object: &&Object| {
                object.key != *key && picture_fault(object, u64::MAX, u64::MAX).is_none()
            };
            batch.objects.iter().find(fit).map(|object| object.key.clone())
        };
        Some(segment.batches.iter().filter_map(some).collect())
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
                Err(Failure::Lost(reason)) => {
                    let Answer { batch, try_number, .. } = answer;
                    let _ = events.send(Event::Lost { batch, try_number, reason });
                    return;
                }
                Err(Failure::Exhausted(reason)) => {
                    let Answer { batch, try_number, .. } = answer;
                    let _ = events.send(Event::Exhausted { batch, try_number, reason });
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use crossbeam_channel::{bounded, unbounded};

    use crate::picture::Limits;
    use crate::pool::Analysis;
    use crate::store::{Listing, Place, Select, StoreError};
    use crate::yolo::NmsOptions;

    /// A source whose readings end in any order, and that counts them.
    #[derive(Debug)]
    struct Shuffled {
        ahead: usize,
        under_way: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        begun: Mutex<Vec<Key>>,
        well: bool,
    }

    impl Shuffled {
        fn new(ahead: usize) -> Arc<Shuffled> {
            let begun = Mutex::new(Vec::new());
            let (under_way, most) = (Arc::default(), Arc::default());
            Arc::new(Shuffled { ahead, under_way, most, begun, well: true })
        }
    }

    /// The number in a key's last digits.
    fn number(key: &Key) -> u64 {
        let text = String::from_utf8_lossy(key.as_bytes()).into_owned();
        text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }

    impl Source for Shuffled {
        fn list<'a>(
            &'a self,
            _: &'a dyn Select,
            _: Option<&Key>,
        ) -> Result<Listing<'a>, StoreError> {
            Ok(Box::new(std::iter::empty()))
        }

        fn read(&self, object: &Object) -> Result<Vec<u8>, ReadError> {
            self.begin(object).wait()
        }

        fn begin(&self, object: &Object) -> Reading {
            self.begun.lock().unwrap().push(object.key.clone());
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let (sender, receiver) = bounded(1);
            let (object, under_way) = (object.clone(), self.under_way.clone());
            std::thread::spawn(move || {
                let number = number(&object.key);
                let micros = number.wrapping_mul(2_654_435_761) % 2000;
                std::thread::sleep(Duration::from_micros(micros));
                under_way.fetch_sub(1, Ordering::SeqCst);
                let gone = String::from_utf8_lossy(object.key.as_bytes()).starts_with("gone");
                let _ = sender.send(match gone {
                    true => Err(ReadError::Gone),
                    false => Ok(vec![1; object.size as usize]),
                });
            });
            Reading::under_way(move || receiver.recv().unwrap())
        }

        fn ahead(&self) -> usize {
            self.ahead
        }

        fn vouches(&self, _: Option<&Key>) -> bool {
            self.well
        }

        fn root(&self) -> String {
            String::new()
        }

        fn describe(&self) -> String {
            "shuffled".to_owned()
        }
    }

    /// A feeder, and what is at both its ends.
    struct Bench {
        orders: Sender<Order>,
        work: Receiver<Work>,
        events: Receiver<Event>,
        budget: Arc<Budget>,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new(source: Arc<Shuffled>, free: u64, reserve: u64) -> Bench {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("_manifest")).unwrap();
            let budget = Budget::new(free, reserve);
            let (work_sender, work) = bounded(2);
            // As small as may be: nobody may wait for a place in it and hold up the other end.
            let (event_sender, events) = bounded(1);
            let (orders, feeder_orders) = unbounded();
            let params = Params {
                limits: Limits::default(),
                imgsz: 32,
                square: false,
                nms: NmsOptions::default(),
                annotate: None,
            };
            let feeder = Feeder {
                source,
                budget: budget.clone(),
                params: Arc::new(params),
                labels: Vec::new().into(),
                boxes: BoxUnit::Pixels,
                max_file: 200,
                most_ahead: free / 2,
                strikes: Arc::new(
                    Strikes::open(&Place::Local(dir.path().into()), "job", false).unwrap(),
                ),
                work: work_sender,
                events: event_sender,
                fetch_nanos: Arc::default(),
                witness: None,
                plan: None,
            };
            std::thread::spawn(move || feeder.run(&feeder_orders));
            Bench { orders, work, events, budget, _dir: dir }
        }

        fn order(&self, batch: u64, objects: Vec<Object>) -> Arc<AtomicBool> {
            let cancelled = Arc::new(AtomicBool::new(false));
            let batch = Arc::new(Batch { id: batch, objects });
            let order = Order { batch, try_number: 1, cancelled: cancelled.clone() };
            self.orders.send(order).unwrap();
            cancelled
        }

        /// Workers that take pictures in the order of the queue and decode them for a while. Gives
        /// the sizes in that order when the feeder has ended.
        fn workers(&self, count: usize, reserve: u64) -> Vec<std::thread::JoinHandle<Vec<u64>>> {
            (0..count)
                .map(|_| {
                    let work = self.work.clone();
                    std::thread::spawn(move || {
                        let mut sizes = Vec::new();
                        for mut work in work {
                            let size = work.bytes.len() as u64;
                            sizes.push(size);
                            work.ticket.grow((size * 7) % (reserve - size + 1)).unwrap();
                            std::thread::sleep(Duration::from_micros(size * 5));
                            let result = match work.cancelled.load(Ordering::Relaxed) {
                                true => Err(Failure::Cancelled),
                                false => Ok(nothing()),
                            };
                            work.ticket.shrink_to(0);
                            let Work { ticket, reply, .. } = work;
                            reply(Outcome { result, spent: Spent::default(), ticket });
                        }
                        sizes
                    })
                })
                .collect()
        }
    }

    fn nothing() -> Analysis {
        Analysis { width: 1, height: 1, truncated: false, found: Vec::new(), annotated: None }
    }

    fn object(name: String, size: u64) -> Object {
        Object { key: Key::new(name.into_bytes()), size, identity: Identity::Size, meta: None }
    }

    fn size(number: u64) -> u64 {
        1 + number.wrapping_mul(2_654_435_761) % 97
    }

    /// `count` pictures from `first` on.
    fn objects(first: u64, count: u64) -> Vec<Object> {
        (first..first + count).map(|n| object(format!("{n}"), size(n))).collect()
    }

    #[test]
    fn readings_that_end_in_any_order_are_handed_over_in_that_of_the_plan() {
        // Much room, little, and none but the reserve.
        for (free, ahead) in [(100_000, 16), (400, 16), (60, 32), (0, 8), (100_000, 1)] {
            let source = Shuffled::new(ahead);
            let bench = Bench::new(source.clone(), free, 100);
            for batch in 0..40 {
                bench.order(batch, objects(batch * 5, 5));
            }
            let workers = bench.workers(1, 100);
            let Bench { orders, work, events, .. } = bench;
            drop((orders, work));
            let (mut begun, mut answers) = (Vec::new(), vec![0; 200]);
            for event in events {
                match event {
                    Event::Begun { batch, .. } => begun.push(batch),
                    Event::Answer(answer) => {
                        assert!(begun.contains(&answer.batch));
                        assert_eq!(answer.tally.ok, 1);
                        answers[answer.batch as usize * 5 + answer.index] += 1;
                    }
                    _ => panic!("a fault"),
                }
            }
            assert_eq!(begun, (0..40).collect::<Vec<_>>());
            assert_eq!(answers, vec![1; 200]);
            let queued: Vec<u64> = workers.into_iter().flat_map(|w| w.join().unwrap()).collect();
            assert_eq!(queued, (0..200).map(size).collect::<Vec<_>>());
            let most = source.most.load(Ordering::SeqCst);
            assert!(most <= ahead, "{most} of {ahead}");
            // More than a mini-batch has.
            assert!(free < 100_000 || most > 5 || ahead == 1, "{most} with {free}");
        }
    }

    #[test]
    fn tiny_budgets_and_many_workers_come_to_an_end() {
        for free in [0, 1, 50, 150, 1000] {
            let bench = Bench::new(Shuffled::new(12), free, 100);
            for batch in 0..60 {
                bench.order(batch, objects(batch * 7, 7));
            }
            let workers = bench.workers(4, 100);
            let Bench { orders, work, events, budget, .. } = bench;
            drop((orders, work));
            let answers = events.iter().filter(|event| matches!(event, Event::Answer(_))).count();
            assert_eq!(answers, 420, "with {free}");
            workers.into_iter().for_each(|worker| drop(worker.join().unwrap()));
            let mut all = budget.open();
            assert_eq!(all.try_grow(free), Ok(true));
            assert_eq!(all.try_grow(100), Ok(true));
        }
    }

    #[test]
    fn a_cancelled_order_is_dropped_and_those_behind_it_are_read() {
        let source = Shuffled::new(4);
        let bench = Bench::new(source.clone(), 100_000, 100);
        // Nobody works yet: the feeder stands still with some read and some under way.
        let first = bench.order(0, objects(0, 50));
        assert!(matches!(bench.events.recv().unwrap(), Event::Begun { batch: 0, .. }));
        while source.begun.lock().unwrap().len() < 5 {
            std::thread::yield_now();
        }
        first.store(true, Ordering::Relaxed);
        bench.order(1, objects(100, 10));
        let workers = bench.workers(2, 100);
        let Bench { orders, work, events, budget, .. } = bench;
        drop((orders, work));
        let mut done = 0;
        for event in events {
            match event {
                Event::Answer(answer) => {
                    assert_eq!(answer.batch, 1);
                    done += 1;
                }
                Event::Begun { batch, .. } => assert_eq!(batch, 1),
                _ => panic!("a fault"),
            }
        }
        assert_eq!(done, 10);
        workers.into_iter().for_each(|worker| drop(worker.join().unwrap()));
        // What had begun, and what was in the queue; not the whole mini-batch.
        let begun = source.begun.lock().unwrap().len();
        assert!(begun < 25, "{begun} readings");
        assert_eq!(budget.open().try_grow(100_000), Ok(true));
    }

    #[test]
    fn an_error_is_judged_in_its_turn() {
        let mut pictures = objects(0, 10);
        pictures[4] = object("gone4".into(), 10);
        pictures[6].size = 1000;
        let bench = Bench::new(Shuffled::new(8), 100_000, 100);
        bench.order(0, pictures.clone());
        let workers = bench.workers(1, 100);
        drop(bench.orders);
        let mut failed: Vec<(usize, String)> = Vec::new();
        for event in bench.events.iter().take(11) {
            if let Event::Answer(answer) = event
                && answer.tally.failed == 1
            {
                failed.push((answer.index, answer.tally.errors.into_keys().collect()));
            }
        }
        assert_eq!(failed, [(4, "gone".to_owned()), (6, "too_large".to_owned())]);
        drop((workers, bench.work));

        // Where nothing else can be read it is the store's fault, after all that comes before.
        let source = Shuffled { well: false, ..Arc::into_inner(Shuffled::new(8)).unwrap() };
        let bench = Bench::new(Arc::new(source), 100_000, 100);
        bench.order(0, pictures);
        let _workers = bench.workers(1, 100);
        drop((bench.orders, bench.work));
        let mut fault = None;
        for event in bench.events {
            match event {
                Event::Fault { reason, .. } => assert!(fault.replace(reason).is_none()),
                Event::Answer(answer) => assert!(answer.index < 4),
                _ => {}
            }
        }
        assert!(fault.unwrap().contains("`gone4` is gone, and so is everything else"));
    }
}
