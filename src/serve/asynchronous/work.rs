//! The worker: takes requests out of the queue, has them answered, and publishes what they came to.
//!
//! What a request came to is decided once, durably, before anything is published. A server that is
//! killed in between publishes the same bytes again, and finds them there. So there is one object
//! for each request that was accepted, a result or a failure, whenever somebody pulls the plug.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::AsyncConfig;
use super::attempt::{Attempt, Verdict};
use super::entry::{Decision, Entry, State, Target, now};
use super::message;
use super::metrics::Meters;
use super::names;
use super::notify::Notifier;
use super::publish::{Places, Put};
use super::queue::{Broken, Queue, Tables};
use crate::failpoint;
use crate::serve::desk::Space;
use crate::serve::endpoint::Endpoint;
use crate::serve::problem::Problem;

/// A fault of the store or of a worker is forgiven until it is one of so many.
const FAULTS: u32 = 3;
/// So often the server may die with a request in progress.
const DEATHS: u32 = 3;
/// Readings and publications at once: they have threads, which others want, too.
const LANES: usize = 8;
/// While the model cannot be loaded, or the disk of the queue does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries to publish.
const LONGEST: Duration = Duration::from_secs(60);
/// While so many outcomes wait for a place that cannot be written to, nothing more is begun: they
/// are kept in the queue, which has an end.
const UNPUBLISHED: usize = 256;
/// The code of what was not begun in time.
const EXPIRED: &str = "expired";
/// Requests that are forgotten, or expire, in one transaction.
const FORGOTTEN: usize = 1000;

/// What is common to the door and to everything behind it.
pub(super) struct Worker {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) config: AsyncConfig,
    pub(super) queue: Arc<Queue>,
    pub(super) meters: Meters,
    places: Arc<Places>,
    notifier: Arc<Notifier>,
    line: Mutex<Line>,
    wake: Notify,
    slots: Arc<Semaphore>,
    pub(super) lanes: Arc<Semaphore>,
    /// What is read has room of its own: a slow store would else keep that of requests that somebody
    /// waits for.
    pub(super) space: Space,
    tasks: Mutex<JoinSet<()>>,
}

/// The queue as far as it must be in memory: numbers and times.
#[derive(Debug, Default)]
struct Line {
    /// Those that can be begun, by when they were accepted.
    ready: BTreeSet<(u64, u64)>,
    /// Those that are begun again, by when they may be.
    delayed: BTreeSet<(Instant, u64)>,
    /// Those that the server has died of twice: with them in progress, nothing else is.
    alone: BTreeSet<u64>,
    /// Those whose outcome is known and not published.
    decided: BTreeSet<u64>,
    /// Those of them that could not be published, by when it is tried again.
    unpublished: BTreeSet<(Instant, u64)>,
    /// How often that was tried, and how many of these are being tried now.
    tries: BTreeMap<u64, u32>,
    trying: usize,
    /// Whether it was the turn of one of these: with others they take turns.
    tried: bool,
    /// When those that were never begun expire.
    expiring: BTreeSet<(u64, u64)>,
    /// When those that have not ended were accepted.
    open: BTreeMap<u64, u64>,
    /// Nothing is begun before.
    not_before: Option<Instant>,
}

/// What the dispatcher does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Begin { number: u64, alone: bool },
    Publish(u64),
    PublishAgain(u64),
    Wait(Duration),
}

