//! The queue on disk: who was accepted, how far each is, what is owed to whom.
//!
//! One thread owns the file. Whoever wants something sends it a change; it makes all changes that
//! have come together in one transaction, and answers when they are on disk. So a change that was
//! answered survives a power cut, and many requests at once cost one write to the disk.

use std::any::Any;
use std::path::Path;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use redb::{
    Database, DatabaseError, ReadableTable as _, ReadableTableMetadata as _, Table,
    TableDefinition, WriteTransaction,
};
use tokio::sync::oneshot;

use super::entry::{Entry, Notice, Target};
use crate::job::JobError;

/// Changes that are made in one transaction, at most.
const TOGETHER: usize = 256;

/// Pages that are kept in memory.
const CACHE: usize = 32 << 20;

/// After the disk has failed, the file is opened again this much later.
const AGAIN: Duration = Duration::from_secs(1);

const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
const OPEN: TableDefinition<'static, u64, ()> = TableDefinition::new("open");
const IDS: TableDefinition<'static, &str, u64> = TableDefinition::new("ids");
const NAMES: TableDefinition<'static, &str, u64> = TableDefinition::new("names");
const BODIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("bodies");
const OUTCOMES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("outcomes");
const ENDED: TableDefinition<'static, (u64, u64), ()> = TableDefinition::new("ended");
/// The numbers that are next, of requests and of notifications: each is given once.
const NEXT: TableDefinition<'static, &str, u64> = TableDefinition::new("next");
/// Among them: 1 once the server was told to stop.
const STOPPING: &str = "stopping";
const OUTBOX: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("outbox");

/// Why a change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The file cannot be read or written.
    #[error("the queue cannot be read or written: {0} (is its disk full?)")]
    Disk(String),
    /// What is in it cannot be understood: nobody else's fault, and not the disk's.
    #[error("the queue has {0}")]
    Entry(String),
    /// The queue is closed.
    #[error("the queue is closed: the server is going away")]
    Closed,
}

impl<E: Into<redb::Error>> From<E> for Broken {
    fn from(error: E) -> Broken {
        Broken::Disk(error.into().to_string())
    }
}

