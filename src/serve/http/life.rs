//! What is in, and whether the server is about to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Requests that are in, and whether more are wanted.
#[derive(Clone, Debug)]
pub struct Life {
    inside: Arc<watch::Sender<usize>>,
    draining: Arc<AtomicBool>,
}

/// A request that is in, until it is dropped.
#[derive(Debug)]
pub(super) struct Inside(Life);

impl Default for Life {
    fn default() -> Life {
        Life { inside: Arc::new(watch::Sender::new(0)), draining: Arc::default() }
    }
}

impl Life {
    /// From now on clients are sent elsewhere.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether clients are sent elsewhere.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Requests that are in.
    #[must_use]
    pub fn inside(&self) -> usize {
        *self.inside.borrow()
    }

    /// Waits until no request is in.
    pub async fn empty(&self) {
        let mut inside = self.inside.subscribe();
        // The sender is ours: it is there.
        let _ = inside.wait_for(|&inside| inside == 0).await;
    }

    pub(super) fn enter(&self) -> Inside {
        self.inside.send_modify(|inside| *inside += 1);
        Inside(self.clone())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.send_modify(|inside| *inside -= 1);
    }
}
