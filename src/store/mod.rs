//! Where bytes live, and the only two ways to write them.
//!
//! [`Source`] is what a job reads from, [`Store`] what it writes to. Both are small on purpose, and
//! there are two of each, for folders ([`LocalSource`], [`LocalStore`]) and for S3 ([`S3Source`],
//! [`S3Store`]), held to one conformance suite (`tests/conformance.rs`). A [`Hold`] keeps others off
//! an output. This module does not know what a picture, a plan or a record is.
//!
//! Durability in one sentence: when [`Store::put_new`] returns, the bytes survive a power cut under
//! the given name or the name belongs to somebody else's bytes; it never alters what is published.

mod error;
mod hash;
mod hold;
mod input;
mod key;
mod lists;
mod local;
mod names;
mod place;
mod reading;
mod roots;
mod s3;
mod sorter;
mod text;

pub use error::{Class, StoreError};
pub use hash::{hex, sha256, sha256_of};
pub use hold::Hold;
pub use input::open_input;
pub use key::Key;
pub use lists::{is_list, is_manifest, is_table};
pub use local::{
    Disk, DiskFile, IdentityKind, LocalSource, LocalStore, Lock, LockError, MOST_SHARDS,
    SourceOptions, SystemDisk,
};
pub use names::{annotated_name, name_of};
pub use place::{Location, Place};
pub use reading::{Reading, Writing};
pub use roots::{RootError, Roots};
pub use s3::{Checksums, Lease, S3, S3Options, S3Source, S3SourceOptions, S3Store, Traffic};
pub use text::one_line;

pub(crate) use local::settled;
pub(crate) use s3::service;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// How [`Store::put_new`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutNew {
    /// The name was free and now holds our bytes, durably.
    Created,
    /// The name was taken; nothing was written. Whose bytes they are is the caller's question.
    Exists,
}

/// Whose an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The store cannot say; whoever holds the output vouches for what is in it.
    Unsaid,
    /// The job with this id.
    Job(String),
    /// Nobody's: it carries no job's id, though this store's objects do.
    Nobody,
}

/// A place for a job's output: a folder, or a prefix in a bucket.
///
/// Names are relative paths with `/` between segments, for instance `_manifest/job.json`.
pub trait Store: Send + Sync + Debug {
    /// Publishes `bytes` under a name that must be free: all of them durably, or nothing.
    ///
    /// # Errors
    /// When the bytes could not be made durable; the name is then still free, or (after a crash of
    /// the machine) holds all the bytes.
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError>;

    /// As [`Store::put_new`], and says whose it is, for [`Store::owner`].
    ///
    /// # Errors
    /// As [`Store::put_new`].
    fn put_new_of(&self, name: &Path, bytes: &[u8], job: &str) -> Result<PutNew, StoreError> {
        let _ = job;
        self.put_new(name, bytes)
    }

    /// Whose an object is that [`Store::put_new_of`] has published.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn owner(&self, name: &Path) -> Result<Owner, StoreError> {
        let _ = name;
        Ok(Owner::Unsaid)
    }

    /// Publishes `bytes` under a name, in place of what was there. Readers see old or new, whole.
    ///
    /// # Errors
    /// When the bytes could not be written.
    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError>;

    /// Begins [`Store::replace`], in a store that can write several names at once; elsewhere it is
    /// done at once. `keep` is kept until the bytes are no longer needed: what counts their memory.
    ///
    /// # Errors
    /// When it is known already that the bytes cannot be written.
    fn begin_replace(
        &self,
        name: &Path,
        bytes: Vec<u8>,
        keep: Box<dyn Send>,
    ) -> Result<Writing, StoreError> {
        self.replace(name, &bytes)?;
        drop(keep);
        Ok(Writing::done())
    }

    /// The bytes under a name; `None` where there is no such name.
    ///
    /// # Errors
    /// When the name exists but cannot be read.
    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError>;

    /// The bytes under each of these names, in their order; several may be read at once.
    fn read_each<'a>(&'a self, names: &'a [PathBuf]) -> Reads<'a> {
        Box::new(names.iter().map(|name| self.read(name)))
    }

    /// The names directly in a folder (`""` is the root), in byte order; empty where there is none.
    ///
    /// # Errors
    /// When the folder exists but cannot be listed.
    fn list(&self, folder: &Path) -> Result<Vec<String>, StoreError>;

    /// Removes names, durably; one that is not there is no error. In which order they go is not
    /// said: where that matters, each is a call of its own.
    ///
    /// # Errors
    /// When one is there and stays.
    fn delete(&self, names: &[PathBuf]) -> Result<(), StoreError>;

    /// Makes durable what is in a folder, whoever published it: a run that was killed may have got
    /// as far as the name and no further.
    ///
    /// # Errors
    /// When the folder is there and cannot be made durable.
    fn settle(&self, folder: &Path) -> Result<(), StoreError>;

    /// Removes what interrupted writes of this store left behind. Only the lock's holder may.
    ///
    /// # Errors
    /// When the temporary folder cannot be read.
    fn clear_temporaries(&self) -> Result<(), StoreError>;

    /// The store in words, for messages: the folder's path, or `s3://bucket/prefix`.
    fn describe(&self) -> String;
}

