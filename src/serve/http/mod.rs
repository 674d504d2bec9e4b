//! The HTTP doors: routes, and what is common to all of them.

pub(super) mod doors;
mod reply;
pub(super) mod request;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};

pub use reply::Reply;

use super::endpoint::Endpoint;

/// What the doors may take.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Most bytes of a request's body, and of a picture that it names.
    pub most_bytes: u64,
    /// Longest time for a request, from its headers to its answer.
    pub timeout: Duration,
}

/// What all handlers know.
#[derive(Clone)]
pub struct App {
    /// The model behind the doors.
    pub endpoint: Arc<Endpoint>,
    /// What the doors may take.
    pub doors: DoorConfig,
}

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/ping", get(doors::ping))
        .route("/execution-parameters", get(doors::execution_parameters))
        .route("/metrics", get(doors::metrics))
        .route("/invocations", post(doors::invocations))
        .route("/endpoints/{name}/invocations", post(doors::endpoint_invocations))
        .route("/endpoints/{name}/invocations-response-stream", post(doors::endpoint_stream))
        .with_state(app)
}
