//! The requests that haul makes, each made again for as long as that makes sense.
//!
//! The SDK's own retries are off. A reading that breaks off goes on where it broke off; a write says
//! whether one of its answers was lost, because then "it is there already" may mean our own.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{RequestPayer, ServerSideEncryption};
use tokio::task::JoinSet;

use super::client::{READ, S3, timeouts};
use super::fault::{Fault, Kind};
use crate::store::Location;

/// Objects up to this size are read in one piece.
const ONE_PIECE: u64 = 16 << 20;
/// Larger ones in pieces of this size, several at a time.
const PIECE: u64 = 8 << 20;

/// A server that has never answered is given up after so many tries.
const TRIES_UNMET: u32 = 4;
/// A picture is after so many: others wait for it, and its mini-batch has its turn again later.
const TRIES: u32 = 10;
/// Everything else after this time: without it the job cannot go on.
const PATIENCE: Duration = Duration::from_secs(120);
/// A write has a second more for each so many bytes.
const BYTES_A_SECOND: usize = 32 << 10;
/// The longest pause doubles from here with each try, up to there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// New credentials, or a clock put right, are believed to help so often.
const MENDED: u32 = 3;

/// The name of the metadata that says whose an object is.
pub(super) const JOB: &str = "haul-job";

/// What a write asks of the name it writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum If {
    /// Nothing.
    Any,
    /// That it is free.
    Free,
    /// That it has this entity tag, as it is to be sent.
    Tag(String),
}

/// What is said of an object besides its bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    /// The job that it belongs to.
    pub(super) job: Option<String>,
    /// Its media type.
    pub(super) content_type: Option<String>,
}

/// How a write that could be made came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// Done; with the entity tag, if the server gave one.
    Done(Option<String>),
    /// The condition does not hold. If `doubt`, an earlier try of this very write was not answered,
    /// and may be why.
    Not {
        /// Whether an answer was lost.
        doubt: bool,
    },
}

/// An object that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Got {
    pub(super) bytes: Vec<u8>,
    /// As the server wrote it, with its quotes.
    pub(super) etag: Option<String>,
    /// Whether the tag of an object of this kind may be the MD5 of its bytes.
    pub(super) plain: bool,
    /// When it was written, in seconds since 1970.
    pub(super) modified: Option<i64>,
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) size: u64,
    pub(super) etag: Option<String>,
    pub(super) job: Option<String>,
}

/// The tries at one request.
pub(super) struct Tries<'a> {
    s3: &'a S3,
    start: Instant,
    made: u32,
    mended: u32,
    most: u32,
}

