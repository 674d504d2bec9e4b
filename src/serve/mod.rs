//! The doors: HTTP (real-time, asynchronous) and AWS Lambda, in front of one pool.
//!
//! A door only translates: what it is sent into a picture with options, and what the pool found into
//! what its clients expect. The line of a picture is written by the same function as in a batch job,
//! so the same picture gives the same bytes through all of them.
//!
//! tokio has one thread here, for input and output only. Reading objects, base64 and digests go to
//! its blocking threads, pictures to the pool's workers.

pub mod desk;
pub mod endpoint;
pub mod http;
pub mod invocation;
pub mod lambda;
mod logs;
pub mod metrics;
pub mod phases;
pub mod problem;
mod serverless;
mod sockets;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

pub use endpoint::{Endpoint, EndpointConfig};
pub use http::{App, DoorConfig};
pub use lambda::{LambdaConfig, serve_lambda};

use self::phases::Phase;
use crate::job::JobError;
use crate::store::{Place, Roots};

/// What a server is, as it was asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model.
    pub endpoint: EndpointConfig,
    /// What the HTTP doors may take.
    pub doors: DoorConfig,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may name.
    pub roots: Vec<Place>,
    /// After so long without a request the model is unloaded.
    pub unload_after: Option<Duration>,
    /// After so long without a request the process ends.
    pub idle_exit: Option<Duration>,
    /// How long requests that are in are waited for when it ends.
    pub grace: Duration,
}

/// Serves until a signal asks it to stop.
///
/// # Errors
/// When the address cannot be had, or the model cannot be loaded at the start.
pub fn serve(config: Config) -> Result<(), JobError> {
    logs::start();
    let listener = sockets::listener(config.listen)?;
    phases::ended(Phase::Listening);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .map_err(|error| JobError::Internal(format!("cannot start tokio: {error}")))?;
    runtime.block_on(run(config, listener))
}

async fn run(config: Config, listener: TcpListener) -> Result<(), JobError> {
    let roots = Roots::open(&config.roots, &config.endpoint.s3)?;
    let endpoint = Endpoint::new(config.endpoint.clone(), roots);
    let app = App { endpoint: endpoint.clone(), doors: config.doors.clone() };
    let router = http::router(app).layer(axum::middleware::from_fn(phases::watch_first));
    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp(listener)
        .map_err(|error| JobError::Internal(format!("cannot set up the socket: {error}")))?
        .handle(handle.clone());
    server.http_builder().http1().keep_alive(true);
    let serving = tokio::spawn(server.serve(router.into_make_service()));
    if let Err(problem) = endpoint.ready().await {
        return Err(why_broken(&endpoint, problem));
    }
    phases::log_ready();
    if let Some(patience) = config.unload_after {
        tokio::spawn(serverless::unload_when_idle(endpoint.clone(), patience));
    }
    let idle = async {
        match config.idle_exit {
            Some(patience) => serverless::idle(&endpoint, patience).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        stopped = stop_signal() => stopped?,
        () = idle => tracing::info!("nobody has asked for a while: ending"),
    }
    handle.graceful_shutdown(Some(config.grace));
    let ended = serving.await;
    endpoint.close();
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(JobError::Internal(format!("the server failed: {error}"))),
        Err(error) => Err(JobError::Internal(format!("the server failed: {error}"))),
    }
}

/// Why the model could not be loaded at the start.
fn why_broken(endpoint: &Endpoint, problem: problem::Problem) -> JobError {
    let error = endpoint.broken();
    // It has the error, too.
    endpoint.close();
    error.and_then(Arc::into_inner).unwrap_or(JobError::Internal(problem.message))
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
