//! The doors: HTTP (real-time, asynchronous) and AWS Lambda, in front of one pool.
//!
//! A door only translates: what it is sent into a picture with options, and what the pool found into
//! what its clients expect. The line of a picture is written by the same function as in a batch job,
//! so the same picture gives the same bytes through all of them.
//!
//! tokio has one thread here, for input and output only. Reading objects, base64 and digests go to
//! its blocking threads, pictures to the pool's workers.

pub mod asynchronous;
pub mod auth;
pub mod desk;
pub mod endpoint;
pub mod http;
pub mod invocation;
pub mod lambda;
pub mod metrics;
pub mod phases;
pub mod problem;
mod serverless;
mod signals;
mod sockets;
pub mod telemetry;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use asynchronous::{AsyncConfig, AsyncDoor};
pub use auth::AuthConfig;
pub use endpoint::{Endpoint, EndpointConfig};
pub use http::{App, DoorConfig, ServerConfig};
pub use lambda::{LambdaConfig, serve_lambda};

use self::auth::Gate;
use self::endpoint::Ready;
use self::http::{Front, Life, Server, Tls};
use self::phases::Phase;
use self::signals::Signals;
use crate::job::JobError;
use crate::store::{Place, Roots};

/// What a server is, as it was asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model.
    pub endpoint: EndpointConfig,
    /// What the HTTP doors may take.
    pub doors: DoorConfig,
    /// The asynchronous door, if there is one.
    pub asynchronous: Option<AsyncConfig>,
    /// What the socket may take.
    pub server: ServerConfig,
    /// Who may ask.
    pub auth: AuthConfig,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may name.
    pub roots: Vec<Place>,
    /// After so long without a request the model is unloaded.
    pub unload_after: Option<Duration>,
    /// After so long without a request, and without work for the asynchronous door, the process
    /// ends.
    pub idle_exit: Option<Duration>,
    /// How long requests that are in are waited for when it ends.
    pub grace: Duration,
}

/// How long blocking threads are waited for at the end: what is in is answered by then, and who
/// still waits for a store waits for nobody.
const PARTING: Duration = Duration::from_secs(1);

/// Threads for what blocks, besides one for each request that may be in and those that read objects:
/// they are made when they are wanted.
const SPARE_THREADS: usize = 16;