impl Worker {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        config: AsyncConfig,
        queue: Arc<Queue>,
        meters: Meters,
        places: Places,
        notifier: Arc<Notifier>,
    ) -> Arc<Worker> {
        Arc::new(Worker {
            slots: Arc::new(Semaphore::new(config.concurrency)),
            lanes: Arc::new(Semaphore::new(LANES)),
            space: Space::new(endpoint.config().most_bytes),
            line: Mutex::default(),
            wake: Notify::new(),
            tasks: Mutex::default(),
            endpoint,
            config,
            queue,
            meters,
            places: Arc::new(places),
            notifier,
        })
    }

    /// Looks at what the last server has left, and goes on with it.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub(super) async fn recover(self: &Arc<Worker>) -> Result<(), Broken> {
        let left = self.queue.change(|tables| {
            let mut left = tables.unfinished()?;
            // Who was told to stop, and then at once, died of nothing.
            let died = !tables.is_stopping()?;
            tables.stopping(false)?;
            for (number, entry) in &mut left {
                if entry.state != State::InProgress {
                    continue;
                }
                entry.deaths += u32::from(died);
                match entry.deaths >= DEATHS {
                    true => {
                        let message = format!("the server died of it {} times", entry.deaths);
                        let problem =
                            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "died", message);
                        fail(tables, *number, entry, &problem)?;
                    }
                    false => {
                        entry.state = State::Queued;
                        tables.keep(*number, entry)?;
                    }
                }
            }
            Ok(left)
        });
        let left = left.await?;
        if !left.is_empty() {
            tracing::info!(requests = left.len(), "asynchronous requests of an earlier server");
        }
        {
            let mut line = self.line();
            left.iter().for_each(|(number, entry)| line.add(*number, entry));
        }
        let owed = self.queue.look(|tables| tables.owed()).await?;
        owed.into_iter().for_each(|(number, url)| self.notifier.owe(number, &url));
        Ok(())
    }

    /// Begins to work.
    pub(super) fn start(self: &Arc<Worker>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(self.clone().dispatch());
        tasks.spawn(self.clone().sweep());
    }

    /// A request is on disk, since now or from before.
    pub(super) fn accepted(&self, number: u64, entry: &Entry) {
        let mut line = self.line();
        // Its commit may have failed for whoever sent it first, and be there all the same.
        if !line.open.contains_key(&number) && !matches!(entry.state, State::Ended(_)) {
            line.add(number, entry);
            drop(line);
            self.wake.notify_one();
        }
    }

    /// Whether nothing is to be done and nobody to be told.
    pub(super) fn is_idle(&self) -> bool {
        self.line().open.is_empty() && self.notifier.is_idle()
    }

    /// How many requests have not ended, and when the oldest of them was accepted.
    pub(super) fn backlog(&self) -> (usize, Option<u64>) {
        let line = self.line();
        (line.open.len(), line.open.first_key_value().map(|(_, &received)| received))
    }

    /// Takes nothing new, waits for those in progress for so long, and leaves the rest queued.
    pub(super) async fn stop(&self, grace: Duration) {
        self.slots.close();
        self.wake.notify_one();
        // Somebody may lose patience during the grace, which is no fault of what is in progress.
        if let Err(error) = self.queue.change(|tables| tables.stopping(true)).await {
            tracing::error!(%error, "what is in progress may count as what the server died of");
        }
        let idle = async {
            while self.meters.in_progress.get() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(grace, idle).await;
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.notifier.stop().await;
        // Nobody died of those that are left: they were only not waited for.
        let left = self.queue.change(|tables| {
            for (number, mut entry) in tables.unfinished()? {
                if entry.state == State::InProgress {
                    entry.state = State::Queued;
                    tables.keep(number, &entry)?;
                }
            }
            Ok(())
        });
        if let Err(error) = left.await {
            tracing::error!(%error, "what was in progress was not put back");
        }
    }

    /// Gives each slot to the next request.
    async fn dispatch(self: Arc<Worker>) {
        let mut running = JoinSet::new();
        loop {
            // Closed when the server stops. What runs is ended by whoever drops this.
            let Ok(slot) = self.slots.clone().acquire_owned().await else {
                while running.join_next().await.is_some() {}
                return;
            };
            while running.try_join_next().is_some() {}
            let next = loop {
                if self.slots.is_closed() {
                    break None;
                }
                let next = self.line().next(self.config.concurrency);
                match next {
                    Next::Wait(time) => {
                        let _ = tokio::time::timeout(time, self.wake.notified()).await;
                    }
                    other => break Some(other),
                }
            };
            let mut again = false;
            let (number, alone) = match next {
                None => continue,
                Some(Next::Publish(number)) => (number, None),
                Some(Next::PublishAgain(number)) => {
                    again = true;
                    (number, None)
                }
                Some(Next::Begin { number, alone: false }) => (number, None),
                Some(Next::Begin { number, alone: true }) => {
                    // Nobody else asks for slots, so these come when what runs is through.
                    let others = (self.config.concurrency - 1) as u32;
                    let Ok(all) = self.slots.clone().acquire_many_owned(others).await else {
                        continue;
                    };
                    (number, Some(all))
                }
                Some(Next::Wait(_)) => continue,
            };
            let worker = self.clone();
            self.meters.in_progress.inc();
            let done = InProgress { worker: worker.clone(), again, _slot: slot, _all: alone };
            running.spawn(async move {
                worker.process(number).await;
                drop(done);
            });
        }
    }

    /// Brings one request as far as it comes.
    async fn process(&self, number: u64) {
        let Some(entry) = self.persist(false, move |tables| tables.entry(number)).await else {
            return self.line().forget(number);
        };
        match entry.state {
            State::Ended(_) => return self.line().forget(number),
            State::Decided(_) => return self.publish(number).await,
            State::Queued | State::InProgress => {}
        }
        // Whoever holds this keeps the model loaded.
        let ready = match self.endpoint.ready().await {
            Ok(ready) => ready,
            Err(problem) => {
                tracing::warn!(error = %problem.message, "asynchronous requests wait for the model");
                {
                    let mut line = self.line();
                    line.not_before = Some(Instant::now() + PAUSE);
                    line.add(number, &entry);
                }
                return self.wake.notify_one();
            }
        };
        self.endpoint.used();
        let Some((entry, body)) = self.begin(number, entry.attempts).await else { return };
        let _ = failpoint::hit("async_begun");
        let verdict = Attempt { worker: self, entry: &entry, body }.make().await;
        drop(ready);
        let (decision, bytes) = match verdict {
            Verdict::Done(content_type, bytes) => (Decision::Completed { content_type }, bytes),
            Verdict::Fault(problem) if entry.faults + 1 < FAULTS => {
                let pause = PAUSE * (1 << entry.faults.min(4));
                tracing::warn!(
                    inference_id = entry.inference_id,
                    error = %problem.message,
                    "an asynchronous request is tried again"
                );
                let faults = entry.faults + 1;
                let entry = self.persist(true, move |tables| {
                    let Some(mut entry) = tables.entry(number)? else { return Ok(None) };
                    entry.faults = faults;
                    entry.state = State::Queued;
                    tables.keep(number, &entry)?;
                    Ok(Some(entry))
                });
                if let Some(entry) = entry.await {
                    self.line().delay(number, &entry, Instant::now() + pause);
                    self.wake.notify_one();
                }
                return;
            }
            Verdict::Fault(problem) | Verdict::Failed(problem) => {
                self.meters.failures.inc();
                (message::failed(&problem), message::failure(&entry, &problem))
            }
        };
        self.decide(number, decision, bytes).await;
        let _ = failpoint::hit("async_decided");
        self.publish(number).await;
    }

    /// Marks a request as in progress, durably, that was begun so often before. Nothing if it is not
    /// to be begun any more.
    async fn begin(&self, number: u64, before: u32) -> Option<(Entry, Option<Vec<u8>>)> {
        let begun = self.persist(true, move |tables| {
            let Some(mut entry) = tables.entry(number)? else { return Ok(None) };
            // The commit that said so failed, and is on disk all the same.
            if entry.state == State::InProgress && entry.attempts == before + 1 {
                return Ok(Some((entry, tables.body(number)?)));
            }
            if entry.state != State::Queued {
                return Ok(None);
            }
            let now = now();
            if entry.expires().is_some_and(|expires| expires <= now) {
                return Ok(None);
            }
            entry.begun = entry.begun.or(Some(now));
            entry.attempts += 1;
            entry.state = State::InProgress;
            tables.keep(number, &entry)?;
            Ok(Some((entry, tables.body(number)?)))
        });
        let begun = begun.await;
        if let Some((entry, _)) = &begun {
            let mut line = self.line();
            line.expiring.remove(&(expires_at(entry), number));
            if entry.attempts == 1 {
                let waited = now().saturating_sub(entry.received);
                self.meters.backlog_time.observe(waited as f64 / 1e3);
            }
        }
        begun
    }

    /// Keeps what a request came to, durably, unless that is known already.
    async fn decide(&self, number: u64, decision: Decision, bytes: Vec<u8>) {
        let bytes = Arc::new(bytes);
        self.persist(true, move |tables| {
            let Some(mut entry) = tables.entry(number)? else { return Ok(()) };
            if entry.decision().is_none() {
                entry.state = State::Decided(decision.clone());
                tables.decide(number, &entry, &bytes)?;
            }
            Ok(())
        })
        .await;
    }

    /// Publishes what a request came to. Where that cannot be done now it is tried again later, and
    /// others have the slot meanwhile.
    async fn publish(&self, number: u64) {
        let mut renamed = false;
        let (entry, bytes) = loop {
            let found = self.persist(false, move |tables| {
                let Some(entry) = tables.entry(number)? else { return Ok(None) };
                Ok(tables.outcome(number)?.map(|bytes| (entry, bytes)))
            });
            let Some((entry, bytes)) = found.await else { return self.line().forget(number) };
            let State::Decided(decision) = &entry.state else {
                return self.line().forget(number);
            };
            let (completed, target, content_type) = match decision {
                Decision::Completed { content_type } => (true, &entry.output, &**content_type),
                Decision::Failed { .. } => (false, &entry.failure, "application/json"),
            };
            let Ok(lane) = self.lanes.clone().acquire_owned().await else { return };
            let (places, to) = (self.places.clone(), target.clone());
            let kind = content_type.to_owned();
            let put = tokio::task::spawn_blocking(move || {
                let put = places.put(&to, &kind, &bytes);
                drop(lane);
                (put, bytes)
            });
            let said = match put.await {
                Ok((Ok(Put::Ours), bytes)) => break (entry, bytes),
                Ok((Ok(Put::Never(why)), _)) if completed => {
                    self.meters.failures.inc();
                    self.instead(number, &why).await;
                    continue;
                }
                Ok((Ok(Put::Never(why)), _)) if !renamed => {
                    tracing::warn!(
                        inference_id = entry.inference_id,
                        error = why,
                        "a failure is published under another name"
                    );
                    self.rename(number).await;
                    renamed = true;
                    continue;
                }
                Ok((Ok(Put::Never(why)), bytes)) => {
                    // There is no third place. Who asks is told; the stranger's object stays.
                    tracing::error!(
                        inference_id = entry.inference_id,
                        error = why,
                        "a failure cannot be published"
                    );
                    break (entry, bytes);
                }
                Ok((Err(error), _)) => error.to_string(),
                Err(error) => format!("a thread failed: {error}"),
            };
            self.meters.upload_failures.inc();
            let pause = self.line().put_off(number, Instant::now());
            self.wake.notify_one();
            tracing::warn!(
                inference_id = entry.inference_id,
                error = said,
                again_s = pause.as_secs(),
                "what a request came to cannot be published yet"
            );
            return;
        };
        let _ = failpoint::hit("async_published");
        self.end(number, entry, bytes).await;
    }

    /// A failure's name is a stranger's: it gets another one, which nobody can have foreseen.
    async fn rename(&self, number: u64) {
        let name = format!("{}{}", Uuid::new_v4(), names::FAILURE);
        self.persist(true, move |tables| {
            let Some(entry) = tables.entry(number)? else { return Ok(()) };
            let failure = Target { name: name.clone(), ..entry.failure.clone() };
            tables.rename_failure(number, entry, failure)
        })
        .await;
    }

    /// A result's name is a stranger's: the request failed.
    async fn instead(&self, number: u64, why: &str) {
        let problem = Problem::new(StatusCode::CONFLICT, "name_taken", why);
        self.persist(true, move |tables| {
            let Some(mut entry) = tables.entry(number)? else { return Ok(()) };
            fail(tables, number, &mut entry, &problem)
        })
        .await;
    }

    /// A request is through: it owes notifications, and nothing else.
    async fn end(&self, number: u64, entry: Entry, bytes: Vec<u8>) {
        let State::Decided(decision) = entry.state.clone() else { return };
        let ended = Entry { ended: Some(now()), state: State::Ended(decision), ..entry };
        let notices = message::notices(&self.config, self.endpoint.name(), &ended, &bytes);
        let (kept, owed) = (ended.clone(), notices.clone());
        let numbers = self.persist(true, move |tables| {
            match tables.entry(number)?.map(|entry| entry.state) {
                Some(State::Decided(_)) => tables.end(number, &kept, &owed),
                // We were, in a commit that failed and is on disk all the same; or somebody else.
                _ => tables.numbers(&owed),
            }
        });
        let numbers = numbers.await;
        let _ = failpoint::hit("async_ended");
        for (number, notice) in numbers.into_iter().zip(&notices) {
            self.notifier.owe(number, &notice.url);
        }
        self.line().forget(number);
        self.meters.processed.inc();
        let whole = ended.ended.unwrap_or_default().saturating_sub(ended.received);
        self.meters.processing_time.observe(whole as f64 / 1e3);
        tracing::info!(
            door = "async",
            inference_id = ended.inference_id,
            status = ended.status(),
            attempts = ended.attempts,
            whole_ms = whole,
            "invocation"
        );
    }

    /// Fails what has waited for too long, and forgets what is old.
    async fn sweep(self: Arc<Worker>) {
        let mut seconds = 0_u64;
        loop {
            let late = self.line().expired();
            for some in late.chunks(FORGOTTEN) {
                self.expire(some.to_vec()).await;
            }
            if seconds.is_multiple_of(60) {
                let before = now().saturating_sub(self.config.retention.as_millis() as u64);
                while self.persist(true, move |tables| tables.forget(before, FORGOTTEN)).await
                    == FORGOTTEN
                {}
            }
            seconds += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn expire(&self, late: Vec<u64>) {
        let expired = self.persist(true, move |tables| {
            let mut expired = BTreeSet::new();
            for &number in &late {
                let Some(mut entry) = tables.entry(number)? else { continue };
                let late = entry.expires().is_some_and(|expires| expires <= now());
                // By a commit that failed, and is on disk all the same.
                let is_expired = |decision: &Decision| {
                    matches!(decision, Decision::Failed { code, .. } if code == EXPIRED)
                };
                if matches!(&entry.state, State::Decided(decision) if is_expired(decision)) {
                    expired.insert(number);
                }
                if entry.state != State::Queued || !late {
                    continue;
                }
                let message = format!("it was not begun within {} s", entry.asked.ttl);
                let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, EXPIRED, message);
                fail(tables, number, &mut entry, &problem)?;
                expired.insert(number);
            }
            Ok(expired)
        });
        let expired = expired.await;
        if !expired.is_empty() {
            self.meters.expired.inc_by(expired.len() as u64);
            let mut line = self.line();
            line.ready.retain(|(_, number)| !expired.contains(number));
            line.delayed.retain(|(_, number)| !expired.contains(number));
            line.alone.retain(|number| !expired.contains(number));
            line.decided.extend(expired);
            drop(line);
            self.wake.notify_one();
        }
    }

    /// Makes a change, or looks something up, however long the disk takes to be there again. A change
    /// may be made twice, for a commit that fails may be on disk.
    async fn persist<T: Send + 'static>(
        &self,
        writes: bool,
        change: impl Fn(&mut Tables<'_>) -> Result<T, Broken> + Clone + Send + 'static,
    ) -> T {
        loop {
            let change = change.clone();
            let done = match writes {
                true => self.queue.change(change).await,
                false => self.queue.look(change).await,
            };
            match done {
                Ok(value) => return value,
                // The queue's thread has said what it is.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the slots go, and counts.
struct InProgress {
    worker: Arc<Worker>,
    /// It is one of those that could not be published before.
    again: bool,
    _slot: OwnedSemaphorePermit,
    _all: Option<OwnedSemaphorePermit>,
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.worker.meters.in_progress.dec();
        if self.again {
            self.worker.line().trying -= 1;
            self.worker.wake.notify_one();
        }
    }
}

impl Line {
    /// Takes a request in, as far as it is.
    fn add(&mut self, number: u64, entry: &Entry) {
        self.open.insert(number, entry.received);
        match &entry.state {
            State::Queued | State::InProgress => {
                self.ready.insert((entry.received, number));
                self.look_out(number, entry);
            }
            State::Decided(_) => {
                self.alone.remove(&number);
                self.decided.insert(number);
            }
            State::Ended(_) => self.forget(number),
        }
    }

    /// Takes a request in that is not begun again before a time.
    fn delay(&mut self, number: u64, entry: &Entry, until: Instant) {
        self.open.insert(number, entry.received);
        self.delayed.insert((until, number));
        self.look_out(number, entry);
    }

    fn look_out(&mut self, number: u64, entry: &Entry) {
        if entry.deaths + 1 >= DEATHS {
            self.alone.insert(number);
        }
        if entry.begun.is_none() {
            self.expiring.insert((expires_at(entry), number));
        }
    }

    /// A request could not be published; says for how long it waits now.
    fn put_off(&mut self, number: u64, now: Instant) -> Duration {
        let tries = self.tries.entry(number).or_default();
        let pause = PAUSE.saturating_mul(1 << (*tries).min(16)).min(LONGEST);
        *tries += 1;
        self.unpublished.insert((now + pause, number));
        pause
    }

    fn forget(&mut self, number: u64) {
        self.open.remove(&number);
        self.alone.remove(&number);
        self.decided.remove(&number);
        self.tries.remove(&number);
    }

    /// What is next, where so much is done at once.
    fn next(&mut self, concurrency: usize) -> Next {
        // What is decided takes no time of the model.
        if let Some(number) = self.decided.pop_first() {
            return Next::Publish(number);
        }
        let now = Instant::now();
        while let Some(&(due, number)) = self.delayed.first()
            && due <= now
        {
            self.delayed.pop_first();
            // Those that came later have not waited for as long.
            let received = self.open.get(&number).copied().unwrap_or_default();
            self.ready.insert((received, number));
        }
        let wanted = !self.ready.is_empty() && self.unpublished.len() < UNPUBLISHED;
        let held = self.not_before.filter(|&time| time > now);
        let can_begin = wanted && held.is_none();
        let again = self.unpublished.first().map(|&(due, _)| due);
        // A place that does not answer leaves slots to others, one after the other if there is but
        // one.
        let again = again.filter(|_| self.trying < concurrency.div_ceil(2));
        if again.is_some_and(|due| due <= now)
            && !(can_begin && self.tried)
            && let Some((_, number)) = self.unpublished.pop_first()
        {
            self.trying += 1;
            self.tried = true;
            return Next::PublishAgain(number);
        }
        self.tried = false;
        if can_begin && let Some((_, number)) = self.ready.pop_first() {
            return Next::Begin { number, alone: self.alone.remove(&number) };
        }
        let delayed = self.delayed.first().map(|&(due, _)| due);
        let times = [delayed, again, held.filter(|_| wanted)];
        let first = times.into_iter().flatten().min();
        let time = first.map_or(Duration::from_secs(60), |due| due.saturating_duration_since(now));
        Next::Wait(time)
    }

    /// Takes out those that have expired.
    fn expired(&mut self) -> Vec<u64> {
        let later = self.expiring.split_off(&(now() + 1, 0));
        std::mem::replace(&mut self.expiring, later).into_iter().map(|(_, number)| number).collect()
    }
}

fn expires_at(entry: &Entry) -> u64 {
    entry.received.saturating_add(entry.asked.ttl.saturating_mul(1000))
}

/// Decides that a request failed.
fn fail(
    tables: &mut Tables<'_>,
    number: u64,
    entry: &mut Entry,
    problem: &Problem,
) -> Result<(), Broken> {
    entry.state = State::Decided(message::failed(problem));
    tables.decide(number, entry, &message::failure(entry, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::asynchronous::entry::Asked;

    fn entry(received: u64) -> Entry {
        let target = Target { place: "/out".into(), name: "a".into() };
        Entry {
            inference_id: "a".into(),
            asked: Asked { ttl: 60, ..Asked::default() },
            digest: String::new(),
            output: target.clone(),
            failure: target,
            received,
            begun: None,
            ended: None,
            attempts: 0,
            faults: 0,
            deaths: 0,
            state: State::Queued,
        }
    }

    #[test]
    fn what_is_begun_again_goes_before_what_came_later() {
        let begin = |number| Next::Begin { number, alone: false };
        let mut line = Line::default();
        line.add(1, &entry(10));
        assert_eq!(line.next(2), begin(1));
        line.delay(1, &entry(10), Instant::now() + Duration::from_secs(3600));
        line.add(2, &entry(20));
        assert_eq!(line.next(2), begin(2));
        // Not before its time.
        let Next::Wait(time) = line.next(2) else { panic!("it was begun") };
        assert!(time > Duration::from_secs(3000), "{time:?}");
        line.delayed.clear();
        line.delay(1, &entry(10), Instant::now());
        line.add(3, &entry(30));
        assert_eq!((line.next(2), line.next(2)), (begin(1), begin(3)));
        line.add(4, &entry(40));
        line.not_before = Some(Instant::now() + Duration::from_secs(5));
        assert!(matches!(line.next(2), Next::Wait(time) if time < Duration::from_secs(6)));
    }

    #[test]
    fn what_cannot_be_published_takes_turns_with_others() {
        let mut line = Line::default();
        for number in 1..=3 {
            line.add(number, &entry(number));
        }
        // As if it had failed long ago.
        let long_ago = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        assert_eq!(line.put_off(8, long_ago), PAUSE);
        assert_eq!(line.put_off(9, long_ago), PAUSE);
        assert_eq!(line.next(1), Next::PublishAgain(8));
        assert_eq!(line.next(1), Next::Begin { number: 1, alone: false });
        // The other one is still being tried.
        assert_eq!(line.next(1), Next::Begin { number: 2, alone: false });
        line.trying = 0;
        assert_eq!(line.put_off(8, Instant::now()), PAUSE * 2);
        assert_eq!(line.next(1), Next::PublishAgain(9));
        for number in 100..100 + UNPUBLISHED as u64 {
            line.put_off(number, Instant::now());
        }
        assert!(matches!(line.next(1), Next::Wait(_)), "the disk would fill");
        assert!((0..20).all(|_| line.put_off(9, Instant::now()) <= LONGEST));
    }
}
