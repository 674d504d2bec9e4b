//! What can go wrong in a store, in the words of the person who must mend it.

use std::io;
use std::path::{Path, PathBuf};

use super::text::one_line;

/// What kind of trouble it is, and so what a person or a scheduler should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No room left; make some and run again.
    Full,
    /// Permissions or a read-only file system; running again does not help.
    Denied,
    /// A list that names the input is not what it must be; running again does not help.
    Malformed,
    /// Everything else; running again may help.
    Transient,
}

/// A failed operation on a store.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`: {source}{}", one_line(&path.to_string_lossy()), hint(source, *bytes))]
pub struct StoreError {
    /// The operation, as a verb: "write", "list".
    pub operation: &'static str,
    /// What it was done to.
    pub path: PathBuf,
    /// Bytes that had to be written, if the operation was a write.
    pub bytes: Option<u64>,
    /// What the system said.
    pub source: io::Error,
}

impl StoreError {
    /// An error of an operation that writes nothing.
    pub fn new(operation: &'static str, path: impl AsRef<Path>, source: io::Error) -> StoreError {
        StoreError { operation, path: path.as_ref().to_owned(), bytes: None, source }
    }

    /// Names the number of bytes that were to be written.
    #[must_use]
    pub fn writing(mut self, bytes: usize) -> StoreError {
        self.bytes = Some(bytes as u64);
        self
    }

    /// What kind of trouble it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::Full,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Class::Denied,
            io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge => Class::Malformed,
            _ => Class::Transient,
        }
    }
}

fn hint(source: &io::Error, bytes: Option<u64>) -> String {
    if source.get_ref().is_some() {
        // No system's error: whoever made it has said what it may be.
        return String::new();
    }
    match (source.kind(), bytes) {
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Some(bytes)) => {
            format!(
                " ({bytes} bytes and an inode were needed; make room and run the same command again)"
            )
        }
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, None) => {
            " (make room, or free inodes, and run the same command again)".to_owned()
        }
        (io::ErrorKind::PermissionDenied, _) => " (who owns it, and who runs haul?)".to_owned(),
        (io::ErrorKind::ReadOnlyFilesystem, _) => " (is it mounted read-only?)".to_owned(),
        (io::ErrorKind::StaleNetworkFileHandle, _) => " (did the file server restart?)".to_owned(),
        _ => String::new(),
    }
}
