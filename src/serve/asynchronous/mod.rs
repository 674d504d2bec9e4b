//! The asynchronous door: a request is accepted at once and durably, answered when there is time for
//! it, and its result is put where the answer to its acceptance said.
//!
//! One object for each request that was accepted, a result or a failure, and it is published once:
//! what a request came to is put on disk before it is published (`work`), and published only where
//! nothing is (`publish`). Notifications are owed from the transaction that ends the request, and
//! delivered at least once (`notify`).

mod attempt;
mod doors;
mod entry;
mod message;
mod metrics;
mod names;
mod notify;
mod publish;
mod queue;
mod receiver;
#[cfg(test)]
mod tests;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use super::endpoint::Endpoint;
use super::http::App;
use crate::job::JobError;
use crate::store::Place;

use metrics::{Backlog, Meters};
use notify::Notifier;
use publish::Places;
use queue::Queue;
use receiver::{Receiver, Senders};
use work::Worker;

/// What the asynchronous door is, as it was asked for.
#[derive(Clone, Debug)]
pub struct AsyncConfig {
    /// Where results go: a folder's absolute path, or `s3://bucket/prefix/`.
    pub output: String,
    /// Where failures go.
    pub failure: String,
    /// The folder of the queue.
    pub state: PathBuf,
    /// Requests in progress at once.
    pub concurrency: usize,
    /// Requests that have not ended, at most.
    pub most_queued: u64,
    /// The largest picture that a request may name.
    pub most_bytes: u64,
    /// Who is told of results.
    pub notify_success: Vec<String>,
    /// Who is told of failures.
    pub notify_error: Vec<String>,
    /// Whether small results are part of what they are told.
    pub notify_response: bool,
    /// For how long requests that ended are remembered.
    pub retention: Duration,
    /// What notifications give as the region.
    pub region: String,
}

impl AsyncConfig {
    /// Checks receivers of notifications.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming what is wrong.
    pub fn check(&self) -> Result<(), JobError> {
        let flags =
            [("notify-success", &self.notify_success), ("notify-error", &self.notify_error)];
        for (flag, urls) in flags {
            for url in urls {
                Receiver::parse(url)
                    .map_err(|error| JobError::Usage(format!("--{flag} is {error}")))?;
            }
        }
        Ok(())
    }
}

/// A place as [`AsyncConfig`] has it.
///
/// # Errors
/// [`JobError::Usage`] when it is a path that cannot be said in a header.
pub fn place(place: &Place, flag: &str) -> Result<String, JobError> {
    let wrong = |what: &str| JobError::Usage(format!("--{flag} is `{place}`: {what}"));
    match place {
        Place::S3(prefix) => Ok(prefix.folder().to_string()),
        Place::Local(path) => {
            let path = std::path::absolute(path).map_err(|error| wrong(&error.to_string()))?;
            let text = path.to_str().ok_or_else(|| wrong("its name is not UTF-8"))?;
            match text.chars().any(char::is_control) {
                true => Err(wrong("its name has control characters")),
                false => Ok(text.to_owned()),
            }
        }
    }
}

/// The asynchronous door of a server, and the worker behind it.
#[derive(Clone)]
pub struct AsyncDoor(Arc<Worker>);

impl AsyncDoor {
    /// Opens the queue, goes on with what an earlier server has left in it, and begins to work.
    ///
    /// # Errors
    /// When the queue is another server's or cannot be opened, or a folder cannot be made.
    pub async fn start(
        endpoint: Arc<Endpoint>,
        config: AsyncConfig,
    ) -> Result<AsyncDoor, JobError> {
        config.check()?;
        let s3 = endpoint.config().s3.clone();
        let state = config.state.clone();
        // A file that was not closed is looked through first.
        let opened = tokio::task::spawn_blocking(move || Queue::open(&state)).await;
        let opened = opened.map_err(|error| JobError::Internal(format!("the queue: {error}")))?;
        let queue = Arc::new(opened?);
        let places = Places::new(&s3, &config.state);
        for place in [&config.output, &config.failure] {
            places.prepare(place)?;
        }
        let senders = Senders::new(&s3, &config.region, endpoint.name());
        let senders = senders.map_err(JobError::Internal)?;
        let meters = Meters::new(endpoint.metrics());
        let failures = meters.notification_failures.clone();
        let notifier = Notifier::new(queue.clone(), senders, failures, config.retention);
        let worker = Worker::new(endpoint.clone(), config, queue, meters, places, notifier);
        let failed = |error: queue::Broken| JobError::Internal(error.to_string());
        worker.recover().await.map_err(failed)?;
        endpoint.metrics().add(Backlog::new(&worker));
        worker.start();
        Ok(AsyncDoor(worker))
    }

    /// Begins nothing more, waits for what is in progress for so long, and leaves the rest queued.
    pub async fn stop(&self, grace: Duration) {
        self.0.stop(grace).await;
    }

    /// Whether no request waits or is in progress, and nobody is still to be told of one.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_idle()
    }

    /// Closes the queue. Nobody is let in any more.
    pub fn close(&self) {
        self.0.queue.close();
    }
}

/// The door's routes. Where there is no door they say so.
pub fn router(app: App, door: Option<&AsyncDoor>) -> Router {
    doors::routes(app, door.map(|door| door.0.clone()))
}
