//! The doors: HTTP (real-time, asynchronous) and AWS Lambda, in front of one pool.
//!
//! A door only translates: what it is sent into a picture with options, and what the pool found into
//! what its clients expect. The line of a picture is written by the same function as in a batch job,
//! so the same picture gives the same bytes through all of them.
//!
//! tokio has one thread here, for input and output only. Reading objects, base64 and digests go to
//! its blocking threads, pictures to the pool's workers.

pub mod asynchronous;
pub mod desk;
pub mod endpoint;
pub mod http;
pub mod invocation;
pub mod metrics;
pub mod problem;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

pub use asynchronous::{AsyncConfig, AsyncDoor};
pub use endpoint::{Endpoint, EndpointConfig};
pub use http::{App, DoorConfig};

use crate::job::JobError;
use crate::store::{Place, Roots};

/// How long threads are waited for that are still reading or writing when all else has ended.
const PARTING: Duration = Duration::from_secs(1);

/// What a server is, as it was asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model.
    pub endpoint: EndpointConfig,
    /// What the HTTP doors may take.
    pub doors: DoorConfig,
    /// The asynchronous door, if there is one.
    pub asynchronous: Option<AsyncConfig>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may name.
    pub roots: Vec<Place>,
    /// After so long without a request the model is unloaded.
    pub unload_after: Option<Duration>,
    /// How long requests that are in are waited for when it ends.
    pub grace: Duration,
}

/// Serves until a signal asks it to stop.
///
/// # Errors
/// When the address cannot be had, or the model cannot be loaded at the start.
pub fn serve(config: Config) -> Result<(), JobError> {
    let failed =
        |what: &str, error: std::io::Error| JobError::Internal(format!("cannot {what}: {error}"));
    let listener = TcpListener::bind(config.listen)
        .map_err(|error| JobError::Usage(format!("cannot listen on {}: {error}", config.listen)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .map_err(|error| failed("start tokio", error))?;
    let served = runtime.block_on(run(config, listener));
    // A request to a bucket that nobody waits for any more may go on for minutes.
    runtime.shutdown_timeout(PARTING);
    served
}

async fn run(config: Config, listener: TcpListener) -> Result<(), JobError> {
    let roots = Roots::open(&config.roots, &config.endpoint.s3)?;
    let endpoint = Endpoint::new(config.endpoint.clone(), roots);
    let app = App { endpoint: endpoint.clone(), doors: config.doors.clone() };
    let door = match config.asynchronous.clone() {
        Some(asynchronous) => Some(AsyncDoor::start(endpoint.clone(), asynchronous).await?),
        None => None,
    };
    let router = http::router(app.clone()).merge(asynchronous::router(app, door.as_ref()));
    listener
        .set_nonblocking(true)
        .map_err(|error| JobError::Internal(format!("cannot set up the socket: {error}")))?;
    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp(listener)
        .map_err(|error| JobError::Internal(format!("cannot set up the socket: {error}")))?
        .handle(handle.clone());
    server.http_builder().http1().keep_alive(true);
    let serving = tokio::spawn(server.serve(router.into_make_service()));
    if endpoint.ready().await.is_err()
        && let Some(error) = endpoint.broken()
    {
        return Err(Arc::into_inner(error)
            .unwrap_or_else(|| JobError::Internal("the model cannot be loaded".into())));
    }
    stop_signal().await?;
    handle.graceful_shutdown(Some(config.grace));
    let parting = async {
        if let Some(door) = &door {
            door.stop(config.grace).await;
        }
    };
    let (ended, ()) = tokio::join!(serving, parting);
    if let Some(door) = &door {
        door.close();
    }
    endpoint.close();
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(JobError::Internal(format!("the server failed: {error}"))),
        Err(error) => Err(JobError::Internal(format!("the server failed: {error}"))),
    }
}

/// Waits for SIGTERM or SIGINT.
async fn stop_signal() -> Result<(), JobError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error| JobError::Internal(format!("cannot handle signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
