//! What went wrong with a request: its kind decides whether it is made again, and what a person is
//! told.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use super::super::StoreError;
use crate::store::{Location, one_line};

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such object.
    Missing,
    /// There is no such bucket.
    NoBucket,
    /// A condition of ours does not hold.
    Precondition,
    /// Somebody else is at work on that very object; asking again settles it.
    Conflict,
    /// Not allowed.
    Denied,
    /// The server does not know who we are, or we do not.
    Credentials,
    /// Whoever has our credentials did not give them just now.
    Unsigned,
    /// The credentials were good once.
    Expired,
    /// Our clock and the server's disagree.
    Skewed,
    /// In an archive.
    Archived,
    /// Less is asked for.
    Throttled,
    /// Its own trouble.
    Server,
    /// No answer in time.
    Timeout,
    /// The connection broke.
    Connection,
    /// There was no connection.
    Unreachable,
    /// The body ended early, or is not what its checksum says.
    Broken,
    /// The bucket lies elsewhere.
    Region,
    /// No room.
    Full,
    /// Whatever else it does not accept.
    Refused,
}

impl Kind {
    /// Whether the same request may be answered otherwise a little later.
    pub(super) fn passes(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Conflict
                | Unsigned
                | Expired
                | Skewed
                | Throttled
                | Server
                | Timeout
                | Connection
                | Unreachable
                | Broken
        )
    }

    /// Whether the server may have done what it did not answer to.
    pub(super) fn is_doubtful(self) -> bool {
        use Kind::*;
        matches!(self, Server | Throttled | Timeout | Connection | Unreachable | Broken)
    }

    /// Its name in summaries.
    pub(super) fn name(self) -> &'static str {
        use Kind::*;
        match self {
            Missing => "missing",
            NoBucket => "no bucket",
            Precondition => "precondition",
            Conflict => "conflict",
            Denied => "denied",
            Credentials => "credentials",
            Unsigned => "no credentials just now",
            Expired => "expired credentials",
            Skewed => "clock skew",
            Archived => "archived",
            Throttled => "slow down",
            Server => "server error",
            Timeout => "timeout",
            Connection => "connection lost",
            Unreachable => "no connection",
            Broken => "broken body",
            Region => "region",
            Full => "full",
            Refused => "refused",
        }
    }

    fn of_code(code: &str) -> Option<Kind> {
        Some(match code {
            "NoSuchKey" | "NotFound" | "NoSuchVersion" => Kind::Missing,
            "NoSuchBucket" => Kind::NoBucket,
            "PreconditionFailed" => Kind::Precondition,
            "ConditionalRequestConflict" | "OperationAborted" => Kind::Conflict,
            "AccessDenied"
            | "AllAccessDisabled"
            | "AccountProblem"
            | "KMS.AccessDeniedException" => Kind::Denied,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "InvalidSecurity"
            | "NotSignedUp" => Kind::Credentials,
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => Kind::Expired,
            "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => Kind::Skewed,
            "InvalidObjectState" => Kind::Archived,
            "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "ServiceUnavailable"
            | "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestLimitExceeded"
            | "Busy"
            | "TooManyRequests"
            | "BandwidthLimitExceeded"
            | "RequestThrottled" => Kind::Throttled,
            "RequestTimeout" | "RequestTimeoutException" => Kind::Timeout,
            "InternalError" | "InternalServerError" | "TemporaryRedirect" => Kind::Server,
            "BadDigest"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch"
            | "IncompleteBody" => Kind::Broken,
            "PermanentRedirect"
            | "IllegalLocationConstraintException"
            | "AuthorizationHeaderMalformed" => Kind::Region,
            // Status 501, which is no trouble of the server's that passes.
            "NotImplemented" => Kind::Refused,
            "QuotaExceeded" | "InsufficientCapacity" | "XMinioStorageFull" => Kind::Full,
            _ => return None,
        })
    }

    fn of_status(status: u16) -> Kind {
        match status {
            301 | 302 | 308 => Kind::Region,
            401 => Kind::Credentials,
            403 => Kind::Denied,
            404 => Kind::Missing,
            408 => Kind::Timeout,
            409 => Kind::Conflict,
            412 => Kind::Precondition,
            429 | 503 => Kind::Throttled,
            507 => Kind::Full,
            500.. => Kind::Server,
            _ => Kind::Refused,
        }
    }
}

/// A request that was not answered as it should be.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// What the server calls it, or what the system says.
    pub(super) said: String,
    /// Whether a server said so.
    pub(super) answered: bool,
    /// How much the server's clock is ahead of ours, where it told.
    pub(super) ahead: Option<Ahead>,
    /// How often it was tried, and for how long.
    pub(super) tries: u32,
    pub(super) time: Duration,
}

/// How much the server's clock is ahead of ours, in seconds.
pub(super) type Ahead = i64;

impl Fault {
    pub(super) fn new(kind: Kind, said: impl Into<String>) -> Fault {
        Fault {
            kind,
            said: said.into(),
            answered: false,
            ahead: None,
            tries: 1,
            time: Duration::ZERO,
        }
    }

