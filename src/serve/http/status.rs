//! `GET /status`: what there is to say about this server, as one JSON object for people's programs
//! and for the page. Looking at it wakes nothing: a model that was unloaded stays so.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::{Value, json};

use super::App;
use crate::job::BoxUnit;
use crate::serve::endpoint::{Ready, Standing};
use crate::serve::metrics::Door;

/// `GET /status`.
pub(super) async fn status(State(app): State<App>) -> Response {
    let headers =
        [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, Json(object(&app))).into_response()
}

fn object(app: &App) -> Value {
    let endpoint = &app.endpoint;
    let (desk, config) = (endpoint.desk(), endpoint.config());
    let seen = endpoint.metrics().seen(Door::RealTime);
    json!({
        "endpoint": endpoint.name(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": endpoint.start().elapsed().as_secs_f64(),
        "model": model(&endpoint.standing()),
        "requests": {
            "concurrent": desk.inside(),
            "queued": desk.waiting(),
            "workers_busy": desk.busy(),
        },
        "real_time": {
            "invocations": seen.invocations,
            "errors_4xx": seen.errors_4xx,
            "errors_5xx": seen.errors_5xx,
            "answers": seen.answers,
            "model_seconds": seen.model_seconds,
            "overhead_seconds": seen.overhead_seconds,
        },
        "limits": {
            "payload_bytes": app.doors.most_bytes,
            "timeout_seconds": app.doors.timeout.as_secs_f64(),
            "requests": config.most_requests,
            "bodies_bytes": config.most_bytes,
            "pixels": config.inference.limits.max_pixels,
            "picture_bytes": config.inference.limits.max_memory,
        },
    })
}

fn model(standing: &Standing) -> Value {
    match standing {
        Standing::Cold => json!({ "state": "cold" }),
        Standing::Loading => json!({ "state": "loading" }),
        Standing::Broken(error) => json!({ "state": "failed", "error": error.to_string() }),
        Standing::Ready(ready) => facts(ready),
    }
}

fn facts(ready: &Ready) -> Value {
    let Ready { facts, params, .. } = ready;
    json!({
        "state": "ready",
        "sha256": facts.sha256,
        "numeric_class": facts.numeric_class,
        "imgsz": facts.imgsz,
        "labels": facts.labels,
        "classes": facts.classes,
        // The decimals of what was asked for, not those of the nearest f32.
        "conf": decimal(params.nms.conf),
        "iou": decimal(params.nms.iou),
        "max_det": params.nms.max_det,
        "agnostic": params.nms.agnostic,
        "square": params.square,
        "boxes": match ready.unit {
            BoxUnit::Pixels => "pixels",
            BoxUnit::Normalized => "normalized",
        },
        "workers": ready.workers,
        "device": ready.device.to_string(),
        "memory_budget_bytes": ready.budget,
        "setup_seconds": ready.setup.as_secs_f64(),
        "notes": ready.notes,
    })
}

/// The shortest decimal number that is this one.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().expect("a number's text is no number. This is a bug.")
}
