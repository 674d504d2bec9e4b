//! The asynchronous door: accepting requests, and saying how far they are.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::attempt::Wish;
use super::entry::{Asked, Decision, Entry, State as Stage, Target, now, rfc3339};
use super::names;
use super::queue::{Broken, Tables};
use super::work::Worker;
use crate::failpoint;
use crate::serve::http::doors::{blocking, is_ours};
use crate::serve::http::{App, Reply, request};
use crate::serve::invocation::{CUSTOM_ATTRIBUTES, content_type};
use crate::serve::metrics::Door;
use crate::serve::problem::{Problem, RuntimeProblem};
use crate::store::sha256;

/// The largest body.
const LARGEST_BODY: u64 = 128_000;
/// The longest text of a header that describes the picture.
const LONGEST_TEXT: usize = 1024;

const INPUT_LOCATION: &str = "x-amzn-sagemaker-inputlocation";
const CONTENT_TYPE: &str = "x-amzn-sagemaker-content-type";
const ACCEPT: &str = "x-amzn-sagemaker-accept";
const INFERENCE_ID: &str = "x-amzn-sagemaker-inference-id";
const TTL: &str = "x-amzn-sagemaker-requestttlseconds";
const TIMEOUT: &str = "x-amzn-sagemaker-invocationtimeoutseconds";
const EXTENSION: &str = "x-amzn-sagemaker-s3outputpathextension";
const FILENAME: &str = "x-amzn-sagemaker-filename";

/// What the handlers know.
#[derive(Clone)]
struct Behind {
    app: App,
    worker: Option<Arc<Worker>>,
}

/// The routes of the door. Without a worker they say that it is closed.
pub(super) fn routes(app: App, worker: Option<Arc<Worker>>) -> Router {
    let path = "/endpoints/{name}/async-invocations";
    Router::new()
        .route(path, post(invoke))
        .route(&format!("{path}/{{id}}"), get(describe))
        .with_state(Behind { app, worker })
}

/// `POST /endpoints/{name}/async-invocations`.
async fn invoke(
    State(behind): State<Behind>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let limit = behind.app.doors.timeout;
    let accepting = accept(&behind, &name, &head.headers, head.uri.query(), body);
    let accepting = tokio::time::timeout(limit, accepting).await.unwrap_or_else(|_| {
        let seconds = limit.as_secs_f64();
        let message = format!("the request could not be accepted within {seconds} s; try again");
        Err(RuntimeProblem::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &message))
    });
    let response = match accepting {
        Ok(entry) => accepted(&entry),
        Err(problem) => {
            let mut response = problem.into_response();
            if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                let headers = response.headers_mut();
                headers.insert("x-amz-retry-after", HeaderValue::from_static("1000"));
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            response
        }
    };
    let status = response.status().as_u16();
    let metrics = behind.app.endpoint.metrics();
    let label = [Door::Async.as_str()];
    metrics.invocations.with_label_values(&label).inc();
    match status {
        400..500 => metrics.errors_4xx.with_label_values(&label).inc(),
        500.. => metrics.errors_5xx.with_label_values(&label).inc(),
        _ => {}
    }
    tracing::info!(
        door = Door::Async.as_str(),
        status,
        whole_ms = begun.elapsed().as_secs_f64() * 1e3,
        "acceptance"
    );
    response
}

