//! Who may ask: bearer tokens, and requests signed as AWS's clients sign them.
//!
//! Without files of tokens or keys everybody may, as on a laptop. With either, everything but
//! `/ping` needs one of the kinds that are set up. Secrets are compared in constant time, and appear
//! in no log and no answer.

mod bearer;
mod sigv4;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};

use bearer::Tokens;
use sigv4::{Claim, Keys};

use super::desk::{Desk, Room};
use super::http::{Code, DoorConfig, Reply, is_aws, read, refuse};
use super::problem::{Problem, RuntimeProblem};
use crate::job::JobError;
use crate::store::sha256;

/// Who may ask, as it was asked for.
#[derive(Clone, Debug, Default)]
pub struct AuthConfig {
    /// A file of bearer tokens.
    pub tokens: Option<PathBuf>,
    /// A file of access keys and their secrets.
    pub keys: Option<PathBuf>,
    /// The region that signatures must be for; else any.
    pub region: Option<String>,
}

/// Lets requests in that prove who they are from.
#[derive(Debug)]
pub struct Gate {
    config: AuthConfig,
    doors: DoorConfig,
    /// A signature covers the body, which is therefore read here. This has the room for that; the
    /// desk's own is taken by whoever is let in.
    room: Arc<Desk>,
    now: RwLock<Arc<Secrets>>,
}

#[derive(Debug)]
struct Secrets {
    tokens: Option<Tokens>,
    keys: Option<Keys>,
}

impl AuthConfig {
    /// Whether anything is asked of clients.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.tokens.is_none() && self.keys.is_none()
    }

    fn read(&self) -> Result<Secrets, JobError> {
        let tokens = self.tokens.as_deref().map(|path| {
            Tokens::parse(&text(path, "token-file")?)
                .map_err(|what| wrong(path, "token-file", &what))
        });
        let keys = self.keys.as_deref().map(|path| {
            Keys::parse(&text(path, "sigv4-keys")?).map_err(|what| wrong(path, "sigv4-keys", &what))
        });
        Ok(Secrets { tokens: tokens.transpose()?, keys: keys.transpose()? })
    }
}

fn wrong(path: &Path, flag: &str, what: &str) -> JobError {
    JobError::Usage(format!("--{flag} `{}`: {what}", path.display()))
}

/// A file of secrets.
fn text(path: &Path, flag: &str) -> Result<String, JobError> {
    use std::os::unix::fs::PermissionsExt as _;
    let text = std::fs::read_to_string(path)
        .map_err(|error| wrong(path, flag, &format!("cannot read it: {error}")))?;
    if std::fs::metadata(path).is_ok_and(|of| of.permissions().mode() & 0o007 != 0) {
        let path = path.display();
        tracing::warn!(%path, "everybody on this machine may read or change this file of secrets");
    }
    Ok(text)
}

/// The lines of a file of secrets that are no comments, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

impl Gate {
    /// Reads the files of secrets. `doors` says what a body may have, and `room` how many bytes
    /// bodies may have together while their signatures are checked.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the file that cannot be used, and the line.
    pub fn open(config: AuthConfig, doors: DoorConfig, room: u64) -> Result<Gate, JobError> {
        let now = RwLock::new(Arc::new(config.read()?));
        let room = Desk::new(1, room.max(doors.most_bytes));
        Ok(Gate { config, doors, room, now })
    }

