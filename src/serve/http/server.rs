//! How the socket is served: who is let in, for how long, and how it ends.
//!
//! A client that is slow, silent, or sends what is no HTTP costs one connection for a bounded time
//! and nothing else. Connections are taken only while there is a slot for them; others wait in the
//! system's backlog, where they cost nothing.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt as _;

use super::life::Life;
use super::tls::Tls;
use super::wire::{Stage, Wire};

/// What the socket may take.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Connections that are served at once; more wait in the backlog.
    pub max_connections: usize,
    /// A request's line and headers come within this time, counted from their first byte; so does
    /// a TLS handshake.
    pub header_timeout: Duration,
    /// In each stretch of so long a body makes some progress.
    pub body_timeout: Duration,
    /// A client that takes nothing of its answer for so long is left.
    pub write_timeout: Duration,
    /// A connection without a request is closed after so long.
    pub idle_timeout: Duration,
    /// Most bytes of a request's line and headers.
    pub max_header_bytes: usize,
    /// Most headers of a request.
    pub max_headers: usize,
    /// Most bytes of a request's path and query.
    pub max_uri: usize,
    /// Certificate chain and key, PEM files; without them there is no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            // Load balancers keep theirs for 60 s, and must be the ones who close.
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: 64 << 10,
            max_headers: 100,
            max_uri: 8 << 10,
            tls: None,
        }
    }
}

/// The server's own part of what each connection needs.
struct Shared {
    http: http1::Builder,
    config: ServerConfig,
    tls: Option<Arc<Tls>>,
    router: Router,
}

/// A socket that is listened on.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    connections: GracefulShutdown,
}

impl Server {
    /// Serves `router` on a socket that is bound already.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn new(
        listener: std::net::TcpListener,
        router: Router,
        config: ServerConfig,
        tls: Option<Arc<Tls>>,
    ) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        room_for_files(config.max_connections);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .keep_alive(true)
            // Both the wait for a request and that for its headers, to hyper; `Wire` is stricter
            // with headers.
            .header_read_timeout(config.idle_timeout.max(config.header_timeout))
            .max_headers(config.max_headers)
            .max_header_size(config.max_header_bytes)
            .max_buf_size(config.max_header_bytes.max(SMALLEST_BUFFER));
        Ok(Server {
            listener: TcpListener::from_std(listener)?,
            slots: Arc::new(Semaphore::new(
                config.max_connections.clamp(1, Semaphore::MAX_PERMITS),
            )),
            shared: Arc::new(Shared { http, config, tls, router }),
            connections: GracefulShutdown::new(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, and then until what is in is answered, at most `grace`. Whether all of
    /// it was.
    ///
    /// Connections are still taken for the first half of that time, while requests are in, so that
    /// a load balancer is told by `/ping` and not by a connection that is refused.
    pub async fn serve(self, life: &Life, stop: impl Future<Output = ()>, grace: Duration) -> bool {
        tokio::select! {
            () = self.accept() => {}
            () = stop => {}
        }
        life.drain();
        let deadline = tokio::time::Instant::now() + grace;
        tokio::select! {
            () = self.accept() => {}
            () = life.empty() => {}
            () = tokio::time::sleep(grace / 2) => {}
        }
        let Server { listener, connections, .. } = self;
        drop(listener);
        let closed = tokio::time::timeout_at(deadline, connections.shutdown()).await.is_ok();
        // Whoever has only connected, or not said all of what it wants, is owed nothing.
        closed || life.inside() == 0
    }

    /// Takes connections; has no end of its own.
    async fn accept(&self) {
        loop {
            let slot = self.slots.clone().acquire_owned().await;
            let slot = slot.expect("the server's slots were closed. This is a bug.");
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let serving =
                        connection(self.shared.clone(), stream, slot, self.connections.watcher());
                    tracing::trace!(%peer, "connection");
                    tokio::spawn(serving);
                }
                // The client was gone before it was there.
                Err(error) if of_the_client(&error) => {}
                Err(error) => {
                    // No file descriptors, most likely, which takes an end of somebody.
                    tracing::warn!(%error, "cannot take connections; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Each connection is a file to the system, which gives a process 1024 unless it asks for more.
fn room_for_files(connections: usize) {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHER_FILES);
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let most = soft.max(wanted.min(hard));
        setrlimit(Resource::RLIMIT_NOFILE, most, hard).map(|()| most)
    });
    match raised {
        Ok(most) if most >= wanted => {}
        Ok(most) => tracing::warn!(
            connections,
            most,
            "there may not be files for all connections: raise the limit (ulimit -n) or lower \
             --max-connections"
        ),
        Err(error) => tracing::warn!(%error, "cannot ask for more open files"),
    }
}

/// Files that are no connections: pictures being read, the model, sockets to stores, logs.
const OTHER_FILES: u64 = 256;

/// The smallest buffer that hyper works with.
const SMALLEST_BUFFER: usize = 8 << 10;

/// After a connection could not be taken, others are tried so much later.
const PAUSE: Duration = Duration::from_millis(100);

fn of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection to its end, TLS first where there is any.
async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
    watcher: Watcher,
) {
    // Answers are written whole: there is nothing to wait for.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let Some(tls) = &shared.tls else { return requests(&shared, stream, watcher).await };
    match tokio::time::timeout(shared.config.header_timeout, tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(&shared, stream, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
        Err(_) => tracing::debug!("no TLS handshake in time"),
    }
}

/// Serves the requests of one connection.
async fn requests<S>(shared: &Shared, stream: S, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stage = Stage::new();
    let wire =
        Wire::new(stream, stage.clone(), shared.config.header_timeout, shared.config.write_timeout);
    let router = shared.router.clone();
    let service = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (router, stage) = (router.clone(), stage.clone());
        async move {
            stage.request();
            let response = router.oneshot(request.map(axum::body::Body::new)).await;
            stage.response();
            response
        }
    });
    let service = TowerToHyperService::new(service);
    let serving = shared.http.serve_connection(TokioIo::new(wire), service);
    if let Err(error) = watcher.watch(serving).await {
        // Of the client's doing, all of them: what is no HTTP, what comes too slowly, who leaves.
        let why = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, why, "connection ended");
    }
}