/// What [`Store::read_each`] gives.
pub type Reads<'a> = Box<dyn Iterator<Item = Result<Option<Vec<u8>>, StoreError>> + 'a>;

/// What tells one version of an object from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Local default: size and modification time in nanoseconds since the epoch.
    Mtime(i64),
    /// `--identity size`: the size alone, for trees whose times were not kept.
    Size,
    /// `--identity sha256`: size and content hash, in lower-case hex.
    Sha256(String),
    /// S3: size and entity tag, without its quotes.
    Etag(String),
    /// A link that cannot be read as a picture of this tree; it is planned so that it gets a line.
    Link(LinkFault),
    /// Named in a list, but not there when the plan was made.
    Missing,
}

/// Why a symbolic link with a picture's name cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// Its target does not exist.
    Broken,
    /// Its target lies outside the input.
    Outside,
}

/// One object that the plan takes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Full key relative to the input.
    pub key: Key,
    /// Size in bytes.
    pub size: u64,
    /// What tells this version of it from another.
    pub identity: Identity,
    /// What a table says about it besides its key: the text of a JSON object of texts, which has no
    /// blanks between its tokens.
    pub meta: Option<Box<str>>,
}

/// The most bytes that [`Object::meta`] may have, so that a plan and its lines fit in memory.
pub const LARGEST_META: usize = 16 << 10;

impl Object {
    /// Whether another listing's object of this key is the same version, with the same meta.
    #[must_use]
    pub fn is_same_version(&self, other: &Object) -> bool {
        (self.size, &self.identity, &self.meta) == (other.size, &other.identity, &other.meta)
    }
}

/// Why a listed name is not planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// Its name, or that of a folder above it, starts with a dot.
    Hidden,
    /// Its suffix is not a picture's.
    Foreign,
    /// It has no suffix, and no `--include` matches it.
    NoSuffix,
    /// `--include` was given and does not match it.
    NotIncluded,
    /// `--exclude` matches it.
    Excluded,
    /// A link to a folder; never descended.
    FolderLink,
    /// A device, pipe or socket.
    Special,
    /// haul's own output or annotated pictures.
    Output,
    /// A folder named in a list.
    Folder,
    /// Named a second time in a list.
    Duplicate,
    /// `--since`: known, and unchanged.
    Known,
    /// `--sample` has not chosen it.
    NotSampled,
    /// An object that stands for a folder: its key ends in a slash.
    Marker,
}

impl Skip {
    /// Every reason, in the order in which summaries name them.
    pub const ALL: [Skip; 13] = [
        Skip::Hidden,
        Skip::Foreign,
        Skip::NoSuffix,
        Skip::NotIncluded,
        Skip::Excluded,
        Skip::FolderLink,
        Skip::Special,
        Skip::Output,
        Skip::Folder,
        Skip::Duplicate,
        Skip::Known,
        Skip::NotSampled,
        Skip::Marker,
    ];

