//! One writer at a time, or the shards of one run: open-file-description locks, held for the run.
//!
//! The kernel drops them when the process ends, however it ends, so there is nothing stale to break.
//! NFS carries them between hosts. Unlike the classic POSIX lock they belong to the open file, so
//! two jobs within one process (a test, a server) exclude each other too.
//!
//! All of it is one file, whose bytes are locked though they need not be there: a whole run holds
//! every byte; shard i of N holds the byte that stands for i and N; byte 0 is the door, held by a
//! shard for as long as it starts, so that it can look around before the next one comes in.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::store::StoreError;

/// How often a waiting run asks again.
const POLL: Duration = Duration::from_millis(200);

/// How often a shard asks again for the door, which is held for moments.
const KNOCK: Duration = Duration::from_millis(10);

/// So long may one hold the door; then the one behind it is stuck.
const DOOR_PATIENCE: Duration = Duration::from_secs(60);

const EVERYTHING: Range<i64> = 0..i64::MAX;
const DOOR: Range<i64> = 0..1;
const SHARDS: Range<i64> = 1..i64::MAX;

/// Bytes that stand for the shards of one count.
const STRIDE: i64 = 1 << 20;

/// The most shards that a lock can tell apart.
pub const MOST_SHARDS: u32 = 1_000_000;

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// Index and count, from 1; nothing for a whole run.
    shard: Option<(u32, u32)>,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it; the text names who.
    #[error("{0}")]
    Held(String),
    /// Somebody has taken it over; the text says who.
    #[error("{0}")]
    Lost(String),
    /// The file system does not lock.
    #[error(
        "the file system of `{path}` refuses locks: {source} (--no-lock runs without one; then see \
         to it yourself that nobody else writes there)"
    )]
    Refused {
        /// The lock file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store ignores the conditions that a lease is made of; the text says which store.
    #[error("{0}")]
    Unguarded(String),
    /// The lock file could not be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Lock {
    /// Takes the whole lock in the file `path`, whose folder must exist, waiting up to `patience`.
    ///
    /// # Errors
    /// [`LockError::Held`] when the patience ran out.
    pub fn acquire(path: &Path, patience: Duration) -> Result<Lock, LockError> {
        let mut lock = Lock::open(path, None)?;
        lock.wait(patience, |lock| {
            Ok(if lock.set(libc::F_WRLCK, EVERYTHING)? { None } else { Some(lock.holder()) })
        })?;
        lock.sign()?;
        Ok(lock)
    }

    /// Takes the lock of one shard, `index` of `count`, and the door: until [`Lock::open_door`] no
    /// other shard gets in. It excludes a whole run, the same shard, and shards of another count.
    ///
    /// # Errors
    /// [`LockError::Held`] when the patience ran out.
    pub fn acquire_shard(
        path: &Path,
        (index, count): (u32, u32),
        patience: Duration,
    ) -> Result<Lock, LockError> {
        debug_assert!(0 < index && index <= count && count <= MOST_SHARDS);
        let mut lock = Lock::open(path, Some((index, count)))?;
        lock.wait(patience, |lock| lock.try_shard(index, count))?;
        lock.sign()?;
        Ok(lock)
    }

    fn open(path: &Path, shard: Option<(u32, u32)>) -> Result<Lock, LockError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| StoreError::new("open the lock", path, error))?;
        Ok(Lock { file, path: path.to_owned(), shard })
    }

    /// Tries until nobody is in the way, or the patience has run out; `attempt` says who is.
    fn wait(
        &mut self,
        patience: Duration,
        mut attempt: impl FnMut(&mut Lock) -> Result<Option<String>, LockError>,
    ) -> Result<(), LockError> {
        let start = Instant::now();
        while let Some(holder) = attempt(self)? {
            if start.elapsed() >= patience {
                return Err(LockError::Held(holder));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Tries once; says who is in the way.
    fn try_shard(&mut self, index: u32, count: u32) -> Result<Option<String>, LockError> {
        let own = byte_of(index, count);
        let start = Instant::now();
        loop {
            // A whole run holds this byte too. Only then is the door worth waiting for.
            if self.is_held(&own)? {
                return Ok(Some(self.holder()));
            }
            if self.set(libc::F_WRLCK, DOOR)? {
                break;
            }
            if start.elapsed() >= DOOR_PATIENCE {
                return Ok(Some("a shard that does not get on with starting".to_owned()));
            }
            std::thread::sleep(KNOCK);
        }
        let bytes_of = |count: u32| i64::from(count) * STRIDE;
        let others = self.is_held(&(SHARDS.start..bytes_of(count)))?
            || self.is_held(&(bytes_of(count + 1)..SHARDS.end))?;
        if !others && self.set(libc::F_WRLCK, own)? {
            return Ok(None);
        }
        let holder = self.holder();
        self.set(libc::F_UNLCK, EVERYTHING)?;
        Ok(Some(holder))
    }

    /// Whether this is the only run here, and no other gets in before [`Lock::open_door`].
    ///
    /// # Errors
    /// When the file system fails to say so.
    pub fn is_alone(&self) -> Result<bool, LockError> {
        Ok(self.shard.is_none() || (self.set(libc::F_WRLCK, DOOR)? && !self.is_held(&SHARDS)?))
    }

    /// Ends a shard's hold and waits for the door: whether nobody is left here, and nobody gets in
    /// before [`Lock::open_door`]. Of several that end at once, the last one hears that. A whole run
    /// goes on holding what it holds.
    ///
    /// # Errors
    /// When the file system fails to say so.
    pub fn leave(&self) -> Result<bool, LockError> {
        let Some((index, count)) = self.shard else { return Ok(true) };
        self.set(libc::F_UNLCK, byte_of(index, count))?;
        let start = Instant::now();
        while !self.set(libc::F_WRLCK, DOOR)? {
            // Also for a whole run that has come in meanwhile.
            if self.is_held(&SHARDS)? || start.elapsed() >= DOOR_PATIENCE {
                return Ok(false);
            }
            std::thread::sleep(KNOCK);
        }
        Ok(!self.is_held(&SHARDS)?)
    }

    /// Lets other shards in. What a whole run holds is held until it ends.
    ///
    /// # Errors
    /// When the file system fails to unlock.
    pub fn open_door(&self) -> Result<(), LockError> {
        match self.shard {
            None => Ok(()),
            Some(_) => self.set(libc::F_UNLCK, DOOR).map(drop),
        }
    }

    /// Writes who we are into the file, for the messages of others only. In place: the lock is on
    /// this inode.
    fn sign(&mut self) -> Result<(), LockError> {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let mut text = format!("process {} on host {}\n", std::process::id(), host.display());
        if let Some((index, count)) = self.shard {
            text = format!("{}{text}", line_of(index, count));
        }
        let write = if self.is_alone()? {
            self.file.set_len(0).and_then(|()| self.file.rewind())
        } else {
            self.file.seek(SeekFrom::End(0)).map(drop)
        };
        match write.and_then(|()| self.file.write_all(text.as_bytes())) {
            // A full disk must be able to resume: the name in the lock is a courtesy.
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                Err(StoreError::new("write the lock", &self.path, error).into())
            }
            _ => Ok(()),
        }
    }

    /// Who holds what we asked for, as far as the file says: our own shard's other process, else
    /// any shard that is still there, else a whole run.
    fn holder(&mut self) -> String {
        let mut text = String::new();
        let read = self
            .file
            .rewind()
            .and_then(|()| Read::by_ref(&mut self.file).take(1 << 20).read_to_string(&mut text));
        let nobody = "somebody (the lock file does not say who)".to_owned();
        let (Ok(_), Some(first)) = (read, text.lines().find(|line| !line.trim().is_empty())) else {
            return nobody;
        };
        // The shards of earlier runs have left their lines, too.
        let live = |&(index, count, _): &(u32, u32, &str)| {
            self.is_held(&byte_of(index, count)).unwrap_or(false)
        };
        let shards: Vec<_> = text.lines().rev().filter_map(shard_of).filter(live).collect();
        let same = shards.iter().find(|(index, count, _)| Some((*index, *count)) == self.shard);
        match same.or(shards.last()) {
            Some((_, _, line)) => (*line).to_owned(),
            None if shard_of(first).is_some() => nobody,
            None => first.trim().to_owned(),
        }
    }

    /// Locks or unlocks bytes: `false` when somebody else holds one of them.
    fn set(&self, kind: libc::c_int, bytes: Range<i64>) -> Result<bool, LockError> {
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&request(kind, &bytes))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Whether somebody else holds one of these bytes.
    fn is_held(&self, bytes: &Range<i64>) -> Result<bool, LockError> {
        let mut found = request(libc::F_WRLCK, bytes);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(|e| self.refused(e))?;
        Ok(libc::c_int::from(found.l_type) != libc::F_UNLCK)
    }

    fn refused(&self, error: Errno) -> LockError {
        LockError::Refused { path: self.path.display().to_string(), source: error.into() }
    }
}

/// The byte that a shard holds.
fn byte_of(index: u32, count: u32) -> Range<i64> {
    let byte = i64::from(count) * STRIDE + i64::from(index);
    byte..byte + 1
}

/// What a shard's line in the file begins with.
fn line_of(index: u32, count: u32) -> String {
    format!("shard {index}/{count}, ")
}

/// The shard that a line of the file is about, and the line.
fn shard_of(line: &str) -> Option<(u32, u32, &str)> {
    let (shard, _) = line.strip_prefix("shard ")?.split_once(", ")?;
    let (index, count) = shard.split_once('/')?;
    let (index, count) = (index.parse().ok()?, count.parse().ok()?);
    (0 < index && index <= count && count <= MOST_SHARDS).then_some((index, count, line.trim()))
}

fn request(kind: libc::c_int, bytes: &Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: bytes.start as _,
        // 0 is "to the end, wherever that is".
        l_len: if bytes.end == i64::MAX { 0 } else { (bytes.end - bytes.start) as _ },
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        (dir, path)
    }

    fn shard(path: &Path, index: u32, count: u32) -> Result<Lock, LockError> {
        let lock = Lock::acquire_shard(path, (index, count), Duration::ZERO)?;
        lock.open_door()?;
        Ok(lock)
    }

    fn held(lock: Result<Lock, LockError>) -> String {
        match lock {
            Err(LockError::Held(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_second_holder_is_told_who_holds_it() {
        let (_dir, path) = place();
        let first = Lock::acquire(&path, Duration::ZERO).unwrap();
        let error = Lock::acquire(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::acquire(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn shards_of_one_count_exclude_all_but_each_other() {
        let (_dir, path) = place();
        let whole = Lock::acquire(&path, Duration::ZERO).unwrap();
        assert!(held(shard(&path, 1, 3)).starts_with("process "));
        drop(whole);
        let two = shard(&path, 2, 3).unwrap();
        let three = shard(&path, 3, 3).unwrap();
        assert!(held(shard(&path, 3, 3)).starts_with("shard 3/3, process "));
        assert!(held(shard(&path, 1, 2)).starts_with("shard 2/3, process "));
        assert!(held(shard(&path, 1, 4)).starts_with("shard 2/3, process "));
        drop(two);
        // Whoever is named is still there.
        let text = held(Lock::acquire(&path, Duration::ZERO));
        assert!(text.starts_with("shard 3/3, process "), "{text}");
        drop(three);
        shard(&path, MOST_SHARDS, MOST_SHARDS).unwrap();
        Lock::acquire(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn only_one_is_alone_and_only_behind_the_door() {
        let (_dir, path) = place();
        let first = Lock::acquire_shard(&path, (1, 2), Duration::ZERO).unwrap();
        assert!(first.is_alone().unwrap());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let lock = Lock::acquire_shard(&path, (2, 2), Duration::ZERO).unwrap();
                lock.is_alone().unwrap()
            });
            // It waits at the door, however little patience it has.
            first.open_door().unwrap();
            assert!(!second.join().unwrap());
        });
        assert!(first.is_alone().unwrap(), "the second one has gone");
        first.open_door().unwrap();

        let second = shard(&path, 2, 2).unwrap();
        assert!(!first.leave().unwrap());
        first.open_door().unwrap();
        assert!(second.leave().unwrap(), "the last one");
        second.open_door().unwrap();
        Lock::acquire(&path, Duration::ZERO).unwrap();
    }
}
