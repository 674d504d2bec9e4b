//! AWS Lambda's runtime API, as far as a function needs it: it gives events and takes answers.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tokio::sync::Mutex;

/// The API, on a port of its own. It ends with the test.
pub(crate) struct RuntimeApi {
    pub(crate) address: String,
    events: tokio::sync::mpsc::UnboundedSender<Next>,
    answers: mpsc::Receiver<Answer>,
}

/// What `/next` says.
enum Next {
    Event { body: String, deadline: u64 },
    Nothing,
}

/// What became of an event.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Whether it is an answer, and no error.
    pub(crate) ok: bool,
    pub(crate) body: String,
}

#[derive(Clone)]
struct Shared {
    events: Arc<Mutex<tokio::sync::mpsc::UnboundedReceiver<Next>>>,
    answers: mpsc::Sender<Answer>,
}

impl RuntimeApi {
    pub(crate) fn start() -> RuntimeApi {
        let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
        let (sender, answers) = mpsc::channel();
        let shared = Shared { events: Arc::new(Mutex::new(receiver)), answers: sender };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = axum::Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .with_state(shared)
            .layer(axum::extract::DefaultBodyLimit::disable());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        RuntimeApi { address, events, answers }
    }

    /// Gives an event that has a minute, and waits for what becomes of it.
    #[track_caller]
    pub(crate) fn invoke(&self, body: &str) -> Answer {
        self.invoke_within(body, Duration::from_secs(60))
    }

    /// The same with so much time.
    #[track_caller]
    pub(crate) fn invoke_within(&self, body: &str, time: Duration) -> Answer {
        let deadline = SystemTime::now() + time;
        let deadline = deadline.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        self.invoke_until(body, deadline)
    }

    /// The same with this deadline.
    #[track_caller]
    pub(crate) fn invoke_until(&self, body: &str, deadline: u64) -> Answer {
        assert!(self.events.send(Next::Event { body: body.to_owned(), deadline }).is_ok());
        let answer = self.answers.recv_timeout(Duration::from_secs(120));
        answer.expect("no answer in two minutes")
    }

    /// Says that there is no event now, as emulators do.
    pub(crate) fn nothing(&self) {
        assert!(self.events.send(Next::Nothing).is_ok());
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert!(self.ok, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// Expects an error of this type, whose message says this.
    #[track_caller]
    pub(crate) fn fails(&self, kind: &str, said: &str) {
        assert!(!self.ok, "{}", self.body);
        let error: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(error["errorType"], kind, "{}", self.body);
        assert!(error["errorMessage"].as_str().unwrap().contains(said), "{}", self.body);
    }
}

async fn next(State(shared): State<Shared>) -> Response {
    match shared.events.lock().await.recv().await {
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Next::Nothing) => StatusCode::NO_CONTENT.into_response(),
        Some(Next::Event { body, deadline }) => {
            let mut headers = HeaderMap::new();
            let mut say = |name, value: String| headers.insert(name, value.parse().unwrap());
            say("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd".into());
            say("lambda-runtime-deadline-ms", deadline.to_string());
            let arn = "arn:aws:lambda:us-east-2:123456789012:function:custom-runtime";
            say("lambda-runtime-invoked-function-arn", arn.into());
            say("content-type", "application/json".into());
            (headers, body).into_response()
        }
    }
}

async fn response(State(shared): State<Shared>, Path(_): Path<String>, body: Bytes) -> StatusCode {
    took(&shared, true, &body)
}

async fn error(State(shared): State<Shared>, Path(_): Path<String>, body: Bytes) -> StatusCode {
    took(&shared, false, &body)
}

fn took(shared: &Shared, ok: bool, body: &[u8]) -> StatusCode {
    let _ = shared.answers.send(Answer { ok, body: String::from_utf8(body.to_vec()).unwrap() });
    StatusCode::ACCEPTED
}
