//! `haul lambda`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::inference::InferenceFlags;
use super::log::LogFlags;
use super::serve::{endpoint_name, only_model};
use crate::job::{Exit, Inference, JobError, S3Flags, parse_duration, parse_size};
use crate::serve::{DoorConfig, EndpointConfig, LambdaConfig, lambda, serve_lambda};
use crate::store::Place;

/// Answer events of AWS Lambda: HTTP, S3, SQS and direct invocations, as its custom runtime
///
/// In a function's package haul is named `bootstrap` and started without arguments; everything is
/// said by variables. The model is HAUL_MODEL, or the one checkpoint in the package.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, with the emulator of cargo-lambda:
  cargo lambda watch --only-lambda-apis -A 127.0.0.1 -P 9000 &
  AWS_LAMBDA_FUNCTION_NAME=haul AWS_LAMBDA_FUNCTION_VERSION=1 AWS_LAMBDA_FUNCTION_MEMORY_SIZE=2048 \\
    AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:9000/.rt/haul haul lambda --model yolov8n.pt &
  curl --data-binary @bus.jpg localhost:9000/lambda-url/haul/invocations")]
pub(super) struct Lambda {
    #[command(flatten)]
    inference: InferenceFlags,
    /// The endpoint's name in /endpoints/NAME/invocations [default: the model's file name without suffix]
    #[arg(long, value_name = "NAME", env = "HAUL_ENDPOINT_NAME", help_heading = "Function")]
    endpoint_name: Option<String>,
    /// Folder or s3://BUCKET/PREFIX/ of which events may name pictures (repeatable); there is none without
    #[arg(
        long,
        value_name = "DIR|PREFIX",
        env = "HAUL_ROOT",
        value_delimiter = ',',
        help_heading = "Function"
    )]
    root: Vec<PathBuf>,
    /// Folder or s3://BUCKET/PREFIX/ for the lines of events that nobody waits for, KEY.out each; the --root's are then of one bucket
    #[arg(long, value_name = "DIR|PREFIX", env = "HAUL_OUTPUT", help_heading = "Function")]
    output: Option<PathBuf>,
    /// Largest body of an HTTP request [default: 6MiB, as much as Lambda takes]
    #[arg(long, value_name = "SIZE", env = "HAUL_MAX_PAYLOAD", help_heading = "Limits")]
    max_payload: Option<String>,
    /// Largest picture that an event may name [default: 25MB]
    #[arg(long, value_name = "SIZE", env = "HAUL_MAX_OBJECT", help_heading = "Limits")]
    max_object: Option<String>,
    /// Longest time for a picture; never beyond the deadline of its event [default: 60s]
    #[arg(long, value_name = "TIME", env = "HAUL_TIMEOUT", help_heading = "Limits")]
    timeout: Option<String>,
    #[command(flatten)]
    log: LogFlags,
    #[command(flatten)]
    s3: S3Flags,
}

impl Lambda {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let config = self.config()?;
        let _telemetry = self.log.start()?;
        serve_lambda(config)?;
        Ok(Exit::Done)
    }

    fn config(&self) -> Result<LambdaConfig, JobError> {
        let mut settings = self.inference.settings();
        if settings.model.is_none()
            && let Some(root) = std::env::var_os("LAMBDA_TASK_ROOT")
        {
            settings.model = Some(only_model(Path::new(&root))?);
        }
        let settings = settings.relative_to(Path::new(""))?;
        let inference = Inference::new(settings)?;
        let size = |given: &Option<String>, name, default| match given {
            Some(text) => parse_size(text, name),
            None => Ok(default),
        };
        let max_payload = size(&self.max_payload, "max-payload", lambda::MOST)?;
        let most_object = size(&self.max_object, "max-object", 25_000_000)?;
        let place = |path: &PathBuf| Place::parse(path).map_err(JobError::Usage);
        let roots: Vec<Place> = self.root.iter().map(place).collect::<Result<_, _>>()?;
        if self.output.is_some() {
            in_one_bucket(&roots)?;
        }
        Ok(LambdaConfig {
            endpoint: EndpointConfig {
                name: endpoint_name(self.endpoint_name.as_deref(), &inference.model)?,
                inference,
                s3: self.s3.options()?,
                // Lambda sends one event at a time.
                most_requests: 64,
                most_bytes: (256 << 20).max(max_payload).max(most_object),
            },
            doors: DoorConfig {
                most_bytes: max_payload,
                timeout: match &self.timeout {
                    Some(text) => parse_duration(text, "timeout")?,
                    None => Duration::from_secs(60),
                },
                throttles: false,
            },
            roots,
            output: self.output.as_ref().map(place).transpose()?,
            most_object,
        })
    }
}

/// Outputs are named after keys, so that those of two buckets would overwrite each other.
fn in_one_bucket(roots: &[Place]) -> Result<(), JobError> {
    let mut buckets = roots.iter().filter_map(|root| match root {
        Place::S3(prefix) => Some(&prefix.bucket),
        Place::Local(_) => None,
    });
    let first = buckets.next();
    match buckets.find(|bucket| Some(*bucket) != first).zip(first) {
        None => Ok(()),
        Some((second, first)) => Err(JobError::Usage(format!(
            "with --output each --root is in the same bucket, for outputs are named after keys \
             alone: there are `{first}` and `{second}` (start one function for each)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_two_buckets_would_meet() {
        let roots = |all: &[&str]| -> Vec<Place> {
            all.iter().map(|root| Place::parse(Path::new(root)).unwrap()).collect()
        };
        in_one_bucket(&roots(&["/in", "s3://a/b/", "s3://a/c/"])).unwrap();
        let said = in_one_bucket(&roots(&["s3://a/b/", "/in", "s3://c/b/"])).unwrap_err();
        assert!(matches!(said, JobError::Usage(_)));
        assert!(said.to_string().contains("`a` and `c`"), "{said}");
    }
}
