//! Delivering notifications, at least once: each is tried until its receiver has taken it, or it is
//! too old for anybody to want it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::entry::{Notice, now};
use super::queue::Queue;
use super::receiver::{Receiver, Senders};
use crate::failpoint;

/// Deliveries to one receiver at once.
const AT_ONCE: usize = 4;
/// The pause after a failed try doubles from here …
const FIRST: Duration = Duration::from_secs(1);
/// … up to there.
const LONGEST: Duration = Duration::from_secs(300);

/// Delivers what is owed.
pub(super) struct Notifier {
    queue: Arc<Queue>,
    senders: Arc<Senders>,
    failures: IntCounter,
    retention: Duration,
    /// For each receiver a task of its own, so that one that does not answer delays no other.
    lines: Mutex<HashMap<String, UnboundedSender<u64>>>,
    tasks: Mutex<JoinSet<()>>,
    /// How many are owed.
    owed: AtomicUsize,
}

/// What became of a try.
enum Tried {
    Settled,
    /// Tried so often; again after a pause.
    Again(u64, u32),
}

impl Notifier {
    pub(super) fn new(
        queue: Arc<Queue>,
        senders: Senders,
        failures: IntCounter,
        retention: Duration,
    ) -> Arc<Notifier> {
        Arc::new(Notifier {
            queue,
            senders: Arc::new(senders),
            failures,
            retention,
            lines: Mutex::default(),
            tasks: Mutex::default(),
            owed: AtomicUsize::new(0),
        })
    }

    /// A notification of this number, to this receiver, is in the outbox.
    pub(super) fn owe(self: &Arc<Notifier>, number: u64, url: &str) {
        self.owed.fetch_add(1, Ordering::Relaxed);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry(url.to_owned()).or_insert_with(|| {
            let (sender, owed) = unbounded_channel();
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.spawn(self.clone().deliver(owed));
            sender
        });
        // The task ends with the server only, and what is owed is on disk.
        let _ = line.send(number);
    }

    /// Whether nothing is owed.
    pub(super) fn is_idle(&self) -> bool {
        self.owed.load(Ordering::Relaxed) == 0
    }

    /// Stops delivering; what is owed stays owed.
    pub(super) async fn stop(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Delivers to one receiver.
    async fn deliver(self: Arc<Notifier>, mut owed: UnboundedReceiver<u64>) {
        let mut waiting: BTreeSet<(Instant, u64, u32)> = BTreeSet::new();
        let mut under_way = JoinSet::new();
        let mut tried_by: HashMap<Id, (u64, u32)> = HashMap::new();
        loop {
            while under_way.len() < AT_ONCE
                && let Some(&first) = waiting.first()
                && first.0 <= Instant::now()
            {
                waiting.remove(&first);
                let (_, number, tries) = first;
                let task = under_way.spawn(self.clone().attempt(number, tries));
                tried_by.insert(task.id(), (number, tries));
            }
            let due = match under_way.len() < AT_ONCE {
                true => waiting.first().map(|first| first.0),
                false => None,
            };
            let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                number = owed.recv() => match number {
                    Some(number) => { waiting.insert((Instant::now(), number, 0)); }
                    None => return,
                },
                Some(tried) = under_way.join_next_with_id() => {
                    let (id, tried) = match tried {
                        Ok((id, tried)) => (id, Some(tried)),
                        Err(error) => {
                            tracing::error!(%error, "a notification");
                            (error.id(), None)
                        }
                    };
                    let known = tried_by.remove(&id);
                    let again = match tried {
                        Some(Tried::Settled) => None,
                        Some(Tried::Again(number, tries)) => Some((number, tries)),
                        // Whatever became of the task, it is owed.
                        None => known.map(|(number, tries)| (number, tries + 1)),
                    };
                    if again.is_none() {
                        self.owed.fetch_sub(1, Ordering::Relaxed);
                    }
                    if let Some((number, tries)) = again {
                        let pause = FIRST.saturating_mul(1 << tries.min(16)).min(LONGEST);
                        waiting.insert((Instant::now() + pause, number, tries));
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Tries one notification.
    async fn attempt(self: Arc<Notifier>, number: u64, tries: u32) -> Tried {
        let again = Tried::Again(number, tries + 1);
        let notice = match self.queue.look(move |tables| tables.notice(number)).await {
            Err(_) => return again,
            Ok(None) => return Tried::Settled,
            Ok(Some(notice)) => notice,
        };
        let said = self.send(&notice).await;
        let _ = failpoint::hit("async_notified");
        if let Err(error) = said {
            self.failures.inc();
            let age = Duration::from_millis(now().saturating_sub(notice.since));
            let given_up = age > self.retention;
            tracing::warn!(
                receiver = %Receiver::shown(&notice.url),
                id = notice.id,
                error,
                given_up,
                "a notification was not taken"
            );
            if !given_up {
                return again;
            }
        }
        match self.queue.change(move |tables| tables.delivered(number)).await {
            Ok(()) => Tried::Settled,
            Err(_) => again,
        }
    }

    async fn send(&self, notice: &Notice) -> Result<(), String> {
        let receiver = Receiver::parse(&notice.url)?;
        self.senders.send(&receiver, notice).await
    }
}
