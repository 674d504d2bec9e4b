//! What a cold start consists of: how long after `main` began its phases came to their end.
//!
//! Two log lines tell it: `ready` when the model is there, and `first answer`, the same and what
//! came after.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::Method;
use nix::time::{ClockId, clock_gettime};

/// What comes to its end.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// The command line was read, and checked.
    Arguments,
    /// Clients can connect.
    Listening,
    /// The model is loaded, and its workers wait.
    Model,
    /// The first picture was announced: the headers of its request are there.
    FirstRequest,
    /// Its answer is ready to be sent.
    FirstAnswer,
}

static BEGUN: OnceLock<(Instant, Duration)> = OnceLock::new();
/// By phase, in microseconds since `BEGUN`; 0 is not yet.
static ENDS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// `main` begins.
pub fn begin() {
    // What the process has computed before: the system gives no finer time of its start.
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    BEGUN.get_or_init(|| (Instant::now(), cpu.unwrap_or_default()));
}

/// A phase has come to its end; only the first time counts. Says whether this was it.
pub fn ended(phase: Phase) -> bool {
    let Some((begun, _)) = BEGUN.get() else { return false };
    let now = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    ENDS[phase as usize].compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Sees the first request for a picture go by.
pub(super) async fn watch_first(request: Request, next: Next) -> Response {
    let first = request.method() == Method::POST && ended(Phase::FirstRequest);
    let response = next.run(request).await;
    if first && ended(Phase::FirstAnswer) {
        tracing::info!(
            before_main_cpu_ms = before_main(),
            arguments_ms = at(Phase::Arguments),
            listening_ms = at(Phase::Listening),
            model_ms = at(Phase::Model),
            first_request_ms = at(Phase::FirstRequest),
            first_answer_ms = at(Phase::FirstAnswer),
            status = response.status().as_u16(),
            "first answer"
        );
    }
    response
}

/// What the process has computed before `main`, in milliseconds.
pub(super) fn before_main() -> Option<f64> {
    BEGUN.get().map(|(_, cpu)| cpu.as_secs_f64() * 1e3)
}

/// When a phase has ended, in milliseconds since `main` began.
pub(super) fn at(phase: Phase) -> Option<f64> {
    let micros = ENDS[phase as usize].load(Ordering::Relaxed);
    (micros > 0).then(|| micros as f64 / 1e3)
}
