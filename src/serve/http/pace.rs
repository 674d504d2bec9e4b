//! A request's body that makes progress, or is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;

/// So many bytes are progress, unless there are fewer.
const PROGRESS: u64 = 16 << 10;

/// The client sends its body too slowly.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body makes no progress: fewer than {PROGRESS} bytes came within {} s", .0.as_secs_f64())]
pub(super) struct Slow(Duration);

/// A body that is waited for only while it makes progress, and whose bytes are counted.
pub(super) struct Paced {
    body: Body,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since the timer was set.
    progress: u64,
    read: Arc<AtomicU64>,
}

impl Paced {
    pub(super) fn new(body: Body, patience: Duration, read: Arc<AtomicU64>) -> Paced {
        Paced { body, patience, timer: None, progress: 0, read }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.read.fetch_add(bytes, Ordering::Relaxed);
                self.progress += bytes;
                if self.progress >= PROGRESS {
                    self.progress = 0;
                    self.timer = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => Poll::Ready(end.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                let patience = self.patience;
                let timer =
                    self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(Slow(patience).into()))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a body was given up since it came too slowly, whatever the error is wrapped in.
pub(super) fn slow(error: &(dyn std::error::Error + 'static)) -> Option<Slow> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(slow) = error.downcast_ref::<Slow>() {
            return Some(*slow);
        }
        cause = error.source();
    }
    None
}
