//! One writer at a time: an open-file-description lock, held for the run.
//!
//! The kernel drops it when the process ends, however it ends, so there is nothing stale to break.
//! NFS carries it between hosts. Unlike the classic POSIX lock it belongs to the open file, so two
//! jobs within one process (a test, a server) exclude each other too.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::store::StoreError;

/// How often a waiting run asks again.
const POLL: Duration = Duration::from_millis(200);

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it; the text names who.
    #[error("{0}")]
    Held(String),
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
    /// The lock file could not be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Lock {
    /// Takes the lock in the file `path`, whose folder must exist, waiting up to `patience`.
    ///
    /// # Errors
    /// [`LockError::Held`] when the patience ran out.
    pub fn acquire(path: &Path, patience: Duration) -> Result<Lock, LockError> {
        let fault = |error| StoreError::new("open the lock", path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fault)?;
        let start = Instant::now();
        while !try_lock(&file, path)? {
            if start.elapsed() >= patience {
                let mut holder = String::new();
                let read = Read::by_ref(&mut file).take(400).read_to_string(&mut holder);
                let holder = match read {
                    Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
                    _ => "somebody (the lock file does not say who)".to_owned(),
                };
                return Err(LockError::Held(holder));
            }
            std::thread::sleep(POLL);
        }
        // For the message above only. Written in place: the lock is on this inode.
        let host = nix::unistd::gethostname().unwrap_or_default();
        let text = format!("process {} on host {}\n", std::process::id(), host.display());
        let write = file.set_len(0).and_then(|()| file.rewind());
        match write.and_then(|()| file.write_all(text.as_bytes())) {
            // A full disk must be able to resume: the name in the lock is a courtesy.
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(fault(error).into()),
            _ => Ok(Lock { _file: file }),
        }
    }
}

/// Tries once: `true` when the lock is ours.
fn try_lock(file: &File, path: &Path) -> Result<bool, LockError> {
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => {
            Err(LockError::Refused { path: path.display().to_string(), source: error.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::acquire(&path, Duration::ZERO).unwrap();
        let error = Lock::acquire(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::acquire(&path, Duration::ZERO).unwrap();
    }
}
