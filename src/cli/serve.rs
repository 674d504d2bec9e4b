//! `haul serve`.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::inference::InferenceFlags;
use super::log::LogFlags;
use super::serve_async::AsyncFlags;
use crate::job::{Exit, Inference, JobError, S3Flags, parse_duration, parse_size};
use crate::serve::phases::{self, Phase};
use crate::serve::{AuthConfig, Config, DoorConfig, EndpointConfig, ServerConfig, serve};
use crate::store::Place;

/// The largest bodies that SageMaker's endpoints take, and its serverless ones.
const REAL_TIME_PAYLOAD: u64 = 25_000_000;
const SERVERLESS_PAYLOAD: u64 = 4 << 20;

/// What SageMaker lets a serverless endpoint take at once, at most.
const MOST_CONCURRENCY: usize = 200;

/// Answer over HTTP with the pool of a batch job: real-time, as SageMaker's endpoints and containers do
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul serve --model yolov8n.pt
  curl --data-binary @bus.jpg localhost:8080/invocations?conf=0.4
  curl --data-binary @bus.jpg -H 'Accept: image/jpeg' localhost:8080/invocations > seen.jpg")]
pub(super) struct Serve {
    #[command(flatten)]
    inference: InferenceFlags,
    /// Address to listen on [default: 127.0.0.1; in a SageMaker container 0.0.0.0]
    #[arg(long, value_name = "ADDRESS", env = "HAUL_HOST", help_heading = "Server")]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one and says which [default: 8080]
    #[arg(long, value_name = "PORT", env = "HAUL_PORT", help_heading = "Server")]
    port: Option<u16>,
    /// The endpoint's name in /endpoints/NAME/invocations [default: the model's file name without suffix]
    #[arg(long, value_name = "NAME", env = "HAUL_ENDPOINT_NAME", help_heading = "Server")]
    endpoint_name: Option<String>,
    /// Largest body of a real-time request, and picture that it names [default: 25MB]
    #[arg(long, value_name = "SIZE", env = "HAUL_MAX_PAYLOAD", help_heading = "Limits")]
    max_payload: Option<String>,
    /// Longest time for a real-time request, from its headers to its answer [default: 60s]
    #[arg(long, value_name = "TIME", env = "HAUL_TIMEOUT", help_heading = "Limits")]
    timeout: Option<String>,
    /// Requests that may be in at once, waiting or worked on; more are told to come again [default: 64]
    #[arg(long, value_name = "N", env = "HAUL_MAX_REQUESTS", help_heading = "Limits")]
    max_requests: Option<usize>,
    /// Bytes that the bodies of all these may have together; who comes later waits [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "HAUL_MAX_BODIES", help_heading = "Limits")]
    max_bodies: Option<String>,
    /// Folder or s3://BUCKET/PREFIX/ of which requests may name pictures (repeatable); there is none without
    #[arg(
        long,
        value_name = "DIR|PREFIX",
        env = "HAUL_ROOT",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    root: Vec<PathBuf>,
    /// Unload the model after so long without a request, and load it again for the next one
    #[arg(long, value_name = "TIME", env = "HAUL_UNLOAD_AFTER", help_heading = "Server")]
    unload_after: Option<String>,
    /// End the process, with exit code 0, after so long without a request
    #[arg(long, value_name = "TIME", env = "HAUL_IDLE_EXIT", help_heading = "Server")]
    idle_exit: Option<String>,
    /// As SageMaker's serverless endpoints: bodies of 4 MiB by default, and --max-concurrency
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", env = "HAUL_SERVERLESS", help_heading = "Limits")]
    serverless: Option<bool>,
    /// With --serverless: requests that may be in at once, 1 to 200; more are throttled [default: one for each worker]
    #[arg(long, value_name = "N", env = "HAUL_MAX_CONCURRENCY", help_heading = "Limits")]
    max_concurrency: Option<usize>,
    /// After SIGTERM, finish requests that are in for so long [default: 25s]
    #[arg(long, value_name = "TIME", env = "HAUL_GRACE", help_heading = "Server")]
    grace: Option<String>,
    /// Connections that are served at once; more wait until there is a place [default: 1024]
    #[arg(long, value_name = "N", env = "HAUL_MAX_CONNECTIONS", help_heading = "Server")]
    max_connections: Option<usize>,
    /// Longest time for a request's headers, and for the next 16 KiB of its body [default: 10s]
    #[arg(long, value_name = "TIME", env = "HAUL_CLIENT_TIMEOUT", help_heading = "Server")]
    client_timeout: Option<String>,
    /// Close connections that have no request for so long [default: 75s]
    #[arg(long, value_name = "TIME", env = "HAUL_IDLE_TIMEOUT", help_heading = "Server")]
    idle_timeout: Option<String>,
    #[command(flatten)]
    log: LogFlags,
    /// Serve HTTPS with this certificate chain (PEM); SIGHUP reads it again
    #[arg(
        long,
        value_name = "FILE",
        env = "HAUL_TLS_CERT",
        requires = "tls_key",
        help_heading = "Security"
    )]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM); SIGHUP reads it again
    #[arg(
        long,
        value_name = "FILE",
        env = "HAUL_TLS_KEY",
        requires = "tls_cert",
        help_heading = "Security"
    )]
    tls_key: Option<PathBuf>,
    /// Ask for a bearer token of this file, one on each line; SIGHUP reads it again
    #[arg(long, value_name = "FILE", env = "HAUL_TOKEN_FILE", help_heading = "Security")]
    token_file: Option<PathBuf>,
    /// Ask for AWS signatures with a key of this file, `ACCESS_KEY_ID SECRET` on each line; SIGHUP reads it again
    #[arg(long, value_name = "FILE", env = "HAUL_SIGV4_KEYS", help_heading = "Security")]
    sigv4_keys: Option<PathBuf>,
    /// Take signatures for this region only [default: any]
    #[arg(
        long,
        value_name = "REGION",
        env = "HAUL_SIGV4_REGION",
        requires = "sigv4_keys",
        help_heading = "Security"
    )]
    sigv4_region: Option<String>,
    #[command(flatten)]
    asynchronous: AsyncFlags,
    #[command(flatten)]
    s3: S3Flags,
}

