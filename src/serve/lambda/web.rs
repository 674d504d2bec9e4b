//! HTTP requests that come as events: to the router and back, translated by `lambda_http`.

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Request};
use lambda_runtime::{Context, LambdaEvent};
use serde_json::value::RawValue;
use tower::ServiceExt as _;
use tower::service_fn;

use super::failed::Failed;
use crate::serve::http::{App, router};
use crate::serve::metrics::Door;

/// A request whose parts that `lambda_http` would panic about have been taken out.
pub(super) struct Web {
    request: LambdaRequest,
    host: Option<HeaderValue>,
    body: Bytes,
}

/// What all kinds of requests have.
struct Parts<'a> {
    path: &'a mut Option<String>,
    stage: Option<String>,
    query: Option<&'a str>,
    headers: &'a mut HeaderMap,
    body: Option<String>,
    base64: bool,
}

impl Web {
    /// Takes a request apart; base64 is some work.
    ///
    /// # Errors
    /// [`Failed`] when it is no HTTP request.
    pub(super) fn new(mut request: LambdaRequest) -> Result<Web, Failed> {
        let parts = match &mut request {
            LambdaRequest::ApiGatewayV1(event) => {
                event.request_context.domain_name = None;
                Parts {
                    path: &mut event.path,
                    stage: event.request_context.stage.take(),
                    query: None,
                    headers: &mut event.headers,
                    body: event.body.take(),
                    base64: event.is_base64_encoded,
                }
            }
            LambdaRequest::ApiGatewayV2(event) => {
                event.request_context.domain_name = None;
                Parts {
                    path: &mut event.raw_path,
                    stage: event.request_context.stage.take(),
                    query: event.raw_query_string.as_deref(),
                    headers: &mut event.headers,
                    body: event.body.take(),
                    base64: event.is_base64_encoded,
                }
            }
            LambdaRequest::Alb(event) => Parts {
                path: &mut event.path,
                stage: None,
                query: None,
                headers: &mut event.headers,
                body: event.body.take(),
                base64: event.is_base64_encoded,
            },
            _ => return Err(Failed::malformed("it is an HTTP request of an unknown kind")),
        };
        // A stage is before our paths, and none of them.
        let path = parts.path.take().unwrap_or_else(|| "/".to_owned());
        let stage = parts.stage.filter(|stage| stage != "$default");
        let inner = stage.and_then(|stage| path.strip_prefix(&format!("/{stage}/")));
        let path = inner.map_or_else(|| path.clone(), |inner| format!("/{inner}"));
        if !path.starts_with('/') {
            return Err(Failed::malformed(format!("the request's path is `{path}`")));
        }
        *parts.path = Some(path);
        if let Some(query) = parts.query
            && PathAndQuery::try_from(format!("/?{query}")).is_err()
        {
            return Err(Failed::malformed(format!("the request's query is `{query}`")));
        }
        let host = parts.headers.remove(HOST);
        let body = match (parts.body, parts.base64) {
            (None, _) => Vec::new(),
            (Some(text), false) => text.into_bytes(),
            (Some(text), true) => STANDARD.decode(&text).map_err(|error| {
                Failed::malformed(format!("the request's body is not base64: {error}"))
            })?,
        };
        Ok(Web { request, host, body: body.into() })
    }

    /// Asks the router. The answer is written in the form that the request's sender wants.
    ///
    /// # Errors
    /// [`Failed`] when the answer cannot be written.
    pub(super) async fn ask(self, app: App, context: Context) -> Result<Box<RawValue>, Failed> {
        let Web { request, host, body } = self;
        let service = service_fn(move |request: Request| {
            let (mut head, _) = request.into_parts();
            host.clone().map(|host| head.headers.insert(HOST, host));
            head.extensions.insert(Door::Lambda);
            let body = axum::body::Body::from(body.clone());
            router(app.clone(), Router::new()).oneshot(http::Request::from_parts(head, body))
        });
        let event = LambdaEvent::new(request, context);
        let Ok(response) = Adapter::from(service).oneshot(event).await;
        // Base64 of a picture, for instance.
        let written = tokio::task::spawn_blocking(move || {
            serde_json::value::to_raw_value(&response).map_err(|error| error.to_string())
        });
        match written.await {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(error)) => Err(Failed::new("internal", format!("the answer: {error}"))),
            Err(error) => Err(Failed::new("internal", format!("a thread failed: {error}"))),
        }
    }
}
