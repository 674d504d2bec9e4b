//! One writer at a time, in a bucket: leases, each an object that its owner renews.
//!
//! A whole run has the lease `_manifest/lock`, shard i of N has `_manifest/locks/i-of-N`. A name is
//! won by a write that the server makes only if the name is free, or only over the lease that was
//! read. So each lease has one owner; what a whole run and the shards are to each other, and shards
//! of another count, follows from an order: *first take, then look*. Of two that are in each other's
//! way at least one sees the other, and nobody stays who sees one that stays. A lease is `starting`
//! until its owner has looked. Of two that meet so, the one that comes first in this order waits
//! for the other to step aside: a whole run, then shards by count, then by index.
//!
//! Times: a lease is renewed every 10 s, and taken over when it has been the same for 45 s on the
//! clock of whoever wants it. Its owner trusts it for 25 s, asks again after that, and says after
//! 40 s without an answer that it cannot.

mod claim;
#[cfg(test)]
mod fake;
mod grip;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::calls::{About, If, Put};
use super::client::S3;
use super::fault::{Fault, Kind};
use super::listing::Want;
use crate::store::{Location, LockError, StoreError};
use claim::{Claim, Found, Owner, State, Verdict, Watches};
use grip::{Began, Grip, Swap, read, swap};

/// The lease of a whole run.
const WHOLE: &str = "_manifest/lock";
/// Where those of shards lie.
const SHARDS: &str = "_manifest/locks/";

/// So long those that start together wait for each other, whatever their patience is.
const STANDOFF: Duration = Duration::from_secs(5);
/// How long who waits for another to step aside waits between two looks.
const GLANCE: Duration = Duration::from_millis(100);
/// The pause of who has stepped aside, at least; up to twice that is added.
const ASIDE: Duration = Duration::from_millis(300);

/// Leases that are read at once.
const AT_ONCE: usize = 32;

/// So often a lease may turn out to be another than the one just read.
const SURPRISES: usize = 30;

/// An entity tag that no object has.
const NO_TAG: &str = "\"00000000000000000000000000000000\"";

/// How many times faster than usual all goes: 1, but in tests.
#[derive(Clone, Copy, Debug)]
struct Pace(u32);

impl Pace {
    /// How often a lease is renewed.
    fn renewal(self) -> Duration {
        Duration::from_secs(10) / self.0
    }

    /// So long after a renewal its owner does not ask.
    fn fresh(self) -> Duration {
        Duration::from_secs(25) / self.0
    }

    /// So long after a renewal its owner may believe that it is still its own.
    fn stale(self) -> Duration {
        Duration::from_secs(40) / self.0
    }

    /// A lease that has been the same for so long is anybody's.
    fn expiry(self) -> Duration {
        Duration::from_secs(45) / self.0
    }

    /// The longest pause between two looks of one who waits.
    fn poll(self) -> Duration {
        Duration::from_secs(2) / self.0
    }
}

/// A held lease; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    grip: Grip,
    whole: bool,
}

impl Lease {
    /// Takes the lease of the output under `prefix`, for all of it or for shard `index` of `count`,
    /// waiting up to `patience`. It excludes what [`crate::store::Lock`] excludes in a folder.
    ///
    /// # Errors
    /// [`LockError::Held`] when the patience ran out, [`LockError::Unguarded`] when the server does
    /// not do what leases need.
    pub fn acquire(
        s3: &S3,
        prefix: &Location,
        shard: Option<(u32, u32)>,
        patience: Duration,
    ) -> Result<Lease, LockError> {
        Lease::acquire_at_pace(s3, prefix, shard, patience, 1)
    }

    /// The same with all times but the patience divided by `pace`, for tests.
    ///
    /// # Errors
    /// Those of [`Lease::acquire`].
    #[doc(hidden)]
    pub fn acquire_at_pace(
        s3: &S3,
        prefix: &Location,
        shard: Option<(u32, u32)>,
        patience: Duration,
        pace: u32,
    ) -> Result<Lease, LockError> {
        let prefix = prefix.folder();
        let own = prefix.join(&shard.map_or(WHOLE.to_owned(), |(index, count)| {
            format!("{SHARDS}{index:07}-of-{count:07}")
        }));
        let seeker = Seeker {
            s3: s3.clone(),
            prefix,
            own,
            shard,
            me: Owner::this(),
            pace: Pace(pace),
            watches: Watches::default(),
            silent: false,
            met: None,
        };
        seeker.acquire(patience)
    }

