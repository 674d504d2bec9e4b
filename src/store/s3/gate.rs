//! How many requests may be under way, and how many may be repeated.
//!
//! The first as TCP does it: one more for each round of answers, half as many when the server asks
//! to slow down. The second keeps a server that is ill from being asked ever more.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Requests under way at most.
pub(super) const WIDEST: usize = 32;

/// So long one decrease speaks for all that was under way then.
const ROUND: Duration = Duration::from_millis(500);

/// Repetitions that may be made in a row, and how fast they come back.
const REPEATS: f64 = 100.0;
const REPEATS_PER_SUCCESS: f64 = 0.5;
const REPEATS_PER_SECOND: f64 = 2.0;

#[derive(Debug)]
struct State {
    inside: usize,
    limit: f64,
    narrowed: Option<Instant>,
    repeats: f64,
    counted: Instant,
}

/// The gate that every request goes through.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Notify,
}

impl Gate {
    pub(super) fn new() -> Gate {
        let state = State {
            inside: 0,
            limit: WIDEST as f64,
            narrowed: None,
            repeats: REPEATS,
            counted: Instant::now(),
        };
        Gate { state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more request may be made; it is over when the pass is dropped.
    pub(super) async fn enter(&self) -> Pass<'_> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if (state.inside as f64) < state.limit.floor() {
                    state.inside += 1;
                    return Pass(self);
                }
            }
            changed.await;
        }
    }

    /// Lets a request in that can wait for nobody, and of which there are few.
    pub(super) fn enter_at_once(&self) -> Pass<'_> {
        self.lock().inside += 1;
        Pass(self)
    }

    /// A request was answered as it should be.
    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        state.limit = (state.limit + 1.0 / state.limit).min(WIDEST as f64);
        state.repeats = (state.repeats + REPEATS_PER_SUCCESS).min(REPEATS);
        drop(state);
        self.changed.notify_one();
    }

    /// The server asks to slow down; gives how many requests may be under way now.
    pub(super) fn throttled(&self) -> usize {
        let mut state = self.lock();
        let now = Instant::now();
        if state.narrowed.is_none_or(|then| now - then >= ROUND) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.narrowed = Some(now);
        }
        state.limit as usize
    }

    /// Takes one repetition, or says how long it takes until there may be one.
    pub(super) fn repeat(&self) -> Result<(), Duration> {
        let mut state = self.lock();
        let now = Instant::now();
        let since = (now - state.counted).as_secs_f64();
        state.counted = now;
        state.repeats = (state.repeats + since * REPEATS_PER_SECOND).min(REPEATS);
        if state.repeats >= 1.0 {
            state.repeats -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - state.repeats) / REPEATS_PER_SECOND))
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_halves_once_a_round_and_success_widens() {
        let gate = Gate::new();
        assert_eq!(gate.throttled(), WIDEST / 2);
        assert_eq!(gate.throttled(), WIDEST / 2, "the same round");
        gate.lock().narrowed = None;
        assert_eq!(gate.throttled(), WIDEST / 4);
        (0..10_000).for_each(|_| gate.succeeded());
        assert_eq!(gate.lock().limit, WIDEST as f64);
        for _ in 0..20 {
            gate.lock().narrowed = None;
            gate.throttled();
        }
        assert_eq!(gate.lock().limit, 1.0, "never none");
    }

    #[test]
    fn nobody_gets_in_while_it_is_full() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let gate = Gate::new();
            gate.lock().limit = 2.0;
            let (one, _two) = (gate.enter().await, gate.enter().await);
            let soon = Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, gate.enter()).await.is_err());
            drop(one);
            assert!(tokio::time::timeout(soon, gate.enter()).await.is_ok());
        });
    }

    #[test]
    fn repetitions_run_out_and_come_back_with_success() {
        let gate = Gate::new();
        let mut made = 0;
        while gate.repeat().is_ok() {
            made += 1;
        }
        assert!((100..110).contains(&made), "{made}");
        assert!(gate.repeat().unwrap_err() <= Duration::from_millis(500));
        (0..4).for_each(|_| gate.succeeded());
        assert!(gate.repeat().is_ok());
    }
}
