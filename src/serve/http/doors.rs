//! Health, real-time invocations and their SageMaker forms.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Request, StatusCode, header};
use serde_json::json;

use super::front::Told;
use super::reply::{Kept, Reply, RuntimeReply};
use super::{App, request};
use crate::serve::desk::Priority;
use crate::serve::endpoint::Answer;
use crate::serve::invocation::{self, Form, Options, Picture, content_type, header_text};
use crate::serve::metrics::Door;
use crate::serve::problem::{Problem, RuntimeProblem};

/// How long SageMaker waits for `/ping`.
const PING: Duration = Duration::from_secs(2);

/// What SageMaker lets a transform job have under way: sizes of all payloads together, in MB.
const TRANSFORMS: u64 = 100;

/// An answer of more bytes counts as a request that is in, and takes room, until it is sent.
const LARGE: usize = 1 << 20;

/// `GET /ping`: whether this server can answer. It runs the model once after a failure.
pub(super) async fn ping(State(app): State<App>) -> Response {
    let health = tokio::time::timeout(PING, app.endpoint.health()).await;
    match health.unwrap_or_else(|_| Err(Problem::timed_out(PING))) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => Reply(Err(Problem { status: StatusCode::SERVICE_UNAVAILABLE, ..problem }))
            .into_response(),
    }
}

/// `GET /execution-parameters`: what suits a transform job that runs this as its container.
pub(super) async fn execution_parameters(State(app): State<App>) -> Response {
    // Whether SageMaker's are of 10^6 or 2^20 bytes is not written down: the fewer.
    let megabytes = (app.doors.most_bytes >> 20).clamp(1, TRANSFORMS);
    let inference = &app.endpoint.config().inference;
    // Each worker has a picture, and the next one is there when it is through.
    let wanted = 2 * inference.workers() as u64;
    let at_once = wanted.min(TRANSFORMS / megabytes).max(1);
    Json(json!({
        "MaxConcurrentTransforms": at_once,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": megabytes,
    }))
    .into_response()
}

/// `GET /metrics`, for Prometheus.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    match app.endpoint.metrics_text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(problem) => Reply(Err(problem)).into_response(),
    }
}

/// `POST /invocations`: what SageMaker asks of a container, and everybody else of a server.
pub(super) async fn invocations(State(app): State<App>, request: Request<Body>) -> Response {
    counted(&app, request, |result| Reply(result).into_response()).await
}

/// `POST /endpoints/{name}/invocations`: what clients ask of SageMaker's runtime.
pub(super) async fn endpoint_invocations(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    if let Err(problem) = is_ours(&app, &name, request.headers()) {
        let (head, body) = request.into_parts();
        request::refuse(&head.headers, body).await;
        return problem.into_response();
    }
    counted(&app, request, |result| RuntimeReply(result).into_response()).await
}

/// `POST /endpoints/{name}/invocations-response-stream`: there is nothing to stream.
pub(super) async fn endpoint_stream(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    let checked = is_ours(&app, &name, request.headers());
    let (head, body) = request.into_parts();
    request::refuse(&head.headers, body).await;
    let message = "the answer to a picture comes whole: use InvokeEndpoint";
    checked.err().unwrap_or_else(|| RuntimeProblem::validation(message)).into_response()
}

/// Whether a request of SageMaker's runtime is about this endpoint, and about what it has.
pub(in crate::serve) fn is_ours(
    app: &App,
    name: &str,
    headers: &HeaderMap,
) -> Result<(), RuntimeProblem> {
    if name != app.endpoint.name() {
        let message = format!("Endpoint {name} of account 000000000000 not found.");
        return Err(RuntimeProblem::validation(&message));
    }
    let refused = [
        ("x-amzn-sagemaker-target-model", "TargetModel", "it is no multi-model endpoint"),
        (
            "x-amzn-sagemaker-target-container-hostname",
            "TargetContainerHostname",
            "it has one container",
        ),
        ("x-amzn-sagemaker-enable-explanations", "EnableExplanations", "it has no explainer"),
        (
            "x-amzn-sagemaker-inference-component",
            "InferenceComponentName",
            "it has no inference components",
        ),
        ("x-amzn-sagemaker-session-id", "SessionId", "it keeps no sessions"),
        ("x-amzn-sagemaker-prefix-aware-id", "PrefixAwareId", "it keeps no prefixes"),
    ];
    for (header, parameter, why) in refused {
        if headers.contains_key(header) {
            let message = format!("{parameter} is not taken by endpoint {name}: {why}");
            return Err(RuntimeProblem::validation(&message));
        }
    }
    match header_text(headers, "x-amzn-sagemaker-target-variant") {
        None | Some("AllTraffic") => Ok(()),
        Some(variant) => {
            let message =
                format!("Variant {variant} of endpoint {name} not found: it has AllTraffic");
            Err(RuntimeProblem::validation(&message))
        }
    }
}