    /// Whether it is that of a whole run.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether it is still ours. That costs nothing if it was renewed a moment ago.
    ///
    /// # Errors
    /// [`LockError::Lost`] when it is another's, [`LockError::Store`] when the store does not say.
    pub fn check(&self) -> Result<(), LockError> {
        self.grip.check()
    }

    /// Gives it back now, and waits for that for some seconds at most. Dropping it does the same.
    pub fn give_back(&self) {
        self.grip.give_back();
    }
}

/// Somebody who wants a lease.
struct Seeker {
    s3: S3,
    prefix: Location,
    own: Location,
    shard: Option<(u32, u32)>,
    me: Owner,
    pace: Pace,
    watches: Watches,
    /// Somebody is in the way who looks gone, and whom we have not seen renewing a lease.
    silent: bool,
    /// Since when others that start as well have been in the way.
    met: Option<Instant>,
}

/// A lease that cannot be held beside another: the shard it is for, and where it lies.
type Rival = (Option<(u32, u32)>, Location);

/// What came of one attempt.
enum Attempt {
    Had(Lease),
    /// Somebody holds it.
    Held(String),
    /// Somebody else starts as well, and comes first.
    StepAside,
}

/// Who is in the way.
enum Around {
    Nobody,
    /// Only such as have not looked around either.
    Meeting {
        who: String,
        /// Whether we come before all of them.
        first: bool,
    },
    Held(String),
}

