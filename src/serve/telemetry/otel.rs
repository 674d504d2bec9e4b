//! Traces of requests by OpenTelemetry, in OTLP over HTTP. Where to, how often and under which name
//! is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and so on); without an
//! endpoint there are none.

use std::time::Duration;

use axum::extract::MatchedPath;
use http::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::job::JobError;

/// At the end, spans are still sent for so long.
const PARTING: Duration = Duration::from_secs(3);

/// Where spans go. They are sent by a thread of its own; those that are still here are sent when it
/// is dropped.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// As the environment says; none where it says nothing.
    pub(super) fn start() -> Result<Option<Traces>, JobError> {
        let said = |name| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
        let endpoints = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        let off =
            std::env::var("OTEL_SDK_DISABLED").is_ok_and(|it| it.eq_ignore_ascii_case("true"));
        if off || !endpoints.into_iter().any(said) {
            return Ok(None);
        }
        // The exporter's client asks for the process's own; whoever was first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder().with_http().build().map_err(|error| {
            JobError::Usage(format!("cannot export traces as OTEL_EXPORTER_OTLP_* say: {error}"))
        })?;
        let mut resource = Resource::builder();
        if !said("OTEL_SERVICE_NAME") && !said("OTEL_RESOURCE_ATTRIBUTES") {
            resource = resource.with_service_name("haul");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        Ok(Some(Traces { provider }))
    }

    /// What takes the spans of requests, and what is logged within them.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        // Not those of the libraries: sending spans would make spans.
        let ours = Targets::new().with_target("haul", tracing::Level::INFO);
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("haul")).with_filter(ours)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PARTING) {
            tracing::warn!(%error, "not all traces were sent");
        }
    }
}

/// The span of a request, a child of the one that its `traceparent` names.
pub(crate) fn request_span<B>(request: &Request<B>, id: &str) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = request.method().as_str();
    let span = tracing::info_span!(
        "request",
        otel.name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = method,
        http.route = route,
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
        request_id = id,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    if let Err(error) = span.set_parent(parent) {
        // There is nobody to take spans.
        tracing::trace!(%error, "a span without a parent");
    }
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
