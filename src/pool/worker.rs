//! A worker that computes: what it does with a picture.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError, select};

use super::answer::{boxes, draw, said};
use super::budget::Ticket;
use super::crash::{AtWork, CrashNote, SignalStack};
use super::threads::with_cause;
use super::work::{Analysis, Failure, Idle, Outcome, Params, Spent, Work};
use crate::engine::{Engine, EngineError, Input, Team, Worker};
use crate::failpoint;
use crate::picture::{Decoder, Letterbox, Letterboxer, Picture, probe};
use crate::yolo::{Candidate, Nms};

/// What one worker owns.
pub(super) struct State {
    engine: Arc<dyn Engine>,
    network: Box<dyn Worker>,
    team: Arc<Team>,
    decoder: Decoder,
    letterboxer: Letterboxer,
    nms: Nms,
    candidates: Vec<Candidate>,
    idle: Arc<Idle>,
}

impl State {
    /// A worker of the team.
    ///
    /// # Errors
    /// When the engine's scratch memory cannot be had.
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        team: &Arc<Team>,
        idle: &Arc<Idle>,
    ) -> Result<State, EngineError> {
        Ok(State {
            engine: engine.clone(),
            network: engine.member(team)?,
            team: team.clone(),
            decoder: Decoder::new(),
            letterboxer: Letterboxer::new(),
            nms: Nms::new(),
            candidates: Vec::new(),
            idle: idle.clone(),
        })
    }

    pub(super) fn serve(&mut self, queue: &Receiver<Work>) {
        let _signals = SignalStack::new();
        loop {
            let Some(work) = self.next(queue) else { return };
            let Work { bytes, params, mut ticket, cancelled, note, reply } = work;
            let _at_work = AtWork::with(note.as_ref());
            failpoint::about(note.as_ref().map_or(&[], CrashNote::line));
            let mut spent = Spent::default();
            let result = if cancelled.load(Ordering::Relaxed) {
                Err(Failure::Cancelled)
            } else {
                self.guarded(&bytes, &params, note.as_ref(), &mut ticket, &mut spent)
            };
            drop(bytes);
            self.decoder.trim();
            let kept = result.as_ref().ok().and_then(|analysis| analysis.annotated.as_ref());
            ticket.shrink_to(kept.map_or(0, |jpeg| jpeg.len() as u64));
            reply(Outcome { result, spent, ticket });
        }
    }

    /// Waits for work, and assists other workers meanwhile. None when there will be none.
    fn next(&mut self, queue: &Receiver<Work>) -> Option<Work> {
        loop {
            match queue.try_recv() {
                Ok(work) => return Some(work),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.network.assist(&|| !queue.is_empty()),
            }
            if !queue.is_empty() {
                continue;
            }
            // This thread will sleep, until there is work or somebody calls for assistance.
            self.network.idle();
            let start = Instant::now();
            let work = self.team.sleep(|calls| {
                select! {
                    recv(queue) -> work => Some(work.ok()),
                    recv(calls) -> _ => None,
                }
            });
            self.idle.add_queue(start.elapsed());
            if let Some(work) = work {
                return work;
            }
        }
    }

    /// A panic in our own code fails the mini-batch, not the process; decoders have their own guard.
    fn guarded(
        &mut self,
        bytes: &[u8],
        params: &Params,
        note: Option<&CrashNote>,
        ticket: &mut Ticket,
        spent: &mut Spent,
    ) -> Result<Analysis, Failure> {
        match catch_unwind(AssertUnwindSafe(|| self.analyse(bytes, params, note, ticket, spent))) {
            Ok(result) => result,
            Err(panic) => {
                // Half-written scratch must not leak into the next picture.
                if let Ok(network) = self.engine.member(&self.team) {
                    self.network = network;
                }
                self.decoder = Decoder::new();
                self.letterboxer = Letterboxer::new();
                self.nms = Nms::new();
                Err(Failure::Worker(format!("a worker panicked: {}", said(&*panic))))
            }
        }
    }

    fn analyse(
        &mut self,
        bytes: &[u8],
        params: &Params,
        note: Option<&CrashNote>,
        ticket: &mut Ticket,
        spent: &mut Spent,
    ) -> Result<Analysis, Failure> {
        let start = Instant::now();
        let header = probe(bytes, &params.limits).map_err(Failure::Picture)?;
        let waiting = Instant::now();
        ticket.grow(header.decode_bytes).map_err(|_| Failure::Cancelled)?;
        let waited = waiting.elapsed();
        self.idle.add_budget(waited);
        let picture = self.decoder.run(bytes, &header, &params.limits).map_err(Failure::Picture)?;
        spent.decode = start.elapsed() - waited;

        let start = Instant::now();
        let geometry = Letterbox::new(picture.width, picture.height, params.imgsz, params.square);
        let rgb = self.letterboxer.run(picture, &geometry).map_err(Failure::Picture)?;
        spent.letterbox = start.elapsed();

        let start = Instant::now();
        failpoint::hit("infer").map_err(Failure::Worker)?;
        let input = Input { width: geometry.width as usize, height: geometry.height as usize, rgb };
        // Who assists is at work on this picture, too.
        let hook = |piece: &mut dyn FnMut()| {
            let _at_work = AtWork::with(note);
            failpoint::about(note.map_or(&[], CrashNote::line));
            if let Err(text) = failpoint::hit("assist") {
                panic!("{text}");
            }
            piece();
        };
        self.network
            .run_assisted(input, params.nms.conf, &mut self.candidates, &hook)
            .map_err(|error| Failure::Worker(with_cause(&error)))?;
        spent.infer = start.elapsed();

        let start = Instant::now();
        let found = boxes(&mut self.nms, &params.nms, &mut self.candidates, &geometry);
        spent.boxes = start.elapsed();

        let start = Instant::now();
        let annotated = match &params.annotate {
            None => None,
            // What cannot be drawn (a side that no JPEG can have) has its line all the same: lines
            // do not depend on whether pictures are drawn.
            Some(how) => draw(picture, &found, how).ok(),
        };
        spent.draw = start.elapsed();
        let Picture { width, height, truncated, .. } = *picture;
        Ok(Analysis { width, height, truncated, found, annotated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Hook;
    use crate::kernels::Memory;
    use crate::picture::{Limits, Truncated};
    use crate::pool::{Annotate, Budget, Pool, crash};
    use crate::yolo::NmsOptions;
    use crossbeam_channel::Sender;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::time::Duration;

    /// Finds one box of class 1 in everything; panics where a picture holds the value 13.
    #[derive(Clone, Copy)]
    struct Touchy;

    impl Engine for Touchy {
        fn numeric_class(&self) -> &str {
            "touchy"
        }
        fn weight_bytes(&self) -> u64 {
            0
        }
        fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
            0
        }
        fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
            Ok(Box::new(*self))
        }
    }

    impl Worker for Touchy {
        fn run(
            &mut self,
            input: Input<'_>,
            _: f32,
            candidates: &mut Vec<Candidate>,
        ) -> Result<(), EngineError> {
            candidates.clear();
            assert!(input.rgb.iter().all(|&value| value != 13), "thirteen");
            let bbox = [0.0, 0.0, input.width as f32, input.height as f32];
            candidates.push(Candidate { anchor: 0, class: 1, score: 0.5, bbox });
            Ok(())
        }
    }

    fn bmp(value: u8) -> Vec<u8> {
        let mut bytes = b"BM".to_vec();
        for field in
            [54 + 32 * 32 * 3u32, 0, 54, 40, 32, 32, 1 | 24 << 16, 0, 32 * 32 * 3, 0, 0, 0, 0]
        {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(54 + 32 * 32 * 3, value);
        bytes
    }

    fn params(imgsz: u32) -> Arc<Params> {
        Arc::new(Params {
            limits: Limits {
                max_pixels: 1 << 20,
                max_memory: 8 << 20,
                truncated: Truncated::Reject,
            },
            imgsz,
            square: false,
            nms: NmsOptions {
                conf: 0.25,
                iou: 0.7,
                max_det: 300,
                max_nms: 30_000,
                agnostic: false,
                classes: None,
            },
            annotate: Some(Annotate::jpeg(&["no".to_owned(), "yes".to_owned()])),
        })
    }

    #[test]
    fn a_panic_fails_its_work_only_and_every_work_is_answered() {
        let engine: Arc<dyn Engine> = Arc::new(Touchy);
        let pool = Pool::start(&engine, 2, 3, 32).unwrap();
        let (sender, answers) = crossbeam_channel::unbounded();
        let budget = Budget::new(1 << 20, 8 << 20);
        let params = params(32);
        let queue = pool.queue();
        for number in 0..30u8 {
            let sender = sender.clone();
            let (cancelled, bytes) = match number {
                7 => (true, bmp(0)),
                8 => (false, b"text".to_vec()),
                _ => (false, bmp(if number % 10 == 3 { 13 } else { number })),
            };
            let work = Work {
                bytes,
                params: params.clone(),
                ticket: budget.open(),
                cancelled: Arc::new(AtomicBool::new(cancelled)),
                note: None,
                reply: Box::new(move |outcome| drop(sender.send((number, outcome.result)))),
            };
            queue.send(work).unwrap();
        }
        drop((sender, queue));
        let mut seen = 0;
        for (number, result) in answers {
            seen += 1;
            match (number, result) {
                (7, Err(Failure::Cancelled)) => {}
                (8, Err(Failure::Picture(error))) => {
                    assert_eq!(error.code.as_str(), "not_an_image")
                }
                (3 | 13 | 23, Err(Failure::Worker(text))) => {
                    assert!(text.contains("thirteen"), "{text}")
                }
                (_, Ok(analysis)) => {
                    assert_eq!((analysis.width, analysis.height), (32, 32));
                    assert_eq!(analysis.found[0].bbox, [0.0, 0.0, 32.0, 32.0]);
                    assert!(analysis.annotated.unwrap().starts_with(b"\xff\xd8"));
                }
                (number, other) => panic!("{number}: {other:?}"),
            }
        }
        assert_eq!(seen, 30);
        pool.stop(Duration::from_secs(5));
    }

    /// Shares every picture: in pairs of pieces, each of which waits for the other one to be begun
    /// by another thread. What a picture holds says what happens besides.
    struct Sharing {
        team: Arc<Team>,
        scratch: Memory,
        seen: Sender<Option<Vec<u8>>>,
        left: Arc<AtomicBool>,
    }

    /// A picture is shared once, and fails in the thread that assists.
    const PANICS: u8 = 13;
    /// A picture is not done before another picture is.
    const LASTS: u8 = 50;
    /// Another picture, which is not shared.
    const ANOTHER: u8 = 60;

    struct Sharers(Sender<Option<Vec<u8>>>, Arc<AtomicBool>);

    impl Engine for Sharers {
        fn numeric_class(&self) -> &str {
            "sharing"
        }
        fn weight_bytes(&self) -> u64 {
            0
        }
        fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
            0
        }
        fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
            unreachable!("a pool's workers are members of its team")
        }
        fn member(&self, team: &Arc<Team>) -> Result<Box<dyn Worker>, EngineError> {
            let (seen, left) = (self.0.clone(), self.1.clone());
            let (team, scratch) = (team.clone(), Memory::new(1).unwrap());
            Ok(Box::new(Sharing { team, scratch, seen, left }))
        }
    }

    impl Worker for Sharing {
        fn run(&mut self, _: Input<'_>, _: f32, _: &mut Vec<Candidate>) -> Result<(), EngineError> {
            unreachable!("a pool's workers can be assisted")
        }

        fn run_assisted(
            &mut self,
            input: Input<'_>,
            _: f32,
            candidates: &mut Vec<Candidate>,
            hook: &Hook<'_>,
        ) -> Result<(), EngineError> {
            candidates.clear();
            let value = input.rgb[0];
            if value == ANOTHER {
                self.left.store(true, Ordering::SeqCst);
                return Ok(());
            }
            let me = std::thread::current().id();
            let mut lead = self.team.lead(hook).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                // Calls who is asleep.
                let _ = lead.pieces();
                let begun = AtomicUsize::new(0);
                let shared = AtomicBool::new(false);
                lead.run(2, &mut self.scratch, &|_, _| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let assists = std::thread::current().id() != me;
                    shared.fetch_or(assists, Ordering::SeqCst);
                    if assists {
                        let _ = self.seen.send(crash::noted());
                        assert!(value != PANICS, "an assistant failed");
                    }
                    // The leader leaves the other piece to somebody else for a moment.
                    let patience = Instant::now() + Duration::from_millis(50);
                    while begun.load(Ordering::SeqCst) < 2 && Instant::now() < patience {
                        std::thread::yield_now();
                    }
                });
                let left = self.left.load(Ordering::SeqCst);
                if if value == LASTS { left } else { shared.into_inner() } {
                    return Ok(());
                }
                assert!(Instant::now() < deadline, "nobody came, or somebody never left");
            }
        }

        fn assist(&mut self, until: &dyn Fn() -> bool) {
            self.team.assist(&mut self.scratch, until);
        }
    }

    /// A pool of `workers` whose engine shares, what its assistants' notes say, and a way to submit.
    struct Shared {
        pool: Pool,
        notes: Receiver<Option<Vec<u8>>>,
        answers: Receiver<Result<Analysis, Failure>>,
        submit: Box<dyn Fn(u8)>,
    }

    fn sharing(workers: usize) -> Shared {
        let (seen, notes) = crossbeam_channel::unbounded();
        let engine: Arc<dyn Engine> = Arc::new(Sharers(seen, Arc::default()));
        let pool = Pool::start(&engine, workers, 3, 32).unwrap();
        let (sender, answers) = crossbeam_channel::unbounded();
        let (budget, params, queue) = (Budget::new(64 << 20, 8 << 20), params(32), pool.queue());
        let file = Arc::new(tempfile::tempfile().unwrap());
        let submit = Box::new(move |value| {
            let sender = sender.clone();
            let work = Work {
                bytes: bmp(value),
                params: params.clone(),
                ticket: budget.open(),
                cancelled: Arc::default(),
                note: Some(CrashNote::new(vec![value, b'\n'], file.clone())),
                reply: Box::new(move |outcome| drop(sender.send(outcome.result))),
            };
            queue.send(work).unwrap();
        });
        Shared { pool, notes, answers, submit }
    }

    #[test]
    fn idle_workers_assist_and_die_in_the_name_of_the_picture() {
        let Shared { pool, notes, answers, submit } = sharing(3);
        for value in [1, 2, 3] {
            submit(value);
            answers.recv().unwrap().unwrap();
            let all: Vec<_> = notes.try_iter().collect();
            assert!(!all.is_empty());
            assert!(all.iter().all(|note| *note == Some(vec![value, b'\n'])), "{all:?}");
        }
        drop(submit);
        pool.stop(Duration::from_secs(5));
    }

    #[test]
    fn an_assistant_that_panics_fails_the_picture_alone() {
        let Shared { pool, answers, submit, .. } = sharing(2);
        for _ in 0..3 {
            submit(PANICS);
            match answers.recv().unwrap() {
                Err(Failure::Worker(text)) => assert!(text.contains("panicked"), "{text}"),
                other => panic!("{other:?}"),
            }
            // Both are there as before.
            submit(1);
            answers.recv().unwrap().unwrap();
        }
        drop(submit);
        pool.stop(Duration::from_secs(5));
    }

    #[test]
    fn an_assistant_goes_when_there_is_other_work() {
        let Shared { pool, notes, answers, submit } = sharing(2);
        submit(LASTS);
        notes.recv_timeout(Duration::from_secs(60)).expect("nobody assists");
        submit(ANOTHER);
        answers.recv().unwrap().unwrap();
        answers.recv().unwrap().unwrap();
        drop(submit);
        pool.stop(Duration::from_secs(5));
    }
}
