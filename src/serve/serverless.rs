//! Scaling to zero: the model goes when nobody wants it, and so does the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;

/// The least time between two looks at the clock.
const LOOK: Duration = Duration::from_millis(10);

/// While there is other work, it is looked at so often whether it is done.
const AGAIN: Duration = Duration::from_secs(1);

/// Comes back when no request has been in, and nothing else was to be done, for so long.
pub(super) async fn idle(endpoint: &Endpoint, patience: Duration, busy: impl Fn() -> bool) {
    let mut worked: Option<Instant> = None;
    loop {
        let left = if busy() {
            worked = Some(Instant::now());
            patience.min(AGAIN)
        } else {
            let idle = endpoint.idle_for();
            let idle = worked.map_or(idle, |worked| worked.elapsed().min(idle));
            patience.saturating_sub(idle)
        };
        if left.is_zero() && !busy() {
            return;
        }
        tokio::time::sleep(left.max(LOOK)).await;
    }
}

/// Unloads the model whenever no request has been in for so long; the next one loads it again, and
/// waits meanwhile.
pub(super) async fn unload_when_idle(endpoint: Arc<Endpoint>, patience: Duration) {
    loop {
        idle(&endpoint, patience, || false).await;
        if endpoint.loaded().is_some() {
            let leaver = endpoint.clone();
            // Its workers are waited for.
            let unloading = tokio::task::spawn_blocking(move || leaver.unload_after(patience));
            if unloading.await.unwrap_or(false) {
                tracing::info!(idle_s = endpoint.idle_for().as_secs_f64(), "model unloaded");
            }
        }
        tokio::time::sleep(patience.max(LOOK)).await;
    }
}