    /// Reads the files again. If they cannot be used, what was read before stays in use.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the file that cannot be used, and the line.
    pub fn reload(&self) -> Result<(), JobError> {
        let new = Arc::new(self.config.read()?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// What it is answered instead.
    pub(super) async fn admit(&self, request: Request) -> Result<Request, Response> {
        let secrets = self.now.read().unwrap_or_else(PoisonError::into_inner).clone();
        let uri = request.uri().clone();
        match self.of_headers(&secrets, &request) {
            Ok(None) => Ok(request),
            Ok(Some(claim)) => {
                let limit = self.doors.timeout;
                let checked = tokio::time::timeout(limit, self.of_body(claim, request)).await;
                let checked = checked.unwrap_or_else(|_| Err(Problem::timed_out(limit).into()));
                checked.map_err(|refusal| refusal.response(&uri, &secrets))
            }
            Err(refusal) => {
                let (head, body) = request.into_parts();
                refuse(&head.headers, body).await;
                Err(refusal.response(&uri, &secrets))
            }
        }
    }

    /// Everything that can be said before the body is there. A request that is signed still has
    /// its signature to be checked.
    fn of_headers(&self, secrets: &Secrets, request: &Request) -> Result<Option<Claim>, Refusal> {
        let missing = || Refusal::Missing;
        let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else { return Err(missing()) };
        let given = given.to_str().map_err(|_| missing())?.trim();
        let (scheme, rest) = given.split_once(char::is_whitespace).unwrap_or((given, ""));
        match (&secrets.tokens, &secrets.keys) {
            (Some(tokens), _) if scheme.eq_ignore_ascii_case("bearer") => {
                match tokens.contain(rest.trim()) {
                    true => Ok(None),
                    false => Err(Refusal::Token),
                }
            }
            (_, Some(keys)) if scheme == sigv4::ALGORITHM => {
                let region = self.config.region.as_deref();
                let (head, now) = (request, SystemTime::now());
                Claim::of(keys, rest, head.headers(), region, now).map(Some)
            }
            _ => Err(missing()),
        }
    }

    /// The signature, which covers the body.
    async fn of_body(&self, claim: Claim, request: Request) -> Result<Request, Refusal> {
        let (head, body) = request.into_parts();
        if body.is_end_stream() {
            claim.verify(&head.method, &head.uri, &head.headers, &sha256(b""))?;
            return Ok(Request::from_parts(head, body));
        }
        let (bytes, room) = read(&head.headers, body, self.doors.most_bytes, &self.room).await?;
        // Both are work for a moment, and that thread has others to serve.
        let checked = move || {
            let digest = sha256(&bytes);
            let checked = claim.verify(&head.method, &head.uri, &head.headers, &digest);
            (checked, head, bytes)
        };
        let (checked, head, bytes) = tokio::task::spawn_blocking(checked)
            .await
            .map_err(|error| Problem::internal(format!("a thread failed: {error}")))?;
        checked?;
        Ok(Request::from_parts(head, Body::new(Held { bytes: Some((bytes.into(), room)) })))
    }
}

/// A body that was read already. Its room is given back when somebody takes it.
struct Held {
    bytes: Option<(Bytes, Option<Room>)>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let taken = self.bytes.take().map(|(bytes, _room)| Ok(hyper::body::Frame::data(bytes)));
        std::task::Poll::Ready(taken)
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        let left = self.bytes.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64);
        hyper::body::SizeHint::with_exact(left)
    }
}

/// Why a request is not let in.
#[derive(Debug)]
enum Refusal {
    /// It does not say who it is from in a way that is known here.
    Missing,
    /// Its token is none of ours.
    Token,
    /// It is signed, but not as it must be.
    Incomplete(String),
    /// It is signed with a key that is not ours.
    Key,
    /// The signature is another, or for another time or region.
    Signature(String),
    /// Something else is wrong with it.
    Problem(Problem),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal::Problem(problem)
    }
}

impl Refusal {
    fn response(self, uri: &http::Uri, secrets: &Secrets) -> Response {
        let (kind, code, status, message) = match self {
            Refusal::Problem(problem) => return super::http::shaped(uri, problem),
            Refusal::Missing => (
                "MissingAuthenticationTokenException",
                "unauthorized",
                StatusCode::UNAUTHORIZED,
                match &secrets.keys {
                    Some(_) => "Missing Authentication Token".to_owned(),
                    None => "this server wants `Authorization: Bearer TOKEN`".to_owned(),
                },
            ),
            Refusal::Token => (
                "UnrecognizedClientException",
                "unauthorized",
                StatusCode::UNAUTHORIZED,
                "The security token included in the request is invalid.".to_owned(),
            ),
            Refusal::Key => (
                "UnrecognizedClientException",
                "forbidden",
                StatusCode::FORBIDDEN,
                "The security token included in the request is invalid.".to_owned(),
            ),
            Refusal::Incomplete(message) => {
                ("IncompleteSignatureException", "forbidden", StatusCode::FORBIDDEN, message)
            }
            Refusal::Signature(message) => {
                ("InvalidSignatureException", "forbidden", StatusCode::FORBIDDEN, message)
            }
        };
        let aws = is_aws(uri);
        let mut response = match aws {
            true => RuntimeProblem::new(StatusCode::FORBIDDEN, kind, &message).into_response(),
            false => Reply(Err(Problem::new(status, code, message))).into_response(),
        };
        response.extensions_mut().insert(Code(kind));
        if !aws && status == StatusCode::UNAUTHORIZED {
            let scheme = match &secrets.tokens {
                Some(_) => "Bearer",
                None => sigv4::ALGORITHM,
            };
            let scheme = HeaderValue::from_static(scheme);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
