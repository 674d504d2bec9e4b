//! The connection to S3: its one thread, its configuration, and what all its requests share.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use aws_smithy_http_client::tls;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::gate::Gate;
use super::options::{Checksums, S3Options};
use super::traffic::{Counts, Traffic};

/// A connection to S3, or to what speaks like it. Copies share it.
#[derive(Clone, Debug)]
pub struct S3(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) options: S3Options,
    client: RwLock<Option<Client>>,
    /// Seconds that servers are ahead of our clock.
    skew: Arc<AtomicI64>,
    pub(super) gate: Gate,
    pub(super) counts: Counts,
    /// Whether it has ever answered: before that, little patience is due.
    pub(super) met: AtomicBool,
    /// Buckets that are there.
    buckets: Mutex<HashSet<String>>,
    /// Whether entity tags were found to be digests of the content.
    pub(super) true_tags: AtomicBool,
    /// Whether entity tags were found not to be digests of the content.
    pub(super) opaque_tags: AtomicBool,
    /// Whether the server was found to want entity tags in conditions without their quotes.
    pub(super) bare_tags: AtomicBool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Of the client everything would be shown, pages of it.
        f.debug_struct("S3").field("options", &self.options).finish_non_exhaustive()
    }
}

impl S3 {
    /// The connection for these options; nothing is sent yet. The same options give the same one.
    #[must_use]
    pub fn with(options: &S3Options) -> S3 {
        static KNOWN: OnceLock<Mutex<HashMap<S3Options, S3>>> = OnceLock::new();
        let mut known =
            KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(options.clone()).or_insert_with(|| S3::new(options.clone())).clone()
    }

    fn new(options: S3Options) -> S3 {
        S3(Arc::new(Inner {
            options,
            client: RwLock::new(None),
            skew: Arc::default(),
            gate: Gate::new(),
            counts: Counts::default(),
            met: AtomicBool::new(false),
            buckets: Mutex::default(),
            true_tags: AtomicBool::new(false),
            opaque_tags: AtomicBool::new(false),
            bare_tags: AtomicBool::new(false),
        }))
    }

    /// Which server it is, if somebody said; AWS otherwise.
    pub(super) fn endpoint(&self) -> Option<String> {
        endpoint(&self.0.options)
    }

    /// What was asked so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.0.counts.get()
    }

    /// Runs a future on the thread of the connection, and waits for it outside.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let ended = self.start(future);
        ended.recv().expect("the thread of S3 has ended. This is a bug.")
    }

    /// Runs a future on the thread of the connection; its value can be waited for.
    pub(super) fn start<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> crossbeam_channel::Receiver<T> {
        // Room for the one value, so that nothing on that thread waits for whoever reads it.
        let (sender, receiver) = crossbeam_channel::bounded(1);
        runtime().spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver
    }

    /// Runs a future on the thread of the connection for as long as somebody may ask for its value.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Asked<T> {
        let (sender, ended) = crossbeam_channel::bounded(1);
        let task = runtime().spawn(async move {
            let _ = sender.send(future.await);
        });
        Asked { ended, task: task.abort_handle() }
    }

    /// The client; made when it is first asked for.
    pub(super) async fn client(&self) -> Client {
        let there = self.0.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        match there {
            Some(client) => client,
            None => {
                let client = Client::from_conf(configure(&self.0.options, &self.0.skew).await);
                let mut slot = self.0.client.write().unwrap_or_else(PoisonError::into_inner);
                slot.get_or_insert(client).clone()
            }
        }
    }

    /// Looks for credentials anew with the next request: those it has are refused as expired.
    pub(super) fn forget_credentials(&self) {
        *self.0.client.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a bucket is known to be there.
    pub(super) fn knows(&self, bucket: &str) -> bool {
        self.0.buckets.lock().unwrap_or_else(PoisonError::into_inner).contains(bucket)
    }

    pub(super) fn learn(&self, bucket: &str) {
        let mut buckets = self.0.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(bucket.to_owned());
    }

    /// Takes the server's clock for ours from now on.
    pub(super) fn believe_clock(&self, ahead: i64) {
        self.0.skew.store(ahead, Ordering::Relaxed);
    }
}

