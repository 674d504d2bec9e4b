//! The HTTP doors: routes, and what is common to all of them.

mod doors;
mod front;
mod life;
mod pace;
mod reply;
mod request;
mod server;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};

pub use front::{Front, RequestId, Told, front};
pub use life::Life;
pub use reply::Reply;
pub use server::{Server, ServerConfig};
pub use tls::Tls;

pub(crate) use front::{Code, is_aws, shaped};
pub(crate) use request::{read, refuse};

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
    let routes = Router::new()
        .route("/ping", get(doors::ping))
        .route("/execution-parameters", get(doors::execution_parameters))
        .route("/metrics", get(doors::metrics))
        .route("/invocations", post(doors::invocations))
        .route("/endpoints/{name}/invocations", post(doors::endpoint_invocations))
        .route("/endpoints/{name}/invocations-response-stream", post(doors::endpoint_stream))
        .with_state(app);
    front::strangers(routes)
}