    /// What the error of an operation amounts to.
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ServiceError(context) => {
                let (error, raw) = (context.err(), context.raw());
                let status = raw.status().as_u16();
                let code = error.code().unwrap_or_default();
                let kind = Kind::of_code(code).unwrap_or(Kind::of_status(status));
                let said = match (code, error.message()) {
                    ("", _) if status < 300 => {
                        format!("an answer that cannot be read, status {status}")
                    }
                    ("", _) => format!("status {status}"),
                    (code, None | Some("")) => format!("{code}, status {status}"),
                    (code, Some(message)) => {
                        let message = message.trim_end_matches('.');
                        format!("{code}, status {status}: {message}")
                    }
                };
                let ahead = raw.headers().get("date").and_then(ahead);
                Fault { answered: true, ahead, ..Fault::new(kind, said) }
            }
            SdkError::TimeoutError(_) => Fault::new(Kind::Timeout, "no answer in time"),
            SdkError::ResponseError(context) => {
                let status = context.raw().status().as_u16();
                let kind = match Kind::of_status(status) {
                    Kind::Refused => Kind::Broken,
                    other => other,
                };
                let said = format!("an answer that cannot be read, status {status}");
                Fault { answered: true, ..Fault::new(kind, said) }
            }
            error => Fault::of_transport(error),
        }
    }

    /// What kept a request from being made, or its answer from arriving.
    pub(super) fn of_transport(error: &(dyn Error + 'static)) -> Fault {
        let mut causes = Vec::new();
        let mut cause = Some(error);
        let mut io: Option<io::ErrorKind> = None;
        while let Some(error) = cause {
            io = error.downcast_ref::<io::Error>().map(io::Error::kind).or(io);
            causes.push(error.to_string());
            cause = error.source();
        }
        let text = causes.join(": ");
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let kind = if has(&["credentials", "no auth scheme", "identity"]) {
            // Nobody is there to ask, or whoever was asked did not answer this time.
            match has(&[
                "no providers in chain",
                "not enabled",
                "not properly configured",
                "no auth scheme",
                "no identity resolver",
            ]) {
                true => Kind::Credentials,
                false => Kind::Unsigned,
            }
        } else if io == Some(io::ErrorKind::ConnectionRefused)
            || has(&[
                "dns error",
                "failed to lookup",
                "unreachable",
                "connect timeout",
                "invalid peer certificate",
            ])
        {
            Kind::Unreachable
        } else if io == Some(io::ErrorKind::TimedOut) || has(&["timed out", "timeout"]) {
            Kind::Timeout
        } else if has(&["hecksum"]) {
            Kind::Broken
        } else {
            Kind::Connection
        };
        // The last cause says it best: "Connection refused (os error 111)".
        let last = causes.pop().unwrap_or_default();
        Fault::new(kind, last)
    }

    /// What is told to a person about an operation on an object that came to nothing.
    pub(super) fn error(&self, operation: &'static str, at: &Location) -> StoreError {
        let kind = match self.kind {
            Kind::Denied | Kind::Credentials | Kind::Expired | Kind::NoBucket | Kind::Region => {
                io::ErrorKind::PermissionDenied
            }
            Kind::Full => io::ErrorKind::StorageFull,
            Kind::Missing | Kind::Archived => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        let mut text = match self.kind {
            Kind::Server | Kind::Refused | Kind::Unreachable | Kind::Connection | Kind::Timeout => {
                String::new()
            }
            kind => format!("{}: ", kind.name()),
        };
        text.push_str(&self.said);
        if self.tries > 1 {
            text.push_str(&format!(
                ", tried {} times in {:.0} s",
                self.tries,
                self.time.as_secs_f64()
            ));
        }
        let hint = self.hint(operation);
        if !hint.is_empty() {
            text.push_str(&format!(" ({hint})"));
        }
        StoreError::new(operation, at.to_string(), io::Error::new(kind, one_line(&text)))
    }

    /// The likely cause.
    fn hint(&self, operation: &'static str) -> String {
        let right = match operation {
            "list" => "s3:ListBucket on the bucket",
            "read" | "look at" => "s3:GetObject on it, and s3:ListBucket on the bucket",
            "delete" => "s3:DeleteObject on it",
            _ => "s3:PutObject on it",
        };
        match self.kind {
            Kind::Denied => format!("do these credentials have {right}?"),
            Kind::Credentials => {
                "is the access key right? haul looks where AWS's tools look: variables, profile, \
                 container, instance"
                    .to_owned()
            }
            Kind::Unsigned => {
                "does whoever gives them answer: metadata service, SSO, process?".to_owned()
            }
            Kind::Expired => "get new ones, then run the same command again".to_owned(),
            Kind::NoBucket => "is its name right, and the endpoint?".to_owned(),
            Kind::Region => "is --region, or AWS_REGION, that of the bucket?".to_owned(),
            Kind::Skewed => "is this machine's clock right?".to_owned(),
            Kind::Unreachable if self.said.contains("certificate") => {
                "does this machine trust whoever signed it? SSL_CERT_FILE names another list"
                    .to_owned()
            }
            Kind::Unreachable => "is --endpoint-url, or AWS_ENDPOINT_URL_S3, right?".to_owned(),
            Kind::Archived => "restore it first".to_owned(),
            _ => String::new(),
        }
    }
}

fn ahead(date: &str) -> Option<Ahead> {
    let theirs = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?.secs();
    let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(theirs - i64::try_from(ours.as_secs()).ok()?)
}
