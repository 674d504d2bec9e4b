//! A connection that does not wait for its client for ever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What a connection is about; its stream and its requests both know.
#[derive(Clone, Debug)]
pub(super) struct Stage(Arc<AtomicU8>);

/// The line and the headers of a request are awaited, and the time for them runs.
const HEAD: u8 = 0;
/// A request is being read or answered; its own limits hold.
const REQUEST: u8 = 1;
/// Nothing is under way, until the first byte of a request comes.
const IDLE: u8 = 2;

impl Stage {
    /// Who connects has something to say.
    pub(super) fn new() -> Stage {
        Stage(Arc::new(AtomicU8::new(HEAD)))
    }

    /// A request has its headers.
    pub(super) fn request(&self) {
        self.0.store(REQUEST, Ordering::Relaxed);
    }

    /// A request has its answer.
    pub(super) fn response(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn is(&self, stage: u8) -> bool {
        self.0.load(Ordering::Relaxed) == stage
    }
}

/// A stream whose client sends headers and takes answers within bounded times.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    stage: Stage,
    head: Duration,
    write: Duration,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, stage: Stage, head: Duration, write: Duration) -> Wire<S> {
        let reading = Some(Box::pin(tokio::time::sleep(head)));
        Wire { stream, stage, head, write, reading, writing: None }
    }

    /// Ends a wait for the client to take something that is too long.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.writing = None;
            return done;
        }
        let write = self.write;
        let timer = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep(write)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(late("took nothing of its answer"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the client {what} for too long"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if !self.stage.is(HEAD) {
            self.reading = None;
        }
        if buffer.filled().len() > before && self.stage.is(IDLE) {
            self.stage.0.store(HEAD, Ordering::Relaxed);
            self.reading = Some(Box::pin(tokio::time::sleep(self.head)));
        }
        let Some(timer) = &mut self.reading else { return read };
        // Also where bytes are there: those who trickle are never waited for.
        let over = match read.is_ready() {
            true => timer.deadline() <= Instant::now(),
            false => timer.as_mut().poll(cx).is_ready(),
        };
        match over {
            true => Poll::Ready(Err(late("sent no complete headers"))),
            false => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(cx, done)
    }
}
