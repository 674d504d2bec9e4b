//! The HTTP doors: routes, and what is common to all of them.

pub(super) mod doors;
mod front;
mod life;
mod pace;
mod page;
mod reply;
pub(super) mod request;
mod server;
mod status;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};

pub(super) use doors::blocking;
pub use front::{Front, RequestId, Told, front};
pub use life::Life;
pub use reply::Reply;
pub use server::{Server, ServerConfig};
pub use tls::Tls;

pub(crate) use front::{Code, is_aws, shaped};
pub(crate) use request::{read, refuse};

use super::endpoint::Endpoint;
use super::problem::Problem;

/// What the doors may take.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Most bytes of a request's body, and of a picture that it names.
    pub most_bytes: u64,
    /// Longest time for a request, from its headers to its answer.
    pub timeout: Duration,
    /// Whether who comes when all places are taken is told so as SageMaker's serverless endpoints
    /// tell it.
    pub throttles: bool,
}

impl DoorConfig {
    /// What is said where all places are taken.
    #[must_use]
    pub fn crowded(&self) -> Problem {
        match self.throttles {
            true => Problem::throttled(),
            false => Problem::crowded(),
        }
    }
}

/// What all handlers know.
#[derive(Clone)]
pub struct App {
    /// The model behind the doors.
    pub endpoint: Arc<Endpoint>,
    /// What the doors may take.
    pub doors: DoorConfig,
}

/// All routes, and those of the asynchronous door.
pub fn router(app: App, more: Router) -> Router {
    let routes = Router::new()
        .route("/", get(page::page))
        .route("/status", get(status::status))
        .route("/ping", get(doors::ping))
        .route("/execution-parameters", get(doors::execution_parameters))
        .route("/metrics", get(doors::metrics))
        .route("/invocations", post(doors::invocations))
        .route("/endpoints/{name}/invocations", post(doors::endpoint_invocations))
        .route("/endpoints/{name}/invocations-response-stream", post(doors::endpoint_stream))
        .with_state(app);
    front::strangers(routes.merge(more))
}