/// What is answered to a request that is on disk.
fn accepted(entry: &Entry) -> Response {
    let body = json!({ "InferenceId": entry.inference_id }).to_string();
    let mut response = (StatusCode::ACCEPTED, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, target) in [
        ("x-amzn-sagemaker-outputlocation", &entry.output),
        ("x-amzn-sagemaker-failurelocation", &entry.failure),
    ] {
        // It was looked at when the request was read.
        if let Ok(value) = HeaderValue::from_bytes(target.location().as_bytes()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Takes a request in, or finds the one that it repeats.
async fn accept(
    behind: &Behind,
    name: &str,
    headers: &HeaderMap,
    query: Option<&str>,
    body: Body,
) -> Result<Entry, RuntimeProblem> {
    let Behind { app, worker } = behind;
    let read = async {
        is_ours(app, name, headers)?;
        let worker = worker.as_ref().ok_or_else(|| {
            RuntimeProblem::validation(&format!(
                "endpoint {name} takes no asynchronous requests (start it with --async-output)"
            ))
        })?;
        let asked = asked(headers, query)?;
        if let Some(location) = &asked.location {
            let check = worker.endpoint.roots().check(location);
            check.map_err(|error| wrong(&format!("InputLocation: {error}")))?;
        }
        Ok((worker, asked, Naming::of(headers)?))
    };
    let (worker, mut asked, naming) = match read.await {
        Ok(read) => read,
        Err(problem) => {
            request::drain(body).await;
            return Err(problem);
        }
    };
    let desk = app.endpoint.desk();
    let (bytes, room) = request::read(headers, body, LARGEST_BODY, desk)
        .await
        .map_err(|problem| wrong(&problem.message))?;
    match (&asked.location, bytes.is_empty()) {
        (Some(_), false) => {
            return Err(wrong("there is an InputLocation and a Body; one is taken"));
        }
        (None, true) => return Err(wrong("there is neither an InputLocation nor a Body")),
        (None, false) if asked.content_type.is_none() => {
            // What plain clients have of headers.
            asked.content_type = content_type(headers).map(str::to_owned);
        }
        _ => {}
    }
    // What cannot be understood later is refused now.
    Wish::of(&asked).map_err(|problem| wrong(&problem.message))?;
    let body = asked.location.is_none().then_some(bytes);
    let endpoint = worker.endpoint.name().to_owned();
    let config = &worker.config;
    let (output, failure) = (config.output.clone(), config.failure.clone());
    let prepared = blocking(move || {
        naming.entry(asked, body.as_deref(), &endpoint, output, failure).map(|entry| (entry, body))
    });
    let (entry, body) = prepared.await.map_err(|problem| internal(&problem.message))??;
    let most = config.most_queued;
    app.endpoint.used();
    // A task of its own: a client that hangs up ends what is awaited here, but not the commit, and
    // what is on disk must be known to the worker.
    let worker = worker.clone();
    let asked = entry.clone();
    let settling = tokio::spawn(async move {
        let settled =
            worker.queue.change(move |tables| settle(tables, entry, body.as_deref(), most));
        let mut settled = settled.await;
        // A commit that fails may be on disk all the same.
        if settled.is_err()
            && let Ok(Some(known)) = worker.queue.look(move |tables| found(tables, &asked)).await
        {
            settled = Ok(Settled::New(known.0, Box::new(known.1)));
        }
        drop(room);
        match settled.map_err(|error| internal(&error.to_string()))? {
            Settled::New(number, entry) => {
                let _ = failpoint::hit("async_accepted");
                worker.accepted(number, &entry);
                Ok(*entry)
            }
            Settled::Repeated(number, entry) => {
                worker.accepted(number, &entry);
                Ok(*entry)
            }
            Settled::Refused(problem) => Err(problem),
        }
    });
    settling.await.map_err(|error| internal(&format!("a task failed: {error}")))?
}

/// What became of a request at the queue.
enum Settled {
    New(u64, Box<Entry>),
    Repeated(u64, Box<Entry>),
    Refused(RuntimeProblem),
}

/// The request, if it is in the queue since just now.
fn found(tables: &Tables<'_>, asked: &Entry) -> Result<Option<(u64, Entry)>, Broken> {
    let Some(number) = tables.named(&asked.inference_id)? else { return Ok(None) };
    let entry = tables.entry(number)?;
    let ours = |entry: &Entry| entry.digest == asked.digest && entry.received == asked.received;
    Ok(entry.filter(ours).map(|entry| (number, entry)))
}

/// Puts a request into the queue, if it is new and there is room.
fn settle(
    tables: &mut Tables<'_>,
    entry: Entry,
    body: Option<&[u8]>,
    most: u64,
) -> Result<Settled, Broken> {
    if let Some(number) = tables.named(&entry.inference_id)?
        && let Some(known) = tables.entry(number)?
    {
        return Ok(match known.digest == entry.digest {
            true => Settled::Repeated(number, Box::new(known)),
            false => Settled::Refused(wrong(&format!(
                "InferenceId {} was given to another request",
                entry.inference_id
            ))),
        });
    }
    if tables.backlog()? >= most {
        return Ok(Settled::Refused(RuntimeProblem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            &format!("there are {most} requests in the queue, which is its limit; try again"),
        )));
    }
    for target in [&entry.output, &entry.failure] {
        let location = target.location();
        if tables.is_promised(&location)? {
            let message = format!("`{location}` is promised to another request");
            return Ok(Settled::Refused(wrong(&message)));
        }
    }
    let number = tables.accept(&entry, body)?;
    Ok(Settled::New(number, Box::new(entry)))
}

/// What the headers say about the picture, and about time.
fn asked(headers: &HeaderMap, query: Option<&str>) -> Result<Asked, RuntimeProblem> {
    let mut options = Vec::new();
    for (name, value) in headers {
        if name == CUSTOM_ATTRIBUTES || name.as_str().starts_with("x-haul-") {
            let value = value.to_str();
            let value =
                value.map_err(|_| wrong(&format!("the header {name} has more than ASCII")))?;
            if name == CUSTOM_ATTRIBUTES && value.len() > LONGEST_TEXT {
                return Err(too_long("CustomAttributes", LONGEST_TEXT));
            }
            options.push((name.as_str().to_owned(), value.to_owned()));
        }
    }
    Ok(Asked {
        location: text(headers, INPUT_LOCATION, "InputLocation")?,
        content_type: text(headers, CONTENT_TYPE, "ContentType")?,
        accept: text(headers, ACCEPT, "Accept")?,
        headers: options,
        query: query.map(str::to_owned),
        ttl: seconds(headers, TTL, "RequestTTLSeconds", 60, 21_600, 21_600)?,
        timeout: seconds(headers, TIMEOUT, "InvocationTimeoutSeconds", 1, 3_600, 900)?,
    })
}

/// What the headers say about names.
struct Naming {
    inference_id: Option<String>,
    extension: Option<String>,
    filename: Option<String>,
}

impl Naming {
    fn of(headers: &HeaderMap) -> Result<Naming, RuntimeProblem> {
        let given = |header, parameter, read: fn(&str) -> Result<String, RuntimeProblem>| {
            verbatim(headers, header, parameter)?.map(read).transpose()
        };
        Ok(Naming {
            inference_id: given(INFERENCE_ID, "InferenceId", names::inference_id)?,
            extension: given(EXTENSION, "S3OutputPathExtension", names::extension)?,
            filename: given(FILENAME, "Filename", names::filename)?,
        })
    }

    /// The entry of a request.
    fn entry(
        self,
        asked: Asked,
        body: Option<&[u8]>,
        endpoint: &str,
        output: String,
        failure: String,
    ) -> Result<Entry, RuntimeProblem> {
        let Naming { inference_id, extension, filename } = self;
        let digest = json!([
            endpoint,
            asked.location,
            body.map(sha256),
            asked.content_type,
            asked.accept,
            asked.headers,
            asked.query,
            extension,
            filename,
        ]);
        let digest = sha256(digest.to_string().as_bytes());
        let id = match &inference_id {
            Some(id) if names::is_safe(id) => id.clone(),
            _ => Uuid::new_v4().to_string(),
        };
        let name = filename.unwrap_or_else(|| format!("{id}.out"));
        let name = match extension {
            Some(extension) => format!("{extension}/{name}"),
            None => name,
        };
        let output = Target { place: output, name };
        let failure = Target { place: failure, name: format!("{id}{}", names::FAILURE) };
        for target in [&output, &failure] {
            let location = target.location();
            let key = location.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
            if key.is_some_and(|(_, key)| key.len() > 1024) {
                return Err(too_long("the output's key", 1024));
            }
        }
        if output.location() == failure.location() {
            return Err(wrong("Filename is the name of the failure object"));
        }
        Ok(Entry {
            inference_id: inference_id.unwrap_or(id),
            asked,
            digest,
            output,
            failure,
            received: now(),
            begun: None,
            ended: None,
            attempts: 0,
            faults: 0,
            deaths: 0,
            state: Stage::Queued,
        })
    }
}

/// A header's text of 1 to 1024 characters, if it is there.
fn text(
    headers: &HeaderMap,
    header: &str,
    parameter: &str,
) -> Result<Option<String>, RuntimeProblem> {
    let given = verbatim(headers, header, parameter)?.map(str::trim).map(str::to_owned);
    match given {
        Some(text) if text.len() > LONGEST_TEXT => Err(too_long(parameter, LONGEST_TEXT)),
        Some(text) if text.is_empty() => Err(wrong(&format!("{parameter} is empty"))),
        given => Ok(given),
    }
}

/// A header's text as it was sent, if it is there once.
fn verbatim<'a>(
    headers: &'a HeaderMap,
    header: &str,
    parameter: &str,
) -> Result<Option<&'a str>, RuntimeProblem> {
    let mut values = headers.get_all(header).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(wrong(&format!("{parameter} was sent more than once")));
    }
    let text = first.map(|value| std::str::from_utf8(value.as_bytes())).transpose();
    text.map_err(|_| wrong(&format!("{parameter} is not UTF-8")))
}

