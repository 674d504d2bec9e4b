//! Answers and problems as HTTP responses, on plain routes and on those of SageMaker's runtime.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::body::{Frame, SizeHint};

use crate::pool::Spent;
use crate::serve::endpoint::Answer;
use crate::serve::problem::{Problem, RuntimeProblem};

/// How long SageMaker's clients are told to wait, at most: they would not wait longer.
const MOST_WAIT: u128 = 5_000;

/// A handler's result on a plain route.
#[derive(Debug)]
pub struct Reply(pub Result<Answer, Problem>);

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self.0 {
            Ok(answer) => of_answer(answer),
            Err(problem) => {
                let mut response = json(problem.status, problem.body());
                if let Some(wait) = problem.retry_after {
                    let seconds = HeaderValue::from(wait.as_secs().max(1));
                    response.headers_mut().insert(header::RETRY_AFTER, seconds);
                }
                response
            }
        }
    }
}

/// A handler's result on a route of SageMaker's runtime.
#[derive(Debug)]
pub(super) struct RuntimeReply(pub(super) Result<Answer, Problem>);

impl IntoResponse for RuntimeReply {
    fn into_response(self) -> Response {
        match self.0 {
            Ok(answer) => {
                let mut response = of_answer(answer);
                let variant = HeaderValue::from_static("AllTraffic");
                response.headers_mut().insert("x-amzn-invoked-production-variant", variant);
                response
            }
            Err(problem) => {
                let mut response = problem.of_runtime().into_response();
                if let Some(wait) = problem.retry_after {
                    let millis = wait.as_millis().min(MOST_WAIT) as u64;
                    let headers = response.headers_mut();
                    headers.insert("x-amz-retry-after", HeaderValue::from(millis));
                    headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
                }
                response
            }
        }
    }
}

impl IntoResponse for RuntimeProblem {
    fn into_response(self) -> Response {
        let mut response = json(self.status, self.body.to_string().into_bytes());
        // Clients take the exception from here, and not from the body.
        response.headers_mut().insert("x-amzn-errortype", HeaderValue::from_static(self.kind));
        response
    }
}

fn of_answer(answer: Answer) -> Response {
    let kind = HeaderValue::from_static(answer.form.content_type());
    let timing = server_timing(&answer.spent);
    let mut response = Response::new(Body::from(answer.bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert("server-timing", timing);
    response
}

/// Where the worker's time went, in milliseconds, as browsers show it among their tools.
fn server_timing(spent: &Spent) -> HeaderValue {
    let Spent { decode, letterbox, infer, boxes, draw } = spent;
    let stages = [
        ("decode", decode),
        ("letterbox", letterbox),
        ("infer", infer),
        ("boxes", boxes),
        ("draw", draw),
    ];
    let stages = stages.map(|(name, time)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3));
    HeaderValue::try_from(stages.join(", "))
        .expect("names and numbers are no header value. This is a bug.")
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A body that keeps something until it is sent, or its client gone.
pub(super) struct Kept<T> {
    body: Body,
    _kept: T,
}

impl<T> Kept<T> {
    pub(super) fn new(body: Body, kept: T) -> Kept<T> {
        Kept { body, _kept: kept }
    }
}

impl<T: Unpin> HttpBody for Kept<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