impl Serve {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let config = self.config()?;
        let _telemetry = self.log.start()?;
        phases::ended(Phase::Arguments);
        serve(config)?;
        Ok(Exit::Done)
    }

    fn config(&self) -> Result<Config, JobError> {
        let mut settings = self.inference.settings();
        let container = Container::look();
        let contained = settings.model.is_none() && container.model_folder.is_dir();
        if contained {
            settings.model = Some(only_model(&container.model_folder)?);
        }
        let settings = settings.relative_to(Path::new(""))?;
        let inference = Inference::new(settings)?;
        let time = |given: &Option<String>, name: &str, default| match given {
            Some(text) => parse_duration(text, name),
            None => Ok(default),
        };
        let size = |given: &Option<String>, name, default| match given {
            Some(text) => parse_size(text, name),
            None => Ok(default),
        };
        let serverless = self.serverless.unwrap_or(false);
        let usual = if serverless { SERVERLESS_PAYLOAD } else { REAL_TIME_PAYLOAD };
        let max_payload = size(&self.max_payload, "max-payload", container.max_payload(usual)?)?;
        let most_requests = match serverless {
            true => self.concurrency(inference.workers())?,
            false if self.max_concurrency.is_some() => {
                let what = "--max-concurrency goes with --serverless (--max-requests does not)";
                return Err(JobError::Usage(what.to_owned()));
            }
            false => self.max_requests.unwrap_or(64).max(1),
        };
        let host = self.host.as_deref().unwrap_or(if contained { "0.0.0.0" } else { "127.0.0.1" });
        let port = match (self.port, contained) {
            (Some(port), _) => port,
            (None, true) => container.port()?,
            (None, false) => 8080,
        };
        let name = endpoint_name(self.endpoint_name.as_deref(), &inference.model)?;
        let roots = self.root.iter().map(|root| Place::parse(root).map_err(JobError::Usage));
        let s3 = self.s3.options()?;
        let asynchronous = self.asynchronous.config(&name, inference.workers(), &s3)?;
        let most_bytes = size(&self.max_bodies, "max-bodies", 256 << 20)?;
        Ok(Config {
            endpoint: EndpointConfig {
                name,
                inference,
                s3,
                most_requests,
                most_bytes: most_bytes.max(max_payload),
            },
            doors: DoorConfig {
                most_bytes: max_payload,
                timeout: time(&self.timeout, "timeout", Duration::from_secs(60))?,
                throttles: serverless,
            },
            server: self.server(time)?,
            auth: AuthConfig {
                tokens: self.token_file.clone(),
                keys: self.sigv4_keys.clone(),
                region: self.sigv4_region.clone(),
            },
            asynchronous,
            listen: address(host, port)?,
            roots: roots.collect::<Result<_, _>>()?,
            unload_after: match &self.unload_after {
                Some(text) => Some(parse_duration(text, "unload-after")?),
                None => None,
            },
            idle_exit: match &self.idle_exit {
                Some(text) => Some(parse_duration(text, "idle-exit")?),
                None => None,
            },
            grace: time(&self.grace, "grace", Duration::from_secs(25))?,
        })
    }
}

