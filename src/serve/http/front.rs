//! What is common to all requests, whatever they ask: ids, who may ask, one line of the log, and an
//! answer also where a handler panics.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument as _;
use uuid::Uuid;

use super::life::Life;
use super::pace::Paced;
use super::reply::Reply;
use super::request::refuse;
use super::server::ServerConfig;
use crate::serve::auth::Gate;
use crate::serve::invocation::header_text;
use crate::serve::metrics::Door;
use crate::serve::problem::{Problem, RuntimeProblem};

/// The id that AWS's services give a request.
const AMZN_REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The id that a client gives it.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// More of a client's own id is not kept.
const LONGEST_ID: usize = 128;

/// What stands before the routes.
#[derive(Clone)]
pub struct Front {
    /// What is in, and whether the server is about to go.
    pub life: Life,
    /// What the socket may take.
    pub server: Arc<ServerConfig>,
    /// Who may ask; without it everybody may.
    pub gate: Option<Arc<Gate>>,
    /// Only this machine can reach the server, so whatever else `Host` says is a trick: a page of
    /// another site whose name has been pointed here, to read with the browser's help.
    pub local: bool,
}

/// What a request is called in logs and answers; handlers find it among its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// What a handler knows of an invocation and the log says of its request: an extension of the
/// response.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Through which door it came.
    pub door: Door,
    /// The problem's code, where there is one.
    pub code: Option<&'static str>,
    /// Time in which a worker was busy with it.
    pub model: Duration,
}

/// The code of a problem that is none of an invocation: an extension of the response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code(pub(crate) &'static str);

/// A handler panicked: an extension of the response that stands in for its own.
#[derive(Clone, Copy)]
struct Panicked;

/// Puts everything in front of the routes. Routes that are added later have none of it.
pub fn front(routes: Router, front: Front) -> Router {
    let panics = CatchPanicLayer::custom(|panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        tracing::error!(panic = text.unwrap_or("(without a text)"), "a handler panicked");
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(Panicked);
        response
    });
    routes
        .layer(middleware::from_fn_with_state(front.clone(), admitted))
        .layer(panics)
        .layer(middleware::from_fn_with_state(front, told))
}

/// Answers for paths that there are not, and for methods that these have not.
pub(super) fn strangers(routes: Router) -> Router {
    routes
        .fallback(|uri: Uri, request: Request| async move {
            unread(request).await;
            let message = format!("there is nothing at `{}`", uri.path());
            shaped(&uri, Problem::new(StatusCode::NOT_FOUND, "not_found", message))
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri, request: Request| async move {
            unread(request).await;
            let message = format!("`{}` does not take {method}", uri.path());
            let status = StatusCode::METHOD_NOT_ALLOWED;
            shaped(&uri, Problem::new(status, "method_not_allowed", message))
        })
}

/// Deals with the body of a request that nobody answers.
async fn unread(request: Request) {
    let (head, body) = request.into_parts();
    refuse(&head.headers, body).await;
}

/// A problem of the server's own, in the words of those whose path it is.
pub(crate) fn shaped(uri: &Uri, problem: Problem) -> Response {
    let code = Code(problem.code);
    let mut response = match is_aws(uri) {
        true => of_aws(problem),
        false => Reply(Err(problem)).into_response(),
    };
    response.extensions_mut().insert(code);
    response
}

fn of_aws(problem: Problem) -> Response {
    let (status, kind) = match problem.status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            (problem.status, "UnknownOperationException")
        }
        StatusCode::SERVICE_UNAVAILABLE => (problem.status, "ServiceUnavailable"),
        status if status.is_server_error() => {
            (StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure")
        }
        _ => (StatusCode::BAD_REQUEST, "ValidationError"),
    };
    RuntimeProblem::new(status, kind, &problem.message).into_response()
}

/// Whether a path is one of SageMaker's runtime.
pub(crate) fn is_aws(uri: &Uri) -> bool {
    uri.path().starts_with("/endpoints/")
}

