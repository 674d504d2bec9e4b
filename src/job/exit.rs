//! Exit codes, and which error means which.

use crate::model::ModelError;
use crate::pool::StartError;
use crate::store::{Class, LockError, StoreError, one_line};

/// What the process says with its exit code. Schedulers act on these; they never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for is committed and no picture failed.
    Done = 0,
    /// Unexpected or transient: running again may help.
    Failed = 1,
    /// Usage, configuration, model, fingerprint, permissions: running again does not help.
    Refused = 2,
    /// All committed, but some pictures failed.
    SomeFailed = 3,
    /// Stopped by a failure threshold.
    Threshold = 4,
    /// The listing found no picture.
    Empty = 5,
    /// All committed, but a gate does not hold.
    Gate = 6,
    /// Another run holds the lock.
    Locked = 11,
    /// Interrupted; the same command goes on.
    Interrupted = 75,
}

impl Exit {
    /// Whether everything that was asked for is committed.
    #[must_use]
    pub fn complete(self) -> bool {
        matches!(self, Exit::Done | Exit::SomeFailed | Exit::Gate)
    }
}

/// The table of exit codes for `--help`.
pub const EXIT_HELP: &str = "\
Exit codes:
  0    all committed, no picture failed (with --shard, here and at 3: of its share)
  1    unexpected or transient (disk full, timeout): running again may help
  2    usage, configuration, model, another fingerprint, permissions
  3    all committed, but some pictures failed (their lines say why; a gate on errors can allow it)
  4    stopped by a failure threshold
  5    no picture found (--allow-empty: 0)
  6    all committed, but a gate does not hold (--gate)
  11   another run holds the lock (--if-locked skip: 0)
  75   interrupted, resumable: run the same command again
  130, 143   stopped at once, by a second signal or before the work began; resumable
  132, 134, 135, 139   a picture made haul die; run it again, twice and it is left out";

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}

/// Why a command could not do what it was asked.
///
/// Names of files, classes and columns are in it, so each is a line whatever they are.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The request itself is wrong: flags, job file, model, input.
    #[error("{}", one_line(.0))]
    Usage(String),
    /// A file of settings is no TOML, which is shown with the place, on lines of its own.
    #[error("{}", .0.lines().map(one_line).collect::<Vec<_>>().join("\n"))]
    Syntax(String),
    /// The output belongs to a job with other settings.
    #[error("{}", one_line(.0))]
    Fingerprint(String),
    /// The output holds something that is not this job's.
    #[error("{}", one_line(.0))]
    Foreign(String),
    /// A published file is not what haul published.
    #[error("{}", one_line(.0))]
    Damaged(String),
    /// The input holds no picture.
    #[error("{}", one_line(.0))]
    Empty(String),
    /// A thread or the machine failed.
    #[error("{}", one_line(.0))]
    Internal(String),
    /// A device has no memory for us now, and may have some another time.
    #[error("{}", one_line(.0))]
    Exhausted(String),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lock was not had.
    #[error("{}", one_line(&.0.to_string()))]
    Lock(#[from] LockError),
}

/// An error with its causes, each after a colon unless its parent says it already.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

impl From<ModelError> for JobError {
    /// A model that cannot be used is a mistake in the request; a store may just not answer now.
    fn from(error: ModelError) -> JobError {
        match error {
            ModelError::Store(error) if error.source.kind() != std::io::ErrorKind::NotFound => {
                JobError::Store(error)
            }
            error => JobError::usage(&error),
        }
    }
}

impl From<StartError> for JobError {
    fn from(error: StartError) -> JobError {
        match error {
            StartError::Exhausted(text) => JobError::Exhausted(text),
            StartError::Fault(text) => JobError::Internal(text),
        }
    }
}

impl JobError {
    /// A mistake in the request, in the words of the error that shows it and of its causes.
    #[must_use]
    pub fn usage(error: &dyn std::error::Error) -> JobError {
        JobError::Usage(chain(error))
    }

    /// Whether it is a fault of a store that may pass while the job goes on.
    #[must_use]
    pub(super) fn passes(&self) -> bool {
        match self {
            JobError::Store(error) | JobError::Lock(LockError::Store(error)) => {
                error.class() == Class::Transient
            }
            _ => false,
        }
    }

    /// The exit code for this error.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            JobError::Usage(_)
            | JobError::Syntax(_)
            | JobError::Fingerprint(_)
            | JobError::Foreign(_) => Exit::Refused,
            JobError::Damaged(_) | JobError::Internal(_) => Exit::Failed,
            JobError::Empty(_) => Exit::Empty,
            JobError::Exhausted(_) => Exit::Interrupted,
            JobError::Lock(LockError::Held(_) | LockError::Lost(_)) => Exit::Locked,
            JobError::Lock(LockError::Refused { .. } | LockError::Unguarded(_)) => Exit::Refused,
            JobError::Store(error) | JobError::Lock(LockError::Store(error)) => {
                match error.class() {
                    Class::Denied | Class::Malformed => Exit::Refused,
                    Class::Full | Class::Transient => Exit::Failed,
                }
            }
        }
    }
}