impl Seeker {
    fn acquire(mut self, patience: Duration) -> Result<Lease, LockError> {
        let start = Instant::now();
        let mut polled = GLANCE.min(self.pace.poll());
        loop {
            let mut holder = match self.attempt()? {
                Attempt::Had(lease) => return Ok(lease),
                Attempt::StepAside => {
                    std::thread::sleep(ASIDE + ASIDE.mul_f64(2.0 * random()));
                    continue;
                }
                Attempt::Held(holder) => holder,
            };
            self.met = None;
            // Wait without writing anything until there seems to be a reason to try again.
            loop {
                // Who looks gone is watched for as long as it takes to be sure, whatever the
                // patience: nobody else would ever take it over.
                let sure = self.pace.expiry() + 5 * self.pace.poll();
                let patience = if self.silent { patience.max(sure) } else { patience };
                let left = patience.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(LockError::Held(holder));
                }
                std::thread::sleep(polled.min(left));
                polled = (polled * 2).min(self.pace.poll());
                match self.is_held()? {
                    Some(still) => holder = still,
                    None => break,
                }
            }
        }
    }

    /// What is said of a lease that is held; whether its owner looks gone is remembered.
    fn holder(&mut self, at: &Location, found: &Found) -> String {
        self.silent |= found.is_silent(&self.me, self.pace) && !self.watches.has_changed(&at.key);
        found.holder(&self.me)
    }

    /// Takes the own lease, looks around, and stays or gives it back.
    fn attempt(&mut self) -> Result<Attempt, LockError> {
        self.silent = false;
        let grip = match self.take()? {
            Ok(grip) => grip,
            Err(holder) => return Ok(Attempt::Held(holder)),
        };
        loop {
            match self.look_around()? {
                Around::Nobody => {
                    grip.settle()?;
                    return Ok(Attempt::Had(Lease { grip, whole: self.shard.is_none() }));
                }
                Around::Held(holder) => return Ok(Attempt::Held(holder)),
                Around::Meeting { who, first } => {
                    if self.met.get_or_insert_with(Instant::now).elapsed() >= STANDOFF {
                        return Ok(Attempt::Held(who));
                    }
                    if !first {
                        return Ok(Attempt::StepAside);
                    }
                    std::thread::sleep(GLANCE);
                }
            }
        }
    }

    /// Who keeps us from trying, if anybody.
    fn is_held(&mut self) -> Result<Option<String>, LockError> {
        self.silent = false;
        let own = self.own.clone();
        if let Some((found, unchanged)) = self.read(&own)?
            && found.judge(&self.me, unchanged, self.pace) == Verdict::Held
        {
            return Ok(Some(self.holder(&own, &found)));
        }
        match self.look_around()? {
            Around::Held(holder) => Ok(Some(holder)),
            Around::Nobody | Around::Meeting { .. } => Ok(None),
        }
    }

    /// Reads a lease, and says how long it has been the same.
    fn read(&mut self, at: &Location) -> Result<Option<(Found, Duration)>, LockError> {
        let asked = Instant::now();
        let (s3, of) = (self.s3.clone(), at.clone());
        let found = self.s3.wait(async move { read(&s3, &of).await });
        let Some(found) = found.map_err(|fault| fault.error("read", at))? else { return Ok(None) };
        let unchanged = self.watches.unchanged(&at.key, &found, asked, Instant::now());
        Ok(Some((found, unchanged)))
    }

    /// Writes over a lease that was read.
    fn swap(&self, at: &Location, bytes: Vec<u8>, over: &Found) -> Result<Swap, LockError> {
        let Some(tag) = over.tag.clone() else {
            return Err(self.unguarded(at, "gives no entity tags"));
        };
        let (s3, to) = (self.s3.clone(), at.clone());
        let ended = self.s3.wait(async move { swap(&s3, &to, &bytes, &tag).await });
        ended.map_err(|fault| self.fault(at, &fault))
    }

    fn put(&self, bytes: Vec<u8>, condition: If) -> Result<Put, LockError> {
        let (s3, to) = (self.s3.clone(), self.own.clone());
        let ended =
            self.s3.wait(async move { s3.put(&to, &bytes, &condition, &About::default()).await });
        ended.map_err(|fault| self.fault(&self.own, &fault))
    }

    /// A write with a condition came to nothing.
    fn fault(&self, at: &Location, fault: &Fault) -> LockError {
        if fault.kind == Kind::Refused && fault.said.contains("NotImplemented") {
            return self.unguarded(at, "does not know conditional writes");
        }
        fault.error("write", at).into()
    }

    fn unguarded(&self, at: &Location, what: &str) -> LockError {
        let server = self.s3.endpoint().unwrap_or_else(|| "of AWS".to_owned());
        LockError::Unguarded(format!(
            "the store {server} {what}, as was found at `{at}`, so two runs could overwrite each \
             other's work (--no-lock runs all the same; then see to it yourself that nobody else \
             writes there)"
        ))
    }

    /// Takes the own lease, or says who has it.
    fn take(&mut self) -> Result<Result<Grip, String>, LockError> {
        let claim = Claim::new(&self.me, self.shard)
            .map_err(|error| StoreError::new("read", "/dev/urandom", error))?;
        let own = self.own.clone();
        let began = Began::now();
        for _ in 0..SURPRISES {
            let tag = match self.read(&own)? {
                None => match self.put(claim.bytes(), If::Free)? {
                    Put::Done(tag) => tag,
                    Put::Not { .. } => continue,
                },
                // Our own, whose answer was lost, or came without a tag.
                Some((found, _)) if found.is_of(&claim) => match found.tag {
                    Some(tag) => Some(tag),
                    None => return Err(self.unguarded(&own, "gives no entity tags")),
                },
                Some((found, unchanged)) => match found.judge(&self.me, unchanged, self.pace) {
                    Verdict::Held => return Ok(Err(self.holder(&own, &found))),
                    Verdict::Released | Verdict::Abandoned => {
                        match self.swap(&own, claim.bytes(), &found)? {
                            Swap::Done(tag) => Some(tag),
                            Swap::Other(_) => continue,
                        }
                    }
                },
            };
            let Some(tag) = tag else { continue };
            let grip = Grip::new(&self.s3, &own, self.pace, claim.clone(), tag, began);
            self.probe(&claim)?;
            return Ok(Ok(grip));
        }
        let said = "its answers to conditional writes contradict each other";
        Err(Fault::new(Kind::Refused, said).error("write", &own).into())
    }

    /// Finds out whether the server heeds conditions, by writes of what is there already that must
    /// not be made.
    fn probe(&self, claim: &Claim) -> Result<(), LockError> {
        for (condition, name) in
            [(If::Free, "If-None-Match"), (If::Tag(NO_TAG.to_owned()), "If-Match")]
        {
            if let Put::Done(_) = self.put(claim.bytes(), condition)? {
                return Err(self.unguarded(&self.own, &format!("ignores {name}")));
            }
        }
        Ok(())
    }

    /// Looks for leases that are in the way. Abandoned ones are given back in their owner's stead, so
    /// that it notices should it wake up.
    fn look_around(&mut self) -> Result<Around, LockError> {
        let mut meeting = None;
        for some in self.rivals()?.chunks(AT_ONCE) {
            let asked = Instant::now();
            let reads: Vec<_> = some
                .iter()
                .map(|(_, at)| {
                    let (s3, of) = (self.s3.clone(), at.clone());
                    self.s3.start(async move { read(&s3, &of).await })
                })
                .collect();
            for ((shard, at), reading) in some.iter().zip(reads) {
                let found = reading.recv().expect("the thread of S3 has ended. This is a bug.");
                let found = found.map_err(|fault| fault.error("read", at))?;
                let Some(found) = self.stands(at, found, asked)? else { continue };
                let who = self.holder(at, &found);
                match found.claim {
                    Some(Claim { state: State::Starting, .. }) => {
                        let first = rank(self.shard) < rank(*shard);
                        let all = meeting.is_none_or(|(_, all)| all);
                        meeting = Some((who, first && all));
                    }
                    _ => return Ok(Around::Held(who)),
                }
            }
        }
        Ok(meeting.map_or(Around::Nobody, |(who, first)| Around::Meeting { who, first }))
    }

    /// The lease that was found, if somebody is behind it.
    fn stands(
        &mut self,
        at: &Location,
        mut found: Option<Found>,
        asked: Instant,
    ) -> Result<Option<Found>, LockError> {
        for _ in 0..SURPRISES {
            let Some(there) = found else { return Ok(None) };
            let unchanged = self.watches.unchanged(&at.key, &there, asked, Instant::now());
            match there.judge(&self.me, unchanged, self.pace) {
                Verdict::Released => return Ok(None),
                Verdict::Held => return Ok(Some(there)),
                Verdict::Abandoned => {
                    let claim = Claim::new(&self.me, self.shard)
                        .map_err(|error| StoreError::new("read", "/dev/urandom", error))?;
                    match self.swap(at, claim.next(State::Released).bytes(), &there)? {
                        Swap::Done(_) => return Ok(None),
                        Swap::Other(other) => found = other.map(|other| *other),
                    }
                }
            }
        }
        Ok(found)
    }

    /// The leases that cannot be held beside ours, and whose they are.
    fn rivals(&self) -> Result<Vec<Rival>, LockError> {
        let mut rivals = Vec::new();
        if self.shard.is_some() {
            rivals.push((None, self.prefix.join(WHOLE)));
        }
        let folder = self.prefix.join(SHARDS);
        for page in self.s3.list(&folder, Want::default()) {
            let page = page.map_err(|fault| fault.error("list", &folder))?;
            for entry in page.entries {
                let Ok(key) = String::from_utf8(entry.key) else { continue };
                let Some(shard) = key.strip_prefix(&folder.key).and_then(shard_of) else {
                    continue;
                };
                if self.shard.is_none_or(|(_, count)| count != shard.1) {
                    rivals.push((Some(shard), Location { bucket: folder.bucket.clone(), key }));
                }
            }
        }
        Ok(rivals)
    }
}

/// The shard that a lease of this name is for.
fn shard_of(name: &str) -> Option<(u32, u32)> {
    let (index, count) = name.split_once("-of-")?;
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    let (index, count) = (number(index)?, number(count)?);
    (0 < index && index <= count).then_some((index, count))
}

/// Of two that meet, the one with the smaller rank comes first.
fn rank(shard: Option<(u32, u32)>) -> (u32, u32) {
    shard.map_or((0, 0), |(index, count)| (count, index))
}

/// A number from 0 to 1.
fn random() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