impl S3 {
    pub(super) fn tries(&self) -> Tries<'_> {
        Tries { s3: self, start: Instant::now(), made: 0, mended: 0, most: u32::MAX }
    }

    /// The tries at one of many.
    fn few_tries(&self) -> Tries<'_> {
        Tries { most: TRIES, ..self.tries() }
    }

    pub(super) fn payer(&self) -> Option<RequestPayer> {
        self.0.options.request_payer.then_some(RequestPayer::Requester)
    }

    /// A request was answered as it should be, or with a no that is an answer.
    pub(super) fn answered(&self) {
        self.0.met.store(true, Ordering::Relaxed);
        self.0.gate.succeeded();
    }

    pub(super) fn asked(&self) {
        self.0.counts.add(|traffic| traffic.requests += 1);
    }

    /// Writes an object in one request.
    pub(super) async fn put(
        &self,
        at: &Location,
        bytes: &[u8],
        condition: &If,
        about: &About,
    ) -> Result<Put, Fault> {
        let mut tries = self.tries();
        let mut doubt = false;
        let options = &self.0.options;
        loop {
            let client = self.client().await;
            let mut request = client
                .put_object()
                .bucket(&at.bucket)
                .key(&at.key)
                .body(ByteStream::from(bytes.to_vec()))
                .set_request_payer(self.payer())
                .set_server_side_encryption(options.sse.as_deref().map(ServerSideEncryption::from))
                .set_ssekms_key_id(options.sse_kms_key_id.clone());
            request = request.set_content_type(about.content_type.clone());
            if let Some(job) = &about.job {
                request = request.metadata(JOB, job);
            }
            request = match condition {
                If::Any => request,
                If::Free => request.if_none_match("*"),
                If::Tag(tag) => request.if_match(tag),
            };
            // Only leases are written so: a slow server must not cost a run its lease.
            let pass = match condition {
                If::Tag(_) => self.0.gate.enter_at_once(),
                If::Any | If::Free => self.0.gate.enter().await,
            };
            self.asked();
            // The time for an answer runs from when the writing begins.
            let more = Duration::from_secs((bytes.len() / BYTES_A_SECOND) as u64);
            let sent = match more.is_zero() {
                true => request.send().await,
                false => {
                    let timeouts = timeouts(READ + more);
                    let config = aws_sdk_s3::Config::builder().timeout_config(timeouts);
                    request.customize().config_override(config).send().await
                }
            };
            drop(pass);
            match sent {
                Ok(done) => {
                    self.answered();
                    self.0.counts.add(|traffic| traffic.bytes_written += bytes.len() as u64);
                    return Ok(Put::Done(done.e_tag.filter(|tag| !tag.is_empty())));
                }
                Err(error) => {
                    let fault = Fault::of(&error);
                    if fault.kind == Kind::Precondition
                        || (fault.kind == Kind::Missing && matches!(condition, If::Tag(_)))
                    {
                        self.answered();
                        return Ok(Put::Not { doubt });
                    }
                    doubt |= fault.kind.is_doubtful();
                    tries.after(fault).await?;
                }
            }
        }
    }

    /// Reads an object whole. `size` is what it is believed to have; `tag` is what it must have.
    pub(super) async fn get(
        &self,
        at: &Location,
        size: Option<u64>,
        tag: Option<&str>,
    ) -> Result<Got, Fault> {
        match (size, tag) {
            (Some(size), Some(tag)) if size > ONE_PIECE => self.get_pieces(at, size, tag).await,
            _ => self.get_range(at, 0, None, size, tag).await,
        }
    }

    async fn get_pieces(&self, at: &Location, size: u64, tag: &str) -> Result<Got, Fault> {
        // What is still under way when one fails, or when nobody waits any more, ends with the set.
        let mut pieces = JoinSet::new();
        for first in (0..size).step_by(PIECE as usize) {
            let (s3, at, tag) = (self.clone(), at.clone(), tag.to_owned());
            let last = (first + PIECE).min(size) - 1;
            let len = Some(last - first + 1);
            pieces.spawn(async move {
                let got = s3.get_range(&at, first, Some(last), len, Some(&tag)).await;
                (first as usize, got)
            });
        }
        let mut whole = Got { bytes: vec![0; size as usize], ..Got::default() };
        while let Some(ended) = pieces.join_next().await {
            let (first, got) = ended.map_err(|e| Fault::new(Kind::Connection, e.to_string()))?;
            let got = got?;
            whole.bytes[first..first + got.bytes.len()].copy_from_slice(&got.bytes);
            (whole.etag, whole.plain) = (got.etag, got.plain);
        }
        Ok(whole)
    }

    /// Reads the bytes from `first` to `last`, or to the end; `size` of them, where that is known.
    pub(super) async fn get_range(
        &self,
        at: &Location,
        first: u64,
        last: Option<u64>,
        size: Option<u64>,
        tag: Option<&str>,
    ) -> Result<Got, Fault> {
        let mut tries = if size.is_some() { self.few_tries() } else { self.tries() };
        let asked = tag.is_some();
        let mut got = Got::default();
        got.bytes.reserve_exact(usize::try_from(size.unwrap_or(0)).unwrap_or(0));
        let mut tag = tag.map(str::to_owned);
        loop {
            let pass = self.0.gate.enter().await;
            let ended = self.get_once(at, first, last, size, &mut tag, &mut got).await;
            drop(pass);
            let fault = match ended {
                Ok(()) if size.is_none_or(|size| size == got.bytes.len() as u64) => {
                    self.answered();
                    return Ok(got);
                }
                Ok(()) => {
                    let said = format!("{} bytes came, {size:?} were due", got.bytes.len());
                    got.bytes.clear();
                    Fault::new(Kind::Broken, said)
                }
                // It has changed between two tries, which nobody has asked it not to.
                Err(fault) if fault.kind == Kind::Precondition && !asked && tag.is_some() => {
                    tag = None;
                    Fault { kind: Kind::Broken, ..fault }
                }
                Err(fault) => fault,
            };
            // Without a tag, what comes later may be of another version; and where all bytes are
            // there and their end is not, there is no rest to ask for.
            let all = size.is_some_and(|size| size <= got.bytes.len() as u64);
            if tag.is_none() || fault.kind == Kind::Broken || all {
                got.bytes.clear();
            }
            tries.after(fault).await?;
        }
    }

    async fn get_once(
        &self,
        at: &Location,
        first: u64,
        last: Option<u64>,
        size: Option<u64>,
        tag: &mut Option<String>,
        got: &mut Got,
    ) -> Result<(), Fault> {
        let from = first + got.bytes.len() as u64;
        let range = match last {
            Some(last) => Some(format!("bytes={from}-{last}")),
            None if from > 0 => Some(format!("bytes={from}-")),
            None => None,
        };
        self.asked();
        let request = self
            .client()
            .await
            .get_object()
            .bucket(&at.bucket)
            .key(&at.key)
            .set_range(range)
            .set_if_match(tag.clone())
            .set_request_payer(self.payer());
        let mut object = request.send().await.map_err(|error| Fault::of(&error))?;
        self.0.met.store(true, Ordering::Relaxed);
        if from > 0 && !object.content_range().is_some_and(|range| begins_at(range, from)) {
            return Err(Fault::new(Kind::Broken, "not the range that was asked for"));
        }
        let etag = object.e_tag.take().filter(|tag| !tag.is_empty());
        // Some servers do not look at the condition.
        if let (Some(asked), Some(there)) = (tag.as_deref(), etag.as_deref())
            && asked.trim_matches('"') != there.trim_matches('"')
        {
            let said = format!("its tag is {there}, {asked} was asked for");
            return Err(Fault::new(Kind::Precondition, said));
        }
        let coming = object.content_length.and_then(|length| u64::try_from(length).ok());
        if last.is_none() && from == 0 && size.is_some_and(|size| coming.is_some_and(|c| c != size))
        {
            let said = format!("it has {coming:?} bytes, {size:?} were planned");
            // It is what was asked for, if there is a tag to tell: then it is the answer that is wrong.
            let kind = if tag.is_some() { Kind::Broken } else { Kind::Precondition };
            return Err(Fault::new(kind, said));
        }
        got.etag = etag;
        got.modified = object.last_modified.map(|time| time.secs());
        got.plain = object.sse_customer_algorithm.is_none()
            && !object
                .server_side_encryption
                .as_ref()
                .is_some_and(|kind| kind.as_str().starts_with("aws:"));
        *tag = tag.take().or_else(|| got.etag.clone());
        let before = got.bytes.len();
        let ended = loop {
            match object.body.next().await {
                None => break Ok(()),
                // Whoever gives more than is due may never end.
                Some(Ok(bytes))
                    if size.is_some_and(|size| size < (got.bytes.len() + bytes.len()) as u64) =>
                {
                    break Err(Fault::new(Kind::Broken, "more bytes came than were due"));
                }
                Some(Ok(bytes)) => got.bytes.extend_from_slice(&bytes),
                Some(Err(error)) => break Err(Fault::of_transport(&error)),
            }
        };
        let read = (got.bytes.len() - before) as u64;
        self.0.counts.add(|traffic| traffic.bytes_read += read);
        ended
    }

    /// What HEAD says of an object.
    async fn head(&self, at: &Location) -> Result<Head, Fault> {
        let mut tries = self.tries();
        loop {
            let client = self.client().await;
            let request = client
                .head_object()
                .bucket(&at.bucket)
                .key(&at.key)
                .set_request_payer(self.payer());
            let pass = self.0.gate.enter().await;
            self.asked();
            let sent = request.send().await;
            drop(pass);
            match sent {
                Ok(mut head) => {
                    self.answered();
                    return Ok(Head {
                        size: u64::try_from(head.content_length.unwrap_or(0)).unwrap_or(0),
                        etag: head.e_tag.take().filter(|tag| !tag.is_empty()),
                        job: head.metadata.and_then(|mut metadata| metadata.remove(JOB)),
                    });
                }
                Err(error) => tries.after(Fault::of(&error)).await?,
            }
        }
    }

    /// Looks at an object, and says what is wrong with it or with us. An answer to HEAD has no body,
    /// so that a no is one number: what it is about, only a reading tells.
    pub(super) async fn look(&self, at: &Location) -> Result<Head, Fault> {
        match self.head(at).await {
            // That the bucket is not there looks like that, too. One answer is enough to know it.
            Err(fault) if fault.kind == Kind::Missing && !self.knows(&at.bucket) => {
                match self.first_byte(at).await {
                    Err(settled) if settled.kind != Kind::Missing => Err(settled),
                    _ => {
                        self.learn(&at.bucket);
                        Err(fault)
                    }
                }
            }
            Err(fault) if matches!(fault.kind, Kind::Denied | Kind::Refused) => {
                self.first_byte(at).await?;
                // It may be readable now: reading gets new credentials for expired ones.
                self.head(at).await
            }
            other => other,
        }
    }

    /// Reads the first byte of an object, if it has one.
    pub(super) async fn first_byte(&self, at: &Location) -> Result<(), Fault> {
        match self.get_range(at, 0, Some(0), None, None).await {
            Err(fault) if fault.said.starts_with("InvalidRange") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Deletes an object; that it is not there is no fault.
    pub(super) async fn delete(&self, at: &Location) -> Result<(), Fault> {
        let mut tries = self.tries();
        loop {
            let client = self.client().await;
            let request = client
                .delete_object()
                .bucket(&at.bucket)
                .key(&at.key)
                .set_request_payer(self.payer());
            let pass = self.0.gate.enter().await;
            self.asked();
            let sent = request.send().await;
            drop(pass);
            match sent.map_err(|error| Fault::of(&error)) {
                Ok(_) => {
                    self.answered();
                    return Ok(());
                }
                Err(fault) if fault.kind == Kind::Missing => {
                    self.answered();
                    return Ok(());
                }
                Err(fault) => tries.after(fault).await?,
            }
        }
    }
}

impl Tries<'_> {
    /// A try has failed: waits until the next one is due, or gives the fault back, if there is none.
    pub(super) async fn after(&mut self, mut fault: Fault) -> Result<(), Fault> {
        let inner = &self.s3.0;
        self.made += 1;
        (fault.tries, fault.time) = (self.made, self.start.elapsed());
        if fault.answered {
            inner.met.store(true, Ordering::Relaxed);
        }
        // Answers that come too late are what too many requests at once look like, too.
        if matches!(fault.kind, Kind::Throttled | Kind::Timeout) {
            let now = inner.gate.throttled() as u64;
            inner.counts.add(|traffic| {
                let least = traffic.throttled_to;
                traffic.throttled_to = if least == 0 { now } else { least.min(now) };
            });
        }
        if !fault.kind.passes() {
            return Err(fault);
        }
        match (fault.kind, fault.ahead) {
            (Kind::Expired, _) if self.mended < MENDED => self.s3.forget_credentials(),
            (Kind::Skewed, Some(ahead)) if self.mended < MENDED => self.s3.believe_clock(ahead),
            (Kind::Expired | Kind::Skewed, _) => return Err(fault),
            _ => {}
        }
        self.mended += u32::from(matches!(fault.kind, Kind::Expired | Kind::Skewed));
        let met = inner.met.load(Ordering::Relaxed);
        if self.made >= if met { self.most } else { TRIES_UNMET } || fault.time >= PATIENCE {
            return Err(fault);
        }
        let kind = fault.kind.name();
        inner.counts.add(|traffic| *traffic.retried.entry(kind.to_owned()).or_default() += 1);
        tokio::time::sleep(pause(self.made)).await;
        while let Err(wait) = inner.gate.repeat() {
            if self.start.elapsed() >= PATIENCE {
                return Err(fault);
            }
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

/// Whether a `Content-Range` is one from this byte on.
fn begins_at(range: &str, from: u64) -> bool {
    range.strip_prefix("bytes ").and_then(|range| range.split_once('-')).map(|(first, _)| first)
        == Some(&*from.to_string())
}

/// A random time of up to a limit that doubles with each try ("full jitter"), so that many who
/// failed together do not come back together.
fn pause(tries: u32) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let most = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE);
    // The standard library's only source of random numbers: the keys of its hash tables.
    let random = RandomState::new().hash_one(tries) as f64 / u64::MAX as f64;
    most.mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_random_and_bounded() {
        for tries in 1..30 {
            let pauses: Vec<_> = (0..50).map(|_| pause(tries)).collect();
            let most = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE);
            assert!(pauses.iter().all(|pause| *pause <= most));
            assert!(pauses.iter().any(|pause| *pause < most / 2));
            assert!(pauses.iter().any(|pause| *pause > most / 2));
        }
    }
}