/// Something under way that ends when this is dropped.
pub(super) struct Asked<T> {
    ended: crossbeam_channel::Receiver<T>,
    task: AbortHandle,
}

impl<T> Asked<T> {
    /// Waits for its value.
    pub(super) fn wait(self) -> T {
        self.ended.recv().expect("the thread of S3 has ended. This is a bug.")
    }
}

impl<T> Drop for Asked<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The one thread on which requests run, for the life of the process.
fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Names are looked up there.
            .max_blocking_threads(4)
            .build()
            .expect("the system gives no thread or timer for S3");
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("s3".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .expect("the system gives no thread for S3");
        handle
    })
}

/// Our clock, put right.
#[derive(Debug)]
struct Clock(Arc<AtomicI64>);

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        let ahead = self.0.load(Ordering::Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        let now = SystemTime::now();
        if ahead < 0 { now.checked_sub(by) } else { now.checked_add(by) }.unwrap_or(now)
    }
}

fn said(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn endpoint(options: &S3Options) -> Option<String> {
    let said = || said("AWS_ENDPOINT_URL_S3").or_else(|| said("AWS_ENDPOINT_URL"));
    options.endpoint_url.clone().or_else(said)
}

/// How long an answer may take, from when the request is begun.
pub(super) const READ: Duration = Duration::from_secs(30);

pub(super) fn timeouts(read: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(Duration::from_secs(5)).read_timeout(read).build()
}

/// Credentials, region, connection and clock for a service of AWS, or for what speaks like it at
/// `endpoint`. Nothing is tried again by itself.
async fn common(options: &S3Options, endpoint: Option<String>, skew: &Arc<AtomicI64>) -> SdkConfig {
    let elsewhere = endpoint.as_ref().is_some_and(|url| !url.contains(".amazonaws.com"));
    let region = match &options.region {
        Some(region) => Some(Region::new(region.clone())),
        // No instance of AWS knows another server's region, and asking for one takes seconds.
        None if elsewhere => {
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(ProfileFileRegionProvider::new())
                .or_else(Region::from_static("us-east-1"))
                .region()
                .await
        }
        // The loader asks whom it knows, with the connection that it is given.
        None => None,
    };
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .time_source(SharedTimeSource::new(Clock(skew.clone())))
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts(READ));
    if let Some(region) = region {
        loader = loader.region(region);
    }
    if let Ok(name) = AppName::new(concat!("haul-", env!("CARGO_PKG_VERSION"))) {
        loader = loader.app_name(name);
    }
    if let Some(url) = endpoint {
        loader = loader.endpoint_url(url);
    }
    if options.unsigned {
        loader = loader.no_credentials();
    }
    loader.load().await
}

/// What a client of another service at `endpoint` needs; its region and credentials are found as
/// those of S3 are.
pub(crate) async fn service(options: &S3Options, endpoint: String) -> SdkConfig {
    common(options, Some(endpoint), &Arc::default()).await
}

async fn configure(options: &S3Options, skew: &Arc<AtomicI64>) -> aws_sdk_s3::Config {
    let endpoint = endpoint(options);
    let elsewhere = endpoint.as_ref().is_some_and(|url| !url.contains(".amazonaws.com"));
    let config = common(options, endpoint, skew).await;
    let region = config.region().cloned().unwrap_or(Region::from_static("us-east-1"));
    let mut builder = aws_sdk_s3::config::Builder::from(&config)
        .region(region)
        .force_path_style(options.path_style.unwrap_or(elsewhere));
    if let Some(checksums) = options.checksums {
        let (request, response) = match checksums {
            Checksums::WhenSupported => (
                RequestChecksumCalculation::WhenSupported,
                ResponseChecksumValidation::WhenSupported,
            ),
            Checksums::WhenRequired => {
                (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired)
            }
        };
        builder =
            builder.request_checksum_calculation(request).response_checksum_validation(response);
    }
    builder.build()
}
