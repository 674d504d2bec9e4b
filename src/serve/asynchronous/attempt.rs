//! One attempt at a request: read its picture, and have it answered as the real-time door would.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::entry::{Asked, Entry};
use super::work::Worker;
use crate::serve::desk::{Priority, Room};
use crate::serve::endpoint::Answer;
use crate::serve::http::doors::blocking;
use crate::serve::invocation::{Body, Form, Options, Picture};
use crate::serve::metrics::Door;
use crate::serve::problem::Problem;
use crate::store::{Key, RootError};

/// An attempt that can be made.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) entry: &'a Entry,
    /// What was sent with the request, if it names no picture.
    pub(super) body: Option<Vec<u8>>,
}

/// How an attempt ended.
pub(super) enum Verdict {
    /// With a result of this media type.
    Done(String, Vec<u8>),
    /// Another attempt would end the same way.
    Failed(Problem),
    /// The store or a worker is at fault.
    Fault(Problem),
}

impl Attempt<'_> {
    /// Makes it, within the request's own limit of time.
    pub(super) async fn make(self) -> Verdict {
        let limit = Duration::from_secs(self.entry.asked.timeout);
        let metrics = self.worker.endpoint.metrics();
        match tokio::time::timeout(limit, self.answer()).await {
            Err(_) => Verdict::Failed(Problem::timed_out(limit)),
            Ok(Ok(answer)) => {
                let model = answer.model_time().as_secs_f64();
                let label = [Door::Async.as_str()];
                metrics.model_latency.with_label_values(&label).observe(model);
                Verdict::Done(answer.form.content_type().to_owned(), answer.bytes)
            }
            Ok(Err(problem)) if problem.status.is_server_error() => Verdict::Fault(problem),
            Ok(Err(problem)) => Verdict::Failed(problem),
        }
    }

    async fn answer(self) -> Result<Answer, Problem> {
        let Attempt { worker, entry, body } = self;
        let Wish { form, kind, options } = Wish::of(&entry.asked)?;
        // A picture is called what its client calls it, else by where it was found.
        let unnamed = Options { name: entry.asked.location.clone(), ..Options::default() };
        let options = options.over(unnamed);
        let (bytes, mut room) = match (&entry.asked.location, body) {
            (Some(location), _) => {
                let key = (kind == Body::Picture).then(|| options.key());
                fetch(worker, location, key).await?
            }
            (None, Some(body)) => {
                let room = worker.space.take(body.len() as u64).await;
                (body, room)
            }
            (None, None) => return Err(Problem::internal("its body is not in the queue")),
        };
        let (picture, said) = match kind {
            Body::Picture => (Picture::Bytes(bytes), Options::default()),
            Body::Json => blocking(move || Picture::of_body(kind, bytes)).await??,
        };
        let options = said.over(options);
        let bytes = match picture {
            Picture::Bytes(bytes) => bytes,
            Picture::Location(location) => {
                drop(room);
                let (bytes, more) = fetch(worker, &location, Some(options.key())).await?;
                room = more;
                bytes
            }
        };
        let answer = worker.endpoint.infer(bytes, &options, form, Priority::Background).await;
        drop(room);
        answer
    }
}

/// What is asked, read from its texts.
pub(super) struct Wish {
    form: Form,
    kind: Body,
    options: Options,
}

impl Wish {
    /// Reads what is asked.
    ///
    /// # Errors
    /// [`Problem`] naming what is not understood.
    pub(super) fn of(asked: &Asked) -> Result<Wish, Problem> {
        let form = Form::accepted(asked.accept.as_deref())?;
        let kind = Body::of(asked.content_type.as_deref())?;
        let mut headers = HeaderMap::new();
        for (name, value) in &asked.headers {
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::from_str(value))
            {
                // One that was sent twice is seen as the real-time door sees it.
                headers.append(name, value);
            }
        }
        let options = Options::of_request(asked.query.as_deref(), &headers)?;
        Ok(Wish { form, kind, options })
    }
}

/// Reads an object, with room for it. One that is a picture has a key, and must be no larger than
/// pictures may be.
async fn fetch(
    worker: &Worker,
    location: &str,
    key: Option<Key>,
) -> Result<(Vec<u8>, Room), Problem> {
    let most = worker.config.most_bytes;
    let failed = |problem: Problem| {
        worker.meters.download_failures.inc();
        problem
    };
    // The room is asked for by size: all that an object may have would keep everybody else waiting.
    let size = {
        let (endpoint, at) = (worker.endpoint.clone(), location.to_owned());
        lane(worker, move || endpoint.roots().size(&at, most)).await.map_err(failed)?
    };
    if let Some(key) = &key {
        worker.endpoint.fits(key, size)?;
    }
    let room = worker.space.take(size).await;
    let (endpoint, at) = (worker.endpoint.clone(), location.to_owned());
    // The room goes with the bytes, also where nobody waits for them any more.
    let read = move || endpoint.roots().read(&at, size).map(|bytes| (bytes, room));
    lane(worker, read).await.map_err(|problem| {
        failed(match problem.status {
            // It had this size a moment ago.
            StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("`{location}` was written to while it was read");
                Problem::new(StatusCode::BAD_GATEWAY, "store", message)
            }
            _ => problem,
        })
    })
}

/// Reads on a thread of its own, of which there are a few for all.
async fn lane<T: Send + 'static>(
    worker: &Worker,
    read: impl FnOnce() -> Result<T, RootError> + Send + 'static,
) -> Result<T, Problem> {
    let lane = worker.lanes.clone().acquire_owned().await;
    let read = move || {
        let read = read();
        drop(lane);
        read
    };
    Ok(blocking(read).await??)
}