    /// The reason's name in plan files and in `--json` summaries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Skip::Hidden => "hidden",
            Skip::Foreign => "foreign",
            Skip::NoSuffix => "no_suffix",
            Skip::NotIncluded => "not_included",
            Skip::Excluded => "excluded",
            Skip::FolderLink => "folder_link",
            Skip::Special => "special",
            Skip::Output => "output",
            Skip::Folder => "folder",
            Skip::Duplicate => "duplicate",
            Skip::Known => "known",
            Skip::NotSampled => "not_sampled",
            Skip::Marker => "marker",
        }
    }

    /// The reason for people, and the flag that would take such names in.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Skip::Hidden => "hidden (--hidden takes them)",
            Skip::Foreign => "without the suffix of a form that haul reads (a list may name them)",
            Skip::NoSuffix => "without a suffix (--include PATTERN takes them)",
            Skip::NotIncluded => "not matched by --include",
            Skip::Excluded => "matched by --exclude",
            Skip::FolderLink => "links to folders (never followed; name their target as --input)",
            Skip::Special => "pipes, sockets or devices",
            Skip::Output => "haul's own output",
            Skip::Folder => "folders named in the list (name pictures, or use --input FOLDER)",
            Skip::Duplicate => "named twice in the list",
            Skip::Known => "already in the outputs named by --since",
            Skip::NotSampled => "not chosen by --sample",
            Skip::Marker => "objects that stand for folders (their keys end in /)",
        }
    }
}

/// One name met while listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// An object for the plan.
    Object(Object),
    /// A name that is only counted.
    Skipped(Skip),
}

/// Decides by name alone; asked before anything is opened or measured.
pub trait Select: Send + Sync {
    /// Whether a file of this key is planned.
    ///
    /// # Errors
    /// The reason why it is not.
    fn file(&self, key: &Key) -> Result<(), Skip>;
    /// Whether a folder of this key (without a trailing slash) is descended.
    ///
    /// # Errors
    /// The reason why it is not.
    fn folder(&self, key: &Key) -> Result<(), Skip>;
}

/// A listing: names in byte order of their full keys.
pub type Listing<'a> = Box<dyn Iterator<Item = Result<Listed, StoreError>> + Send + 'a>;

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not the version that was planned.
    #[error("the object is not the one that was planned")]
    Changed,
    /// It is no longer there.
    #[error("the object is gone")]
    Gone,
    /// Its permissions refuse us.
    #[error("the object may not be read")]
    Denied,
    /// It is there, but reading fails again and again.
    #[error("the object cannot be read")]
    Unreadable,
    /// It is in an archive, out of which it must be restored before it can be read.
    #[error("the object is archived")]
    Archived,
    /// The store failed, not the object.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where pictures come from: a folder, a prefix in a bucket, one file or a list.
pub trait Source: Send + Sync + Debug {
    /// Everything after the key `after`, in byte order; where a list names `after` more than once,
    /// that begins with its doubles.
    ///
    /// # Errors
    /// When the input cannot be listed at all; later faults come as items.
    fn list<'a>(
        &'a self,
        select: &'a dyn Select,
        after: Option<&Key>,
    ) -> Result<Listing<'a>, StoreError>;

    /// The bytes of a planned object, if it still is what was planned.
    ///
    /// # Errors
    /// [`ReadError`]; `Gone`, `Denied` and `Unreadable` are claims that [`Source::vouches`] checks.
    fn read(&self, object: &Object) -> Result<Vec<u8>, ReadError>;

    /// Begins to read a planned object: the same, for a source that can read several at once.
    fn begin(&self, object: &Object) -> Reading {
        Reading::done(self.read(object))
    }

    /// How many readings may be under way at once; 1 where that brings nothing.
    fn ahead(&self) -> usize {
        1
    }

    /// Whether the input is still the one seen at the start and `witness` can be read.
    ///
    /// Asked directly after an object was gone, denied or unreadable: only if this holds for some
    /// other key is the object to blame and not the store (an unmounted disk looks like a folder
    /// whose pictures are all gone).
    fn vouches(&self, witness: Option<&Key>) -> bool;

    /// What a person should know of this input before it is worked on, if there is anything.
    fn remark(&self) -> Option<String> {
        None
    }

    /// What keys are relative to: the folder's path, or a prefix that is empty or ends in `/`.
    fn root(&self) -> String;

    /// The input in words, for messages.
    fn describe(&self) -> String;
}