/// Answers a request, counts it, and leaves word for the log of how it ended.
async fn counted(
    app: &App,
    request: Request<Body>,
    reply: impl FnOnce(Result<Answer, Problem>) -> Response,
) -> Response {
    let begun = Instant::now();
    let door = request.extensions().get().copied().unwrap_or(Door::RealTime);
    app.endpoint.used();
    let limit = app.doors.timeout;
    let mut kept = None;
    let result = match app.endpoint.desk().enter() {
        Err(_) => {
            app.endpoint.metrics().shed.inc();
            let (head, body) = request.into_parts();
            request::refuse(&head.headers, body).await;
            Err(app.doors.crowded())
        }
        Ok(entry) => {
            let answered = async {
                let answer = answer(app, request).await?;
                if answer.bytes.len() > LARGE {
                    // Clients may be slow to take it.
                    let room = app.endpoint.desk().room(answer.bytes.len() as u64).await;
                    kept = Some((entry, room));
                }
                Ok(answer)
            };
            tokio::time::timeout(limit, answered)
                .await
                .unwrap_or_else(|_| Err(Problem::timed_out(limit)))
        }
    };
    let model = result.as_ref().map_or(Duration::ZERO, Answer::model_time);
    let code = result.as_ref().err().map(|problem| problem.code);
    let mut response = reply(result);
    if let Some(kept) = kept {
        response = response.map(|body| Body::new(Kept::new(body, kept)));
    }
    let whole = begun.elapsed();
    let status = response.status().as_u16();
    app.endpoint.used();
    app.endpoint.metrics().ended(door, status, model, whole);
    response.extensions_mut().insert(Told { door, code, model });
    response
}

async fn answer(app: &App, request: Request<Body>) -> Result<Answer, Problem> {
    let (head, body) = request.into_parts();
    let most = app.doors.most_bytes;
    let asked = || {
        let form = Form::accepted(header_text(&head.headers, header::ACCEPT.as_str()))?;
        let kind = invocation::Body::of(content_type(&head.headers))?;
        let options = Options::of_request(head.uri.query(), &head.headers)?;
        Ok((form, kind, options))
    };
    let (form, kind, options) = match asked() {
        Ok(asked) => asked,
        Err(problem) => {
            request::refuse(&head.headers, body).await;
            return Err(problem);
        }
    };
    let desk = app.endpoint.desk();
    let (bytes, mut room) = request::read(&head.headers, body, most, desk).await?;
    let (picture, said) = match kind {
        invocation::Body::Picture => (Picture::Bytes(bytes), Options::default()),
        // Megabytes of base64 are no work for the thread that serves everybody.
        invocation::Body::Json => blocking(move || Picture::of_body(kind, bytes)).await??,
    };
    let options = said.over(options);
    let bytes = match picture {
        Picture::Bytes(bytes) => bytes,
        Picture::Location(location) => {
            app.endpoint.roots().check(&location)?;
            drop(room);
            let (bytes, more) = app.endpoint.read(location, most).await??;
            room = Some(more);
            bytes
        }
    };
    let answer = app.endpoint.infer(bytes, &options, form, Priority::RealTime).await;
    drop(room);
    answer
}

/// Does what takes a while on a thread of its own.
pub(in crate::serve) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Problem::internal(format!("a thread failed: {error}")))
}