/// Lets those in who may be.
async fn admitted(State(front): State<Front>, request: Request, next: Next) -> Response {
    // Health checks cannot sign, and the page, which has no data of its own, asks for the token.
    let open = match request.uri().path() {
        "/ping" => true,
        "/" => matches!(*request.method(), Method::GET | Method::HEAD),
        _ => false,
    };
    if front.gate.is_none() && front.local && !names_this_machine(request.headers()) {
        let uri = request.uri().clone();
        unread(request).await;
        let message = "Host is not this machine: give its address or localhost";
        return shaped(&uri, Problem::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", message));
    }
    match &front.gate {
        Some(gate) if !open => match gate.admit(request).await {
            Ok(request) => next.run(request).await,
            Err(refused) => refused,
        },
        _ => next.run(request).await,
    }
}

/// Whether `Host` is an address, or a name that every machine has for itself. Clients of HTTP/1.0
/// need not have any; browsers do.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str().unwrap_or_default().parse::<Authority>() else { return false };
    let host = host.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
}

/// Gives a request its ids and limits, and says how it ended.
async fn told(State(front): State<Front>, mut request: Request, next: Next) -> Response {
    let uri = request.uri().clone();
    let ping = uri.path() == "/ping";
    let _inside = (!ping).then(|| front.life.enter());
    let read = Arc::new(AtomicU64::new(0));
    let line = Line::of(&request, read.clone());
    request.extensions_mut().insert(RequestId(line.id.clone()));
    let patience = front.server.body_timeout;
    let request = request.map(|body| Body::new(Paced::new(body, patience, read)));
    let announced = has_body(request.headers());
    let length = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let span = crate::serve::telemetry::request_span(&request, &line.id);
    let mut response = if ping && front.life.draining() {
        let message = "the server is being stopped";
        shaped(&uri, Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message))
    } else if length > front.server.max_uri {
        unread(request).await;
        let most = front.server.max_uri;
        let message = format!("the path and the query have {length} bytes; {most} are taken");
        shaped(&uri, Problem::new(StatusCode::URI_TOO_LONG, "uri_too_long", message))
    } else {
        next.run(request).instrument(span.clone()).await
    };
    if response.extensions().get::<Panicked>().is_some() {
        let message = "a handler failed. This is a bug.";
        response = shaped(&uri, Problem::internal(message));
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&line.id) {
        headers.insert(AMZN_REQUEST_ID, id);
    }
    if let Some(id) = line.client.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert(X_REQUEST_ID, id);
    }
    let unread = announced && line.read.load(Ordering::Relaxed) == 0;
    let slow = response.status() == StatusCode::REQUEST_TIMEOUT;
    if front.life.draining() || slow || unread {
        close(&mut response);
    }
    crate::serve::telemetry::finish_span(&span, response.status());
    line.end(&response);
    response
}