/// Serves until a signal asks it to stop, or nobody has asked for as long as it was to wait. A
/// second signal ends the process at once, and so does the first if the model is not loaded yet.
///
/// # Errors
/// When the address cannot be had, when the model, the queue or a file of secrets cannot be opened
/// at the start, or when requests were still in at the end.
pub fn serve(config: Config) -> Result<(), JobError> {
    let listener = sockets::listener(config.listen)?;
    phases::ended(Phase::Listening);
    let threads = config.endpoint.most_requests.saturating_add(SPARE_THREADS + endpoint::READS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(threads)
        .build()
        .map_err(|error| JobError::Internal(format!("cannot start tokio: {error}")))?;
    let served = runtime.block_on(run(config, listener));
    runtime.shutdown_timeout(PARTING);
    served
}

async fn run(config: Config, listener: TcpListener) -> Result<(), JobError> {
    let mut signals = Signals::listen()?;
    let roots = Roots::open(&config.roots, &config.endpoint.s3)?;
    let tls = config.server.tls.as_ref().map(|(chain, key)| Tls::read(chain, key));
    let tls = tls.transpose()?.map(Arc::new);
    let gate = match config.auth.is_open() {
        true => None,
        false => {
            let room = config.endpoint.most_bytes;
            Some(Arc::new(Gate::open(config.auth.clone(), config.doors.clone(), room)?))
        }
    };
    let _reloading = reload_on_hangup(tls.clone(), gate.clone())?;
    let endpoint = Endpoint::new(config.endpoint.clone(), roots);
    let app = App { endpoint: endpoint.clone(), doors: config.doors.clone() };
    let door = match config.asynchronous.clone() {
        Some(asynchronous) => Some(AsyncDoor::start(endpoint.clone(), asynchronous).await?),
        None => None,
    };
    let life = Life::default();
    let open = gate.is_none();
    let front = Front {
        life: life.clone(),
        server: Arc::new(config.server.clone()),
        gate,
        local: listener.local_addr().is_ok_and(|address| address.ip().is_loopback()),
    };
    let routes = http::router(app.clone(), asynchronous::router(app, door.as_ref()));
    let routes = routes.layer(axum::middleware::from_fn(phases::watch_first));
    let scheme = if tls.is_some() { "https" } else { "http" };
    let unusable = |error| JobError::Internal(format!("cannot set up the socket: {error}"));
    let server = Server::new(listener, http::front(routes, front), config.server.clone(), tls);
    let server = server.map_err(unusable)?;
    let address = server.address().map_err(unusable)?;
    tracing::info!(
        %address,
        url = format!("{scheme}://{address}"),
        endpoint = endpoint.name(),
        "listening"
    );
    if open && !address.ip().is_loopback() {
        tracing::warn!(%address, "everybody who reaches this address may ask (see --token-file)");
    }
    let (stop, stopping) = oneshot::channel::<()>();
    let grace = config.grace;
    let serving = tokio::spawn({
        let life = life.clone();
        async move { server.serve(&life, async { drop(stopping.await) }, grace).await }
    });
    tokio::select! {
        ready = endpoint.ready() => if let Err(problem) = ready {
            return Err(why_broken(&endpoint, problem));
        },
        // There is nothing to finish.
        signal = signals.next() => signals::end(signal),
    }
    if let Some(ready) = endpoint.loaded() {
        said(&config.endpoint, &ready);
    }
    if let Some(patience) = config.unload_after {
        tokio::spawn(serverless::unload_when_idle(endpoint.clone(), patience));
    }
    let idle = async {
        let busy = || door.as_ref().is_some_and(|door| !door.is_idle());
        match config.idle_exit {
            Some(patience) => serverless::idle(&endpoint, patience, busy).await,
            None => std::future::pending().await,
        }
    };
    let grace_s = grace.as_secs_f64();
    tokio::select! {
        signal = signals.next() => tracing::info!(signal, inside = life.inside(), grace_s, "stopping"),
        () = idle => tracing::info!("nobody has asked for a while: stopping"),
    }
    // Nobody is there to be told if the server itself has ended.
    let _ = stop.send(());
    tokio::spawn(async move { signals::end(signals.next().await) });
    let parting = async {
        if let Some(door) = &door {
            door.stop(grace).await;
        }
    };
    let (clean, ()) = tokio::join!(serving, parting);
    let inside = life.inside();
    if let Some(door) = &door {
        door.close();
    }
    endpoint.close();
    match clean {
        Ok(true) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(false) => Err(JobError::Internal(format!(
            "{inside} requests were still in after the grace of {grace_s} s"
        ))),
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

/// Says what was loaded, and how long it took to get there.
fn said(config: &EndpointConfig, ready: &Ready) {
    tracing::info!(
        model = %config.inference.model.display(),
        classes = ready.facts.labels.len(),
        numeric_class = %ready.facts.numeric_class,
        workers = ready.workers,
        device = %ready.device,
        memory_budget = ready.budget,
        setup_ms = ready.setup.as_millis() as u64,
        before_main_cpu_ms = phases::before_main(),
        arguments_ms = phases::at(Phase::Arguments),
        listening_ms = phases::at(Phase::Listening),
        model_ms = phases::at(Phase::Model),
        "ready"
    );
    note(ready);
}

/// Says what else there is to know about a model.
fn note(ready: &Ready) {
    for note in &ready.notes {
        tracing::info!(note, "note");
    }
}

/// Reads certificates and secrets again whenever the process is told SIGHUP, if there are any.
fn reload_on_hangup(
    tls: Option<Arc<Tls>>,
    gate: Option<Arc<Gate>>,
) -> Result<Option<JoinHandle<()>>, JobError> {
    if tls.is_none() && gate.is_none() {
        return Ok(None);
    }
    let mut hangups = signals::hangups()?;
    Ok(Some(tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let (tls, gate) = (tls.clone(), gate.clone());
            // Files, and keys to be checked: no work for the thread that serves everybody.
            let read = tokio::task::spawn_blocking(move || {
                let tls = tls.map_or(Ok(()), |tls| tls.reload());
                let gate = gate.map_or(Ok(()), |gate| gate.reload());
                [tls, gate].into_iter().filter_map(Result::err).collect::<Vec<_>>()
            });
            match read.await {
                Ok(errors) if errors.is_empty() => {
                    tracing::info!("certificates and secrets were read again");
                }
                Ok(errors) => errors.iter().for_each(|error| {
                    tracing::error!(%error, "not read again; what was read before is still used");
                }),
                Err(error) => tracing::error!(%error, "not read again"),
            }
        }
    })))
}