/// All tables, in a transaction.
pub(super) struct Tables<'t> {
    /// Requests.
    entries: Table<'t, u64, &'static [u8]>,
    /// Those that have not ended.
    open: Table<'t, u64, ()>,
    /// By what their clients call them.
    ids: Table<'t, &'static str, u64>,
    /// By the locations of their objects.
    names: Table<'t, &'static str, u64>,
    /// What was sent with them.
    bodies: Table<'t, u64, &'static [u8]>,
    /// What they came to.
    outcomes: Table<'t, u64, &'static [u8]>,
    /// Those that have ended, by when.
    ended: Table<'t, (u64, u64), ()>,
    /// Notifications that are owed.
    outbox: Table<'t, u64, &'static [u8]>,
    /// Numbers.
    next: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, Broken> {
        Ok(Tables {
            entries: transaction.open_table(ENTRIES)?,
            open: transaction.open_table(OPEN)?,
            ids: transaction.open_table(IDS)?,
            names: transaction.open_table(NAMES)?,
            bodies: transaction.open_table(BODIES)?,
            outcomes: transaction.open_table(OUTCOMES)?,
            ended: transaction.open_table(ENDED)?,
            outbox: transaction.open_table(OUTBOX)?,
            next: transaction.open_table(NEXT)?,
        })
    }

    /// The request of this number.
    pub(super) fn entry(&self, number: u64) -> Result<Option<Entry>, Broken> {
        self.entries.get(number)?.map(|text| read(text.value())).transpose()
    }

    /// Keeps what a request is now.
    pub(super) fn keep(&mut self, number: u64, entry: &Entry) -> Result<(), Broken> {
        self.entries.insert(number, written(entry)?.as_slice())?;
        Ok(())
    }

    /// The number of the request that its client calls so.
    pub(super) fn named(&self, inference_id: &str) -> Result<Option<u64>, Broken> {
        Ok(self.ids.get(inference_id)?.map(|number| number.value()))
    }

    /// Whether an object of this location is promised to somebody.
    pub(super) fn is_promised(&self, location: &str) -> Result<bool, Broken> {
        Ok(self.names.get(location)?.is_some())
    }

    /// Requests that have not ended.
    pub(super) fn backlog(&self) -> Result<u64, Broken> {
        Ok(self.open.len()?)
    }

    /// Takes a request in, and gives it a number.
    pub(super) fn accept(&mut self, entry: &Entry, body: Option<&[u8]>) -> Result<u64, Broken> {
        let number = self.number("request")?;
        self.keep(number, entry)?;
        self.open.insert(number, ())?;
        self.ids.insert(entry.inference_id.as_str(), number)?;
        for target in [&entry.output, &entry.failure] {
            self.names.insert(target.location().as_str(), number)?;
        }
        if let Some(body) = body {
            self.bodies.insert(number, body)?;
        }
        Ok(number)
    }

    fn number(&mut self, of: &str) -> Result<u64, Broken> {
        let number = self.next.get(of)?.map_or(1, |next| next.value());
        self.next.insert(of, number + 1)?;
        Ok(number)
    }

    /// What was sent with a request.
    pub(super) fn body(&self, number: u64) -> Result<Option<Vec<u8>>, Broken> {
        Ok(self.bodies.get(number)?.map(|bytes| bytes.value().to_vec()))
    }

    /// What a request came to.
    pub(super) fn outcome(&self, number: u64) -> Result<Option<Vec<u8>>, Broken> {
        Ok(self.outcomes.get(number)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Keeps what a request came to.
    pub(super) fn decide(
        &mut self,
        number: u64,
        entry: &Entry,
        bytes: &[u8],
    ) -> Result<(), Broken> {
        self.keep(number, entry)?;
        self.bodies.remove(number)?;
        self.outcomes.insert(number, bytes)?;
        Ok(())
    }

    /// A request is through.
    pub(super) fn end(
        &mut self,
        number: u64,
        entry: &Entry,
        notices: &[Notice],
    ) -> Result<Vec<u64>, Broken> {
        self.keep(number, entry)?;
        self.open.remove(number)?;
        self.outcomes.remove(number)?;
        self.ended.insert((entry.ended.unwrap_or_default(), number), ())?;
        let mut numbers = Vec::new();
        for notice in notices {
            let next = self.number("notice")?;
            self.outbox.insert(next, written(notice)?.as_slice())?;
            numbers.push(next);
        }
        Ok(numbers)
    }

    /// Gives a failure another name.
    pub(super) fn rename_failure(
        &mut self,
        number: u64,
        entry: Entry,
        failure: Target,
    ) -> Result<(), Broken> {
        self.names.remove(entry.failure.location().as_str())?;
        self.names.insert(failure.location().as_str(), number)?;
        self.keep(number, &Entry { failure, ..entry })
    }

    /// Says that the server was told to stop, or that it goes on.
    pub(super) fn stopping(&mut self, is: bool) -> Result<(), Broken> {
        self.next.insert(STOPPING, u64::from(is))?;
        Ok(())
    }

    /// Whether the server had been told to stop when it ended.
    pub(super) fn is_stopping(&self) -> Result<bool, Broken> {
        Ok(self.next.get(STOPPING)?.is_some_and(|is| is.value() == 1))
    }

    /// The requests that have not ended, in order.
    pub(super) fn unfinished(&self) -> Result<Vec<(u64, Entry)>, Broken> {
        let mut all = Vec::new();
        for one in self.open.iter()? {
            let number = one?.0.value();
            let entry = self.entry(number)?;
            all.extend(entry.map(|entry| (number, entry)));
        }
        Ok(all)
    }

    /// Forgets requests that ended before a time, at most so many; says how many.
    pub(super) fn forget(&mut self, before: u64, most: usize) -> Result<usize, Broken> {
        let mut old = Vec::new();
        for one in self.ended.range(..(before, 0))?.take(most) {
            old.push(one?.0.value());
        }
        for &(when, number) in &old {
            self.ended.remove((when, number))?;
            if let Some(entry) = self.entry(number)? {
                self.ids.remove(entry.inference_id.as_str())?;
                for target in [&entry.output, &entry.failure] {
                    self.names.remove(target.location().as_str())?;
                }
            }
            self.entries.remove(number)?;
        }
        Ok(old.len())
    }

    /// Notifications that are owed, and where to.
    pub(super) fn owed(&self) -> Result<Vec<(u64, String)>, Broken> {
        let mut all = Vec::new();
        for one in self.outbox.iter()? {
            let (number, text) = one?;
            all.push((number.value(), read::<Notice>(text.value())?.url));
        }
        Ok(all)
    }

    /// The numbers of those among these notifications that are owed, in their order.
    pub(super) fn numbers(&self, notices: &[Notice]) -> Result<Vec<u64>, Broken> {
        let mut found = vec![None; notices.len()];
        for one in self.outbox.iter()? {
            let (number, text) = one?;
            let owed: Notice = read(text.value())?;
            if let Some(place) = notices.iter().position(|notice| notice.id == owed.id) {
                found[place] = Some(number.value());
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The notification of this number, if it is owed.
    pub(super) fn notice(&self, number: u64) -> Result<Option<Notice>, Broken> {
        self.outbox.get(number)?.map(|text| read(text.value())).transpose()
    }

    /// A notification is no longer owed.
    pub(super) fn delivered(&mut self, number: u64) -> Result<(), Broken> {
        self.outbox.remove(number)?;
        Ok(())
    }
}

fn written<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Broken> {
    serde_json::to_vec(value).map_err(|error| Broken::Entry(format!("an entry: {error}")))
}

fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Broken> {
    serde_json::from_slice(text)
        .map_err(|error| Broken::Entry(format!("an entry of another version: {error}")))
}

type Value = Box<dyn Any + Send>;
type Change = Box<dyn FnOnce(&mut Tables<'_>) -> Result<Value, Broken> + Send>;

struct Job {
    change: Change,
    /// Whether there is anything to put on disk.
    writes: bool,
    answer: oneshot::Sender<Result<Value, Broken>>,
}

/// A queue on disk.
pub(super) struct Queue {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    /// Opens the queue in a folder, which is made if need be.
    ///
    /// # Errors
    /// [`JobError::Usage`] when another server has it, or it cannot be opened.
    pub(super) fn open(folder: &Path) -> Result<Queue, JobError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let wrong =
            |what: String| JobError::Usage(format!("--state is `{}`: {what}", folder.display()));
        // What clients have sent is nobody else's.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| wrong(format!("it cannot be made: {error}")))?;
        let path = folder.join("queue.redb");
        let database = open(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => wrong(
                "another server works on its queue (one server has a state folder; give this one \
                 another with --state)"
                    .to_owned(),
            ),
            error => wrong(format!("its queue cannot be opened: {error}")),
        })?;
        let (sender, receiver) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("queue".to_owned())
            .spawn(move || work(database, &path, &receiver))
            .map_err(|error| wrong(format!("the queue's thread cannot be started: {error}")))?;
        Ok(Queue { jobs: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Makes a change; it is on disk when this returns.
    ///
    /// # Errors
    /// When it is not, and the queue is as it was.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T, Broken> + Send + 'static,
    ) -> Result<T, Broken> {
        self.send(true, change).await
    }

    /// Looks something up.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Tables<'_>) -> Result<T, Broken> + Send + 'static,
    ) -> Result<T, Broken> {
        self.send(false, look).await
    }

    async fn send<T: Send + 'static>(
        &self,
        writes: bool,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T, Broken> + Send + 'static,
    ) -> Result<T, Broken> {
        let closed = || Broken::Closed;
        let (answer, answered) = oneshot::channel();
        let change: Change = Box::new(move |tables| Ok(Box::new(change(tables)?) as Value));
        let job = Job { change, writes, answer };
        let sender = self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        sender.ok_or_else(closed)?.send(job).map_err(|_| closed())?;
        let value = answered.await.map_err(|_| closed())??;
        let value = value.downcast::<T>();
        Ok(*value.expect("a change gave what it does not give. This is a bug."))
    }

    /// Changes that nobody has looked at yet.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.jobs.lock().unwrap().as_ref().map_or(0, Sender::len)
    }

    /// Ends the thread when all that was sent is done; waits for that.
    pub(super) fn close(&self) {
        let unpoisoned = std::sync::PoisonError::into_inner;
        drop(self.jobs.lock().unwrap_or_else(unpoisoned).take());
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn open(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

/// The thread that owns the file.
fn work(database: Database, path: &Path, jobs: &Receiver<Job>) {
    let mut database = Some(database);
    while let Ok(first) = jobs.recv() {
        let mut some = vec![first];
        some.extend(jobs.try_iter().take(TOGETHER - 1));
        // After a fault of the disk nothing more can be done with what was open.
        if database.is_none() {
            match open(path) {
                Ok(opened) => database = Some(opened),
                Err(error) => {
                    std::thread::sleep(AGAIN);
                    let broken = Broken::Disk(error.to_string());
                    some.into_iter().for_each(|job| drop(job.answer.send(Err(broken.clone()))));
                    continue;
                }
            }
        }
        let Some(open) = &database else { continue };
        let (answers, changes): (Vec<_>, Vec<_>) =
            some.into_iter().map(|job| (job.answer, (job.change, job.writes))).unzip();
        match transact(open, changes) {
            Ok(values) => {
                for (answer, value) in answers.into_iter().zip(values) {
                    let _ = answer.send(value);
                }
            }
            Err(broken) => {
                tracing::error!(error = %broken, "the queue of asynchronous requests");
                if !matches!(broken, Broken::Entry(_)) {
                    database = None;
                }
                answers.into_iter().for_each(|answer| drop(answer.send(Err(broken.clone()))));
            }
        }
    }
}

/// Makes all these changes, or none of them. Who only looks, and cannot read an entry, has changed
/// nothing, and fails alone.
fn transact(
    database: &Database,
    changes: Vec<(Change, bool)>,
) -> Result<Vec<Result<Value, Broken>>, Broken> {
    let mut transaction = database.begin_write()?;
    // After a kill the file would else be read whole before anybody is let in.
    transaction.set_quick_repair(true);
    let mut values = Vec::with_capacity(changes.len());
    let mut writes = false;
    let mut tables = Tables::open(&transaction)?;
    for (change, does) in changes {
        values.push(match change(&mut tables) {
            Err(broken @ Broken::Entry(_)) if !does => Err(broken),
            done => Ok(done?),
        });
        writes |= does;
    }
    drop(tables);
    match writes {
        true => transaction.commit()?,
        false => transaction.abort()?,
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::asynchronous::entry::{Asked, Decision, State};

    fn entry(id: &str) -> Entry {
        let target = |name: &str| Target { place: "/out".into(), name: format!("{id}{name}") };
        Entry {
            inference_id: id.to_owned(),
            asked: Asked::default(),
            digest: String::new(),
            output: target(".out"),
            failure: target("-error.out"),
            received: 1,
            begun: None,
            ended: None,
            attempts: 0,
            faults: 0,
            deaths: 0,
            state: State::Queued,
        }
    }

    fn notice_of(url: &str) -> Notice {
        Notice {
            id: "other".into(),
            url: url.into(),
            message: String::new(),
            subject: String::new(),
            since: 5,
        }
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn what_was_answered_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        let accept = |queue: &Queue, id: &'static str| {
            wait(queue.change(move |tables| tables.accept(&entry(id), Some(b"body")))).unwrap()
        };
        let (one, two) = (accept(&queue, "one"), accept(&queue, "two"));
        assert!(one < two);
        wait(queue.change(move |tables| {
            let decision = Decision::Completed { content_type: "a/b".into() };
            let decided = Entry { state: State::Decided(decision), ..entry("one") };
            tables.decide(one, &decided, b"result")
        }))
        .unwrap();
        // Nobody else may have it meanwhile.
        let said = Queue::open(dir.path()).err().unwrap().to_string();
        assert!(said.contains("another server"), "{said}");
        queue.close();
        assert!(wait(queue.look(|tables| tables.backlog())).is_err());

        let queue = Queue::open(dir.path()).unwrap();
        let (backlog, outcome, body, named, promised) = wait(queue.look(move |tables| {
            Ok((
                tables.backlog()?,
                tables.outcome(one)?,
                (tables.body(one)?, tables.body(two)?),
                tables.named("two")?,
                (tables.is_promised("/out/one.out")?, tables.is_promised("/out/three.out")?),
            ))
        }))
        .unwrap();
        assert_eq!((backlog, outcome.as_deref()), (2, Some(b"result".as_slice())));
        assert_eq!((body, named), ((None, Some(b"body".to_vec())), Some(two)));
        assert_eq!(promised, (true, false));
    }

    #[test]
    fn a_change_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        let failed: Result<u64, Broken> = wait(queue.change(|tables| {
            tables.accept(&entry("one"), None)?;
            Err(Broken::Disk("no".into()))
        }));
        assert!(failed.is_err());
        let there = wait(queue.look(|tables| tables.named("one"))).unwrap();
        assert_eq!(there, None);
    }

    #[test]
    fn who_looks_at_what_cannot_be_read_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        let number = wait(queue.change(|tables| {
            let number = tables.accept(&entry("one"), None)?;
            tables.entries.insert(number, b"no entry".as_slice())?;
            Ok(number)
        }))
        .unwrap();
        // Both come together, in one transaction.
        let (looked, accepted) = wait(async {
            let hold = queue.look(|_| {
                std::thread::sleep(Duration::from_millis(50));
                Ok(())
            });
            let look = queue.look(move |tables| tables.entry(number));
            let accept = queue.change(|tables| tables.accept(&entry("two"), None));
            let (_, looked, accepted) = tokio::join!(hold, look, accept);
            (looked, accepted)
        });
        assert!(matches!(looked, Err(Broken::Entry(_))), "{looked:?}");
        assert!(accepted.unwrap() > number);
    }

    #[test]
    fn numbers_are_given_once_and_old_names_become_free() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        let notice = Notice { id: "n".into(), ..notice_of("http://a") };
        let (number, owed) = wait(queue.change(move |tables| {
            let number = tables.accept(&entry("one"), None)?;
            let ended = Entry { ended: Some(10), ..entry("one") };
            Ok((number, tables.end(number, &ended, &[notice])?))
        }))
        .unwrap();
        let (early, late, promised, backlog) = wait(queue.change(|tables| {
            let early = tables.forget(10, 100)?;
            let late = tables.forget(11, 100)?;
            Ok((early, late, tables.is_promised("/out/one.out")?, tables.backlog()?))
        }))
        .unwrap();
        assert_eq!((early, late, promised, backlog), (0, 1, false, 0));
        let next = wait(queue.change(|tables| tables.accept(&entry("one"), None))).unwrap();
        assert!(next > number);
        let same = Notice { id: "n".into(), ..notice_of("http://a") };
        let known = wait(queue.look(move |tables| {
            Ok((tables.numbers(&[same])?, tables.numbers(&[notice_of("http://a")])?))
        }));
        assert_eq!(known.unwrap(), (owed.clone(), Vec::new()));
        let left = wait(queue.look(|tables| tables.owed())).unwrap();
        assert_eq!(left.iter().map(|(number, _)| *number).collect::<Vec<_>>(), owed);
        wait(queue.change(move |tables| tables.delivered(owed[0]))).unwrap();
        assert!(wait(queue.look(|tables| tables.owed())).unwrap().is_empty());
    }
}
