//! A folder's tree in byte order of the full keys, one level of names in memory at a time.
//!
//! A folder sorts as its name with `/` behind it: that is where its files' keys fall.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::store::sorter::{Sorted, Sorter};
use crate::store::{Key, StoreError};

/// What the folder says an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File,
    Folder,
    Link,
    Special,
}

impl Entry {
    const ALL: [Entry; 4] = [Entry::File, Entry::Folder, Entry::Link, Entry::Special];

    pub(super) fn of(kind: fs::FileType) -> Entry {
        if kind.is_file() {
            Entry::File
        } else if kind.is_dir() {
            Entry::Folder
        } else if kind.is_symlink() {
            Entry::Link
        } else {
            Entry::Special
        }
    }
}

/// Walks the tree under a root. The caller answers each folder with [`Walk::descend`] or not.
pub(super) struct Walk {
    root: PathBuf,
    after: Option<Key>,
    levels: Vec<Level>,
    pending: VecDeque<StoreError>,
}

struct Level {
    prefix: Vec<u8>,
    entries: Sorted,
}

impl Walk {
    pub(super) fn new(root: &Path, after: Option<Key>) -> Result<Walk, StoreError> {
        let mut walk =
            Walk { root: root.to_owned(), after, levels: Vec::new(), pending: VecDeque::new() };
        walk.enter(Vec::new())?;
        Ok(walk)
    }

    /// Goes into the folder that [`Walk::next`] gave last, before it gives anything else.
    pub(super) fn descend(&mut self, folder: &Key) {
        let mut prefix = folder.as_bytes().to_vec();
        prefix.push(b'/');
        let passed =
            |after: &Key| after.as_bytes() > &prefix[..] && !after.as_bytes().starts_with(&prefix);
        if self.after.as_ref().is_some_and(passed) {
            return;
        }
        if let Err(error) = self.enter(prefix) {
            self.pending.push_back(error);
        }
    }

    /// Whether a folder that is only counted lies after the key the walk starts from.
    pub(super) fn is_new(&self, folder: &Key) -> bool {
        self.after.as_ref().is_none_or(|after| folder > after)
    }

    fn enter(&mut self, prefix: Vec<u8>) -> Result<(), StoreError> {
        let folder = self.root.join(OsStr::from_bytes(&prefix));
        let fault = |error| StoreError::new("list", &folder, error);
        let entries = match fs::read_dir(&folder) {
            // Removed since its parent was read: nothing of it is left to plan.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() => {
                return Ok(());
            }
            other => other.map_err(fault)?,
        };
        let mut sorter = Sorter::new();
        for entry in entries {
            let entry = entry.map_err(fault)?;
            let kind = Entry::of(entry.file_type().map_err(fault)?);
            let mut name = entry.file_name().into_vec();
            if kind == Entry::Folder {
                name.push(b'/');
            }
            sorter.push(name, kind as u8).map_err(fault)?;
        }
        self.levels.push(Level { prefix, entries: sorter.finish().map_err(fault)? });
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Result<(Key, Entry), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.pending.pop_front() {
            return Some(Err(error));
        }
        loop {
            let level = self.levels.last_mut()?;
            let (name, tag) = match level.entries.next() {
                None => {
                    self.levels.pop();
                    continue;
                }
                Some(Err(error)) => {
                    return Some(Err(StoreError::new("sort the names of", &self.root, error)));
                }
                Some(Ok(item)) => item,
            };
            let kind = Entry::ALL[usize::from(tag)];
            let mut key = level.prefix.clone();
            key.extend(name.strip_suffix(b"/").unwrap_or(&name));
            let key = Key::new(key);
            let passed = kind != Entry::Folder && self.after.as_ref().is_some_and(|a| key <= *a);
            if !passed {
                return Some(Ok((key, kind)));
            }
        }
    }
}
