//! The flags of `haul serve` about its asynchronous door.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::job::{JobError, parse_duration, parse_size};
use crate::serve::AsyncConfig;
use crate::serve::asynchronous::place;
use crate::store::{Place, S3Options};

#[derive(Debug, Args)]
#[command(next_help_heading = "Async")]
pub(super) struct AsyncFlags {
    /// Folder or s3://BUCKET/PREFIX/ for the results of asynchronous requests; without it there are none
    #[arg(long, value_name = "DIR|PREFIX", env = "HAUL_ASYNC_OUTPUT")]
    async_output: Option<PathBuf>,
    /// Folder or s3://BUCKET/PREFIX/ for what is said of those that failed [default: --async-output]
    #[arg(long, value_name = "DIR|PREFIX", env = "HAUL_ASYNC_FAILURE")]
    async_failure: Option<PathBuf>,
    /// Folder for the queue, of this server alone [default: $XDG_STATE_HOME/haul/serve-NAME]
    #[arg(long, value_name = "DIR", env = "HAUL_STATE")]
    state: Option<PathBuf>,
    /// Asynchronous requests in progress at once, 1 to 1000 [default: two for each worker]
    #[arg(long, value_name = "N", env = "HAUL_ASYNC_CONCURRENCY")]
    async_concurrency: Option<usize>,
    /// Requests that may wait or be in progress; more are told to come again [default: 100000]
    #[arg(long, value_name = "N", env = "HAUL_ASYNC_MAX_QUEUE")]
    async_max_queue: Option<u64>,
    /// Largest picture that an asynchronous request may name [default: 1GB]
    #[arg(long, value_name = "SIZE", env = "HAUL_ASYNC_MAX_PAYLOAD")]
    async_max_payload: Option<String>,
    /// Who is told of results (repeatable): http(s)://…, sns+http(s)://… or sqs+http(s)://HOST/ACCOUNT/QUEUE
    #[arg(long, value_name = "URL", env = "HAUL_NOTIFY_SUCCESS", value_delimiter = ',')]
    notify_success: Vec<String>,
    /// Who is told of failures (repeatable)
    #[arg(long, value_name = "URL", env = "HAUL_NOTIFY_ERROR", value_delimiter = ',')]
    notify_error: Vec<String>,
    /// Tell them the result too, if it has at most 128 KB
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", env = "HAUL_NOTIFY_INCLUDE_RESPONSE")]
    notify_include_response: Option<bool>,
    /// How long requests that ended are remembered, and failing notifications tried again [default: 24h]
    #[arg(long, value_name = "TIME", env = "HAUL_ASYNC_RETENTION")]
    async_retention: Option<String>,
}

impl AsyncFlags {
    /// The door of an endpoint of this name, if there is to be one.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the flag, its value and what it may be.
    pub(super) fn config(
        &self,
        name: &str,
        workers: usize,
        s3: &S3Options,
    ) -> Result<Option<AsyncConfig>, JobError> {
        let at = |path: &Path, flag| place(&Place::parse(path).map_err(JobError::Usage)?, flag);
        let Some(output) = &self.async_output else {
            self.no_door()?;
            return Ok(None);
        };
        let output = at(output, "async-output")?;
        let failure = match &self.async_failure {
            Some(failure) => at(failure, "async-failure")?,
            None => output.clone(),
        };
        let state = match &self.state {
            Some(state) => state.clone(),
            None => state_of(name)?,
        };
        let state = std::path::absolute(&state).map_err(|error| {
            JobError::Usage(format!("--state is `{}`: {error}", state.display()))
        })?;
        let concurrency = self.async_concurrency.unwrap_or((2 * workers).clamp(1, 1000));
        if !(1..=1000).contains(&concurrency) {
            return Err(JobError::Usage(format!(
                "--async-concurrency is {concurrency}; it lies between 1 and 1000"
            )));
        }
        let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let region = s3.region.clone().or_else(|| said("AWS_REGION"));
        let config = AsyncConfig {
            output,
            failure,
            state,
            concurrency,
            most_queued: self.async_max_queue.unwrap_or(100_000),
            most_bytes: match &self.async_max_payload {
                Some(text) => parse_size(text, "async-max-payload")?,
                None => 1_000_000_000,
            },
            notify_success: self.notify_success.clone(),
            notify_error: self.notify_error.clone(),
            notify_response: self.notify_include_response.unwrap_or(false),
            retention: match &self.async_retention {
                Some(text) => parse_duration(text, "async-retention")?,
                None => Duration::from_secs(24 * 3600),
            },
            region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        };
        config.check()?;
        Ok(Some(config))
    }
}

impl AsyncFlags {
    /// Flags about a door that there is not are a mistake. Variables may be those of everybody.
    fn no_door(&self) -> Result<(), JobError> {
        let given = [
            ("async-failure", self.async_failure.is_some()),
            ("state", self.state.is_some()),
            ("async-concurrency", self.async_concurrency.is_some()),
            ("async-max-queue", self.async_max_queue.is_some()),
            ("async-max-payload", self.async_max_payload.is_some()),
            ("notify-success", !self.notify_success.is_empty()),
            ("notify-error", !self.notify_error.is_empty()),
            ("notify-include-response", self.notify_include_response.is_some()),
            ("async-retention", self.async_retention.is_some()),
        ];
        let variable = |flag: &str| format!("HAUL_{}", flag.to_uppercase().replace('-', "_"));
        let said = |flag: &str| std::env::var_os(variable(flag)).is_none();
        match given.into_iter().find(|&(flag, given)| given && said(flag)) {
            None => Ok(()),
            Some((flag, _)) => Err(JobError::Usage(format!(
                "--{flag} is about asynchronous requests, of which there are none without \
                 --async-output"
            ))),
        }
    }
}

/// The folder for the state of an endpoint where nobody has said one.
fn state_of(name: &str) -> Result<PathBuf, JobError> {
    let absolute =
        |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").map(|home| home.join(".local/state"));
    let states = absolute("XDG_STATE_HOME").or_else(home).ok_or_else(|| {
        JobError::Usage(
            "--async-output needs a folder for the queue: name one with --state (neither \
             XDG_STATE_HOME nor HOME is set)"
                .to_owned(),
        )
    })?;
    Ok(states.join("haul").join(format!("serve-{name}")))
}
