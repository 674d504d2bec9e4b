//! One lease that is held: renewed in the background, given back at the end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{Mutex, Notify};

use super::super::calls::{About, If, Put};
use super::super::client::S3;
use super::super::fault::{Fault, Kind};
use super::Pace;
use super::claim::{Claim, Found, State};
use crate::store::{Location, LockError};

/// Giving back may take so long: a run that ends does not wait for a server that is away.
const FAREWELL: Duration = Duration::from_secs(4);

/// So often a write of our own is found where its answer was lost, and written over.
const ADOPTIONS: usize = 4;

/// How a write over a lease came out.
#[derive(Debug)]
pub(super) enum Swap {
    /// Done; with the new entity tag.
    Done(String),
    /// This is there instead, or nothing.
    Other(Option<Box<Found>>),
}

/// Reads a lease.
pub(super) async fn read(s3: &S3, at: &Location) -> Result<Option<Found>, Fault> {
    match s3.get(at, None, None).await {
        Ok(got) => Ok(Some(Found::new(got.bytes, got.etag, got.modified))),
        Err(fault) if fault.kind == Kind::Missing => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Writes over what has the entity tag `tag`, and nothing else.
pub(super) async fn swap(s3: &S3, at: &Location, bytes: &[u8], tag: &str) -> Result<Swap, Fault> {
    for _ in 0..2 {
        let bare = s3.0.bare_tags.load(Ordering::Relaxed);
        let sent = if bare { tag.trim_matches('"') } else { tag };
        let put = s3.put(at, bytes, &If::Tag(sent.to_owned()), &About::default()).await?;
        if let Put::Done(Some(tag)) = put {
            return Ok(Swap::Done(tag));
        }
        match (put, read(s3, at).await?) {
            (Put::Done(_), Some(Found { bytes: there, tag: Some(tag), .. })) if there == bytes => {
                return Ok(Swap::Done(tag));
            }
            // Nothing has changed, so it is not what is there but how the tag is written: with
            // quotes, as HTTP has it, or without, as some servers compare it.
            (Put::Not { .. }, Some(found)) if found.tag.as_deref() == Some(tag) => {
                s3.0.bare_tags.store(!bare, Ordering::Relaxed);
            }
            (_, found) => return Ok(Swap::Other(found.map(Box::new))),
        }
    }
    Err(Fault::new(Kind::Refused, "the store does not know the entity tag that it gave"))
}

/// Time since this machine was started, that in which it slept among it.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// A lease that is held; given back when dropped.
#[derive(Debug)]
pub(super) struct Grip(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    s3: S3,
    at: Location,
    pace: Pace,
    /// Whoever writes to the lease has this.
    turn: Mutex<Turn>,
    /// When the last renewal that came through began, in milliseconds of [`now`].
    renewed: AtomicU64,
    /// Who has it instead, once it is known.
    lost: OnceLock<String>,
    ended: AtomicBool,
    stop: Notify,
}

/// What is there, as far as we know.
#[derive(Debug)]
struct Turn {
    claim: Claim,
    tag: String,
}

/// When something began that may become a [`Grip`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Began(Duration);

impl Began {
    pub(super) fn now() -> Began {
        Began(now())
    }
}

impl Grip {
    /// Holds what has just been written, by writes of which the first was made after `began`.
    pub(super) fn new(
        s3: &S3,
        at: &Location,
        pace: Pace,
        claim: Claim,
        tag: String,
        began: Began,
    ) -> Grip {
        let shared = Arc::new(Shared {
            s3: s3.clone(),
            at: at.clone(),
            pace,
            turn: Mutex::new(Turn { claim, tag }),
            renewed: AtomicU64::new(0),
            lost: OnceLock::new(),
            ended: AtomicBool::new(false),
            stop: Notify::new(),
        });
        shared.renewed_at(began.0);
        drop(s3.start(Arc::clone(&shared).keep()));
        Grip(shared)
    }

    /// Says to others that this run has looked around and stays.
    pub(super) fn settle(&self) -> Result<(), LockError> {
        let shared = Arc::clone(&self.0);
        let settled = self.0.s3.wait(async move {
            let mut turn = shared.turn.lock().await;
            shared.renew(&mut turn, State::Held).await
        });
        settled.map_err(|fault| fault.error("write", &self.0.at))?;
        self.0.lost()
    }

    /// Whether it is still ours.
    pub(super) fn check(&self) -> Result<(), LockError> {
        self.0.still_held()?;
        if self.0.age() < self.0.pace.fresh() {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        self.0.s3.wait(async move { shared.freshen().await })
    }
}

#[cfg(test)]
impl Grip {
    /// Ends its renewals, as when its process is stopped.
    pub(super) fn pause(&self) {
        self.0.stop.notify_one();
    }
}

impl Grip {
    /// Gives it back, if that has not been done yet.
    pub(super) fn give_back(&self) {
        if self.0.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        self.0.stop.notify_one();
        let shared = Arc::clone(&self.0);
        let gone = self.0.s3.start(async move {
            // What is not given back expires, or is taken from a dead process.
            let _ = tokio::time::timeout(FAREWELL, shared.release()).await;
        });
        let _ = gone.recv_timeout(FAREWELL + Duration::from_secs(1));
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Shared {
    fn renewed_at(&self, then: Duration) {
        self.renewed.store(u64::try_from(then.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    /// For how long nobody has had a reason to take it.
    fn age(&self) -> Duration {
        now().saturating_sub(Duration::from_millis(self.renewed.load(Ordering::Relaxed)))
    }

    /// Whether nobody has taken it, and we have not given it back.
    fn still_held(&self) -> Result<(), LockError> {
        if self.ended.load(Ordering::Relaxed) {
            let text = format!("the lease `{}` was given back, since the run is ending", self.at);
            return Err(LockError::Lost(text));
        }
        self.lost()
    }

    fn lost(&self) -> Result<(), LockError> {
        self.lost.get().map_or(Ok(()), |text| Err(LockError::Lost(text.clone())))
    }

    /// Renews it until it is given back or lost.
    async fn keep(self: Arc<Self>) {
        let mut pause = self.pace.renewal();
        while tokio::time::timeout(pause, self.stop.notified()).await.is_err() {
            let mut turn = self.turn.lock().await;
            if self.ended.load(Ordering::Relaxed) || self.lost.get().is_some() {
                return;
            }
            let began = now();
            // A renewal that is not through when the next one is due is given up; what becomes of it
            // shows then.
            let renewal = self.renew(&mut turn, State::Held);
            let renewed = tokio::time::timeout(self.pace.renewal(), renewal).await;
            let soon = self.pace.renewal() / 5;
            pause = match renewed {
                Ok(Ok(())) => {
                    self.pace.renewal().saturating_sub(now().saturating_sub(began)).max(soon)
                }
                // check() says so where somebody is told.
                Ok(Err(_)) | Err(_) => soon,
            };
        }
    }

    /// Renews it at once if it has not been for long, with the patience of any other request.
    async fn freshen(&self) -> Result<(), LockError> {
        let mut turn = self.turn.lock().await;
        // Twice where the first one needed many tries: then it may have come through long ago.
        for _ in 0..2 {
            self.still_held()?;
            if self.age() < self.pace.fresh() {
                return Ok(());
            }
            if let Err(fault) = self.renew(&mut turn, State::Held).await {
                return match self.age() < self.pace.stale() {
                    true => Ok(()),
                    false => Err(fault.error("renew the lease", &self.at).into()),
                };
            }
        }
        self.lost()
    }

    /// Writes the next claim over the last one, or finds that it is lost.
    async fn renew(&self, turn: &mut Turn, state: State) -> Result<(), Fault> {
        for _ in 0..ADOPTIONS {
            let began = now();
            let next = turn.claim.next(state);
            match swap(&self.s3, &self.at, &next.bytes(), &turn.tag).await? {
                Swap::Done(tag) => {
                    *turn = Turn { claim: next, tag };
                    self.renewed_at(began);
                    return Ok(());
                }
                Swap::Other(Some(found)) if found.tag.is_some() && found.is_of(&turn.claim) => {
                    // Ours, whose answer was lost. Who watches has seen it when it came through, which
                    // we do not know, so it is no renewal of now.
                    self.s3.0.counts.add(|traffic| traffic.answers_lost += 1);
                    if let Found { claim: Some(claim), tag: Some(tag), .. } = *found {
                        *turn = Turn { claim, tag };
                    }
                }
                Swap::Other(found) => {
                    let _ = self.lost.set(self.describe(found.as_deref()));
                    return Ok(());
                }
            }
        }
        Err(Fault::new(Kind::Refused, "its answers to conditional writes contradict each other"))
    }

    fn describe(&self, found: Option<&Found>) -> String {
        let at = &self.at;
        let Some(found) = found else {
            return format!(
                "the lease `{at}` was deleted while this run had it (somebody, or a rule of the \
                 bucket? run the same command again to go on)"
            );
        };
        let who = found.claim.as_ref().map_or("somebody".to_owned(), Claim::who);
        format!(
            "the lease `{at}` was taken over by {who} while this run had it (was this one stopped, or \
             cut off from the store, for {} s?)",
            self.pace.expiry().as_secs()
        )
    }

    /// Gives it back, unless it is another's.
    async fn release(&self) {
        let mut turn = self.turn.lock().await;
        if self.lost.get().is_none() {
            let _ = self.renew(&mut turn, State::Released).await;
        }
    }
}