/// A number of seconds.
fn seconds(
    headers: &HeaderMap,
    header: &str,
    parameter: &str,
    least: u64,
    most: u64,
    default: u64,
) -> Result<u64, RuntimeProblem> {
    let Some(text) = text(headers, header, parameter)? else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| {
        wrong(&format!("{parameter} is `{text}`; it is a number between {least} and {most}"))
    })
}

fn too_long(what: &str, most: usize) -> RuntimeProblem {
    wrong(&format!("{what} has more than {most} characters"))
}

fn wrong(message: &str) -> RuntimeProblem {
    RuntimeProblem::validation(message)
}

fn internal(message: &str) -> RuntimeProblem {
    RuntimeProblem::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure", message)
}

/// `GET /endpoints/{name}/async-invocations/{inference-id}`: how far a request is. SageMaker has no
/// such route; it is for those who have no bucket to look into.
async fn describe(
    State(behind): State<Behind>,
    Path((name, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Err(problem) = is_ours(&behind.app, &name, &headers) {
        return problem.into_response();
    }
    let unknown = || {
        let message = format!("endpoint {name} knows no asynchronous request `{id}`");
        Problem::new(StatusCode::NOT_FOUND, "unknown_request", message)
    };
    let Some(worker) = &behind.worker else { return Reply(Err(unknown())).into_response() };
    let wanted = id.clone();
    let found = worker.queue.look(move |tables| {
        let number = tables.named(&wanted)?;
        Ok(number.map(|number| tables.entry(number)).transpose()?.flatten())
    });
    match found.await {
        Ok(Some(entry)) => axum::Json(described(&name, &entry)).into_response(),
        Ok(None) => Reply(Err(unknown())).into_response(),
        Err(error) => Reply(Err(Problem::internal(error.to_string()))).into_response(),
    }
}

fn described(endpoint: &str, entry: &Entry) -> Value {
    let mut all = Map::new();
    let mut say = |name: &str, value: Value| all.insert(name.to_owned(), value);
    say("InferenceId", json!(entry.inference_id));
    say("EndpointName", json!(endpoint));
    say("Status", json!(entry.status()));
    say("InputLocation", json!(entry.asked.location));
    say("OutputLocation", json!(entry.output.location()));
    say("FailureLocation", json!(entry.failure.location()));
    say("ReceivedTime", json!(rfc3339(entry.received)));
    say("StartedTime", json!(entry.begun.map(rfc3339)));
    say("EndedTime", json!(entry.ended.map(rfc3339)));
    say("Attempts", json!(entry.attempts));
    if let Some(Decision::Failed { code, message, .. }) = entry.decision() {
        say("Error", json!({ "code": code, "message": message }));
    }
    Value::Object(all)
}