impl Serve {
    /// What the socket may take.
    fn server(
        &self,
        time: impl Fn(&Option<String>, &str, Duration) -> Result<Duration, JobError>,
    ) -> Result<ServerConfig, JobError> {
        let usual = ServerConfig::default();
        let patience = time(&self.client_timeout, "client-timeout", usual.header_timeout)?;
        Ok(ServerConfig {
            max_connections: self.max_connections.unwrap_or(usual.max_connections).max(1),
            header_timeout: patience,
            body_timeout: patience,
            idle_timeout: time(&self.idle_timeout, "idle-timeout", usual.idle_timeout)?,
            tls: self.tls_cert.clone().zip(self.tls_key.clone()),
            ..usual
        })
    }

    /// Requests that a serverless endpoint takes at once. SageMaker's have 1 to 200.
    fn concurrency(&self, workers: usize) -> Result<usize, JobError> {
        if self.max_requests.is_some() {
            let what = "--max-requests is --max-concurrency with --serverless";
            return Err(JobError::Usage(what.to_owned()));
        }
        match self.max_concurrency {
            None => Ok(workers.clamp(1, MOST_CONCURRENCY)),
            Some(given) if (1..=MOST_CONCURRENCY).contains(&given) => Ok(given),
            Some(given) => Err(JobError::Usage(format!(
                "--max-concurrency is {given}; it lies between 1 and {MOST_CONCURRENCY}"
            ))),
        }
    }
}

/// The address of a host's name.
fn address(host: &str, port: u16) -> Result<SocketAddr, JobError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let wrong = |what: String| JobError::Usage(format!("--host is `{host}`: {what}"));
    let mut found = (host, port).to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("it has no address".to_owned()))
}

/// The endpoint's name: as given, or after its model's file.
pub(super) fn endpoint_name(given: Option<&str>, model: &Path) -> Result<String, JobError> {
    let name = given.map_or_else(|| name_of(model), str::to_owned);
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return Err(JobError::Usage(format!(
            "--endpoint-name is `{name}`; it has 1 to 63 letters, digits, `-`, `_` and `.`"
        )));
    }
    Ok(name)
}

/// An endpoint is named after its model's file.
fn name_of(model: &Path) -> String {
    let name = model.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The one checkpoint in a folder.
pub(super) fn only_model(folder: &Path) -> Result<PathBuf, JobError> {
    let wrong = |what: String| JobError::Usage(format!("`{}`: {what}", folder.display()));
    let read = |error: std::io::Error| wrong(format!("cannot list it: {error}"));
    let (mut found, mut packs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        match suffix {
            Some("pt" | "safetensors") => found.push(path),
            Some("haulpack") => packs.push(path),
            _ => {}
        }
    }
    // A pack beside its checkpoint is found by that.
    if found.is_empty() {
        found = packs;
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(wrong(
            "there is no .pt, .safetensors or .haulpack in it (name one with --model)".into(),
        )),
        _ => Err(wrong("there are several checkpoints in it (name one with --model)".into())),
    }
}

/// What SageMaker tells a container.
struct Container {
    model_folder: PathBuf,
}

impl Container {
    fn look() -> Container {
        let base = std::env::var_os("SAGEMAKER_BASE_DIR");
        let base = base.map_or_else(|| PathBuf::from("/opt/ml"), PathBuf::from);
        Container { model_folder: base.join("model") }
    }

    fn port(&self) -> Result<u16, JobError> {
        match std::env::var("SAGEMAKER_BIND_TO_PORT") {
            Err(_) => Ok(8080),
            Ok(text) => text.trim().parse().map_err(|_| {
                JobError::Usage(format!("SAGEMAKER_BIND_TO_PORT is `{text}`; it is a port"))
            }),
        }
    }

    /// In batch transform the job says how large payloads are; 0 is without a limit, which is what
    /// AWS allows at most.
    fn max_payload(&self, usual: u64) -> Result<u64, JobError> {
        match std::env::var("SAGEMAKER_MAX_PAYLOAD_IN_MB") {
            Err(_) => Ok(usual),
            Ok(text) => match text.trim().parse::<u64>() {
                Ok(0) => Ok(100 << 20),
                Ok(megabytes) if megabytes <= 100 => Ok(megabytes << 20),
                _ => Err(JobError::Usage(format!(
                    "SAGEMAKER_MAX_PAYLOAD_IN_MB is `{text}`; it lies between 0 and 100"
                ))),
            },
        }
    }
}
