//! Why a request has no answer, in the two languages that clients speak.
//!
//! A [`Problem`] is what a container of ours says: a status, a stable code and a sentence. The doors
//! that imitate SageMaker's runtime put it as SageMaker would, which has fewer words: see
//! [`Problem::of_runtime`].

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use crate::job::write_error;
use crate::store::{Key, RootError};

/// Most bytes of a message.
const LONGEST: usize = 2000;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The status on plain routes.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// The line that a batch job would have written, where the picture itself is at fault.
    pub line: Option<Vec<u8>>,
    /// When it is worth another try.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// A problem without further ado.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
        let mut message = message.into();
        if message.len() > LONGEST {
            // Somebody's own text, sent back: whoever knows it needs its beginning only.
            truncate(&mut message, LONGEST);
            message.push('…');
        }
        Problem { status, code, message, line: None, retry_after: None }
    }

    /// The request is not what it must be.
    #[must_use]
    pub fn bad(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The picture cannot be read: `code`, `stage` and `message` are those of its line.
    #[must_use]
    pub fn picture(key: &Key, code: &'static str, stage: &str, message: &str) -> Problem {
        let mut line = Vec::new();
        write_error(&mut line, key, None, code, stage, message);
        Problem { line: Some(line), ..Problem::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// More bytes than are taken.
    #[must_use]
    pub fn too_large(most: u64) -> Problem {
        let message = format!("the request has more than {most} bytes, which is the limit here");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    /// There are too many requests already.
    #[must_use]
    pub fn crowded() -> Problem {
        let message = "all workers are busy and the queue is full; try again";
        Problem {
            retry_after: Some(Duration::from_secs(1)),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
        }
    }

    /// What is at fault may pass by itself.
    #[must_use]
    pub fn passing(message: impl Into<String>) -> Problem {
        Problem {
            retry_after: Some(Duration::from_secs(5)),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
        }
    }

    /// There are as many requests as a serverless endpoint takes at once.
    #[must_use]
    pub fn throttled() -> Problem {
        let message = "as many requests are in as this endpoint takes at once; try again";
        Problem {
            retry_after: Some(Duration::from_secs(1)),
            ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "throttled", message)
        }
    }

    /// It took too long.
    #[must_use]
    pub fn timed_out(limit: Duration) -> Problem {
        let message = format!("there was no answer within {} s", limit.as_secs_f64());
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", message)
    }

    /// The model, a worker or the machine is at fault, not the request.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// The answer's body: the line where there is one, else an object with `error` alone.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        if let Some(line) = &self.line {
            return line.clone();
        }
        let body = json!({ "error": { "code": self.code, "message": self.message } });
        let mut text = body.to_string().into_bytes();
        text.push(b'\n');
        text
    }

    /// What SageMaker's runtime would say of it: status, exception and body.
    #[must_use]
    pub fn of_runtime(&self) -> RuntimeProblem {
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                RuntimeProblem::new(self.status, "ServiceUnavailable", &self.message)
            }
            StatusCode::TOO_MANY_REQUESTS => {
                RuntimeProblem::new(StatusCode::BAD_REQUEST, "ThrottlingException", &self.message)
            }
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                RuntimeProblem::new(StatusCode::BAD_REQUEST, "ValidationError", &self.message)
            }
            status => {
                let (code, kind) = match status.is_client_error() {
                    true => ("CLIENT_ERROR_FROM_MODEL", "client"),
                    false => ("SERVER_ERROR_FROM_MODEL", "server"),
                };
                let original = String::from_utf8_lossy(&self.body()).trim_end().to_owned();
                let number = status.as_u16();
                let mut message = match status {
                    StatusCode::GATEWAY_TIMEOUT => "Your invocation timed out while waiting for a \
                         response from container primary."
                        .to_owned(),
                    _ => format!(
                        "Received {kind} error ({number}) from primary with message \"{original}\"."
                    ),
                };
                // As the API's own shapes have it.
                truncate(&mut message, 2048);
                let mut original = original;
                truncate(&mut original, 2048);
                let body = json!({
                    "ErrorCode": code,
                    "Message": message,
                    "OriginalStatusCode": number,
                    "OriginalMessage": original,
                    "LogStreamArn": "",
                });
                RuntimeProblem { status: StatusCode::FAILED_DEPENDENCY, kind: "ModelError", body }
            }
        }
    }
}

impl From<RootError> for Problem {
    fn from(error: RootError) -> Problem {
        let (status, code) = match &error {
            RootError::Malformed(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            RootError::Outside(_) => (StatusCode::FORBIDDEN, "outside"),
            RootError::Gone(_) => (StatusCode::NOT_FOUND, "gone"),
            RootError::Denied(_) => (StatusCode::FORBIDDEN, "denied"),
            RootError::TooLarge(..) => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            RootError::Store(_) => (StatusCode::BAD_GATEWAY, "store"),
        };
        Problem::new(status, code, error.to_string())
    }
}

/// A problem as SageMaker's runtime API puts it.
#[derive(Clone, Debug)]
pub struct RuntimeProblem {
    /// The status.
    pub status: StatusCode,
    /// The exception, for `x-amzn-ErrorType`.
    pub kind: &'static str,
    /// The JSON body.
    pub body: serde_json::Value,
}

impl RuntimeProblem {
    /// An exception that has a message and nothing else.
    #[must_use]
    pub fn new(status: StatusCode, kind: &'static str, message: &str) -> RuntimeProblem {
        RuntimeProblem { status, kind, body: json!({ "Message": message }) }
    }

    /// The request is about something that this endpoint has not.
    #[must_use]
    pub fn validation(message: &str) -> RuntimeProblem {
        RuntimeProblem::new(StatusCode::BAD_REQUEST, "ValidationError", message)
    }
}

fn truncate(text: &mut String, most: usize) {
    let end = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
}