/// Asks for the connection to be closed after this answer.
fn close(response: &mut Response) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Whether a request says that it has a body.
fn has_body(headers: &HeaderMap) -> bool {
    let length = header_text(headers, header::CONTENT_LENGTH.as_str());
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

/// An id of a client, if it is one: what ends in logs and headers has nothing but letters.
fn sane(id: &str) -> Option<String> {
    let sane: String = id.chars().filter(char::is_ascii_graphic).take(LONGEST_ID).collect();
    (!sane.is_empty()).then_some(sane)
}

/// The line of the log for one request. It is written also if the client leaves before its answer.
struct Line {
    id: String,
    client: Option<String>,
    inference: Option<String>,
    method: Method,
    path: String,
    read: Arc<AtomicU64>,
    begun: Instant,
    ended: bool,
}

impl Line {
    fn of(request: &Request, read: Arc<AtomicU64>) -> Line {
        let text = |name: &str| header_text(request.headers(), name).and_then(sane);
        let path = request.uri().path();
        let cut = path.char_indices().nth(256).map_or(path.len(), |(at, _)| at);
        Line {
            id: Uuid::new_v4().to_string(),
            client: text(X_REQUEST_ID.as_str()),
            inference: text("x-amzn-sagemaker-inference-id"),
            method: request.method().clone(),
            path: path[..cut].to_owned(),
            read,
            begun: Instant::now(),
            ended: false,
        }
    }

    fn end(mut self, response: &Response) {
        self.ended = true;
        let told = response.extensions().get::<Told>().copied();
        let status = response.status().as_u16();
        let code = response.extensions().get::<Code>().map(|code| code.0);
        let code = told.and_then(|told| told.code).or(code);
        let model = told.map(|told| millis(told.model));
        let door = told.map(|told| told.door.as_str());
        let sent = response.body().size_hint().exact();
        self.write(status, door, code, sent, model);
    }

    fn write(
        &self,
        status: u16,
        door: Option<&'static str>,
        code: Option<&'static str>,
        bytes_out: Option<u64>,
        model_ms: Option<f64>,
    ) {
        // Balancers ask every few seconds; that all is well is not worth a line each time.
        let routine = status < 400 && (self.path == "/ping" || self.path == "/metrics");
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.id,
                    client_request_id = self.client,
                    inference_id = self.inference,
                    method = self.method.as_str(),
                    path = self.path,
                    door,
                    status,
                    code,
                    bytes_in = self.read.load(Ordering::Relaxed),
                    bytes_out,
                    model_ms,
                    whole_ms = millis(self.begun.elapsed()),
                    "request"
                )
            };
        }
        match status {
            _ if routine => line!(debug),
            500.. => line!(warn),
            _ => line!(info),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.ended {
            // nginx's number for it; nobody is there to be told another.
            self.write(499, None, Some("client_left"), None, None);
        }
    }
}

/// In milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str, id: &str) -> (StatusCode, HeaderMap, String) {
        async fn dies() -> StatusCode {
            panic!("as the test wants")
        }
        let routes = Router::new().route("/dies", get(dies)).route("/endpoints/e/dies", get(dies));
        let (life, server) = (Life::default(), Arc::default());
        let before = Front { life, server, gate: None, local: true };
        let router = front(strangers(routes), before);
        let request = Request::get(path).header("x-request-id", id).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        (head.status, head.headers, String::from_utf8(body).unwrap())
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_panic_is_an_answer_in_the_words_of_its_route() {
        let (status, headers, body) = wait(ask("/dies", "mine"));
        assert_eq!(status, 500);
        assert_eq!(headers["x-request-id"], "mine");
        assert!(Uuid::parse_str(headers["x-amzn-requestid"].to_str().unwrap()).is_ok());
        assert!(body.contains(r#""code":"internal""#), "{body}");
        let (status, headers, body) = wait(ask("/endpoints/e/dies", "mine"));
        assert_eq!(
            (status, &headers["x-amzn-errortype"]),
            (StatusCode::INTERNAL_SERVER_ERROR, &"InternalFailure".parse().unwrap())
        );
        assert!(body.contains(r#""Message":"#), "{body}");
    }

    #[test]
    fn what_is_not_there_is_said_in_the_words_of_its_route() {
        let (status, _, body) = wait(ask("/nowhere", "a"));
        assert_eq!(status, 404);
        assert!(body.contains(r#""code":"not_found""#), "{body}");
        let (status, headers, _) = wait(ask("/endpoints/e/nowhere", "a"));
        assert_eq!(status, 404);
        assert_eq!(headers["x-amzn-errortype"], "UnknownOperationException");
    }

    #[test]
    fn ids_of_clients_keep_to_letters_and_a_length() {
        assert_eq!(sane("a b\tc\u{7f}ü"), Some("abc".into()));
        assert_eq!(sane(" \t"), None);
        assert_eq!(sane(&"x".repeat(1000)).unwrap().len(), LONGEST_ID);
    }

    #[test]
    fn a_name_that_was_pointed_here_is_not_this_machine() {
        let names = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            names_this_machine(&headers)
        };
        for host in ["127.0.0.1:8080", "[::1]:80", "localhost", "LOCALHOST:1", "a.localhost:80"] {
            assert!(names(host), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", "", "a b", "127.0.0.1.evil.org"]
        {
            assert!(!names(host), "{host}");
        }
        assert!(names_this_machine(&HeaderMap::new()));
    }
}
