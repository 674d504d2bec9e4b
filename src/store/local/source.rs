//! Reading pictures from a folder, a single file or a list: [`LocalSource`].

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::walk::{Entry, Walk};
use crate::store::hash::{sha256, sha256_of};
use crate::store::lists::{self, Choice, Form, List, Named, Text};
use crate::store::{
    Identity, Key, LinkFault, Listed, Listing, Object, Place, ReadError, Select, Skip, Source,
    StoreError,
};

/// Reads of a file that fail for no lasting reason are tried this often.
const ATTEMPTS: u32 = 3;

/// How a local input is read.
#[derive(Clone, Debug, Default)]
pub struct SourceOptions {
    /// Read links that leave the tree.
    pub follow_symlinks: bool,
    /// Identify pictures by size, or by content, instead of size and time.
    pub identity: IdentityKind,
    /// Folders that are never input: the output and the annotated pictures.
    pub avoid: Vec<PathBuf>,
    /// The column of a table that holds the keys, if it is not to be found by its name.
    pub key_column: Option<String>,
}

/// `--identity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdentityKind {
    /// Size and modification time.
    #[default]
    Mtime,
    /// Size alone.
    Size,
    /// Content.
    Sha256,
    /// On S3: size and entity tag.
    Etag,
}

#[derive(Debug)]
enum Names {
    /// Everything under the root.
    Tree,
    /// One file in the root.
    One(Key),
    /// What a list names.
    List(List),
    /// Keys and meta of an earlier listing, in order, a zero byte after each; of a tree's if `tree`.
    Keys { file: File, tree: bool },
}

/// A local input.
#[derive(Debug)]
pub struct LocalSource {
    root: PathBuf,
    seen: (u64, u64),
    names: Names,
    options: SourceOptions,
}

impl LocalSource {
    /// A folder, a picture, a list (a name that ends in `.txt` or `.lst`), a SageMaker manifest
    /// (`.json`, `.manifest`) or a table (`.csv`).
    ///
    /// # Errors
    /// When the input does not exist, may not be read, or is a list that is malformed.
    pub fn open(input: &Path, options: SourceOptions) -> Result<LocalSource, StoreError> {
        if let Some(list) = LocalSource::list_at(input, options.key_column.as_deref())? {
            return LocalSource::from_list(list, input, options);
        }
        let fault = |error| StoreError::new("read the input", input, error);
        if fs::metadata(input).map_err(fault)?.is_dir() {
            return LocalSource::rooted(input, Names::Tree, options);
        }
        let name = input.file_name().unwrap_or_default();
        let names = Names::One(Key::new(std::os::unix::ffi::OsStrExt::as_bytes(name)));
        LocalSource::rooted(above(input), names, options)
    }

    /// The list that an input is, if it is one.
    pub(in crate::store) fn list_at(
        input: &Path,
        key_column: Option<&str>,
    ) -> Result<Option<List>, StoreError> {
        let fault = |error| StoreError::new("read the input", input, error);
        if fs::metadata(input).map_err(fault)?.is_dir() {
            return Ok(None);
        }
        let folder = above(input).canonicalize().map_err(fault)?;
        let Some(form) = Form::of(input, Place::Local(folder.clone()), key_column) else {
            return Ok(None);
        };
        let path = match form {
            // It may be a link, and its prefix is relative to where that lies.
            Form::Manifest(_) => folder.join(input.file_name().unwrap_or_default()),
            _ => input.canonicalize().map_err(fault)?,
        };
        List::open(path.clone(), form, Text::At(path)).map(Some)
    }

    /// What a list at `input` names, beside it if it does not say otherwise.
    pub(in crate::store) fn from_list(
        list: List,
        input: &Path,
        options: SourceOptions,
    ) -> Result<LocalSource, StoreError> {
        let root = match list.root() {
            None => above(input).to_owned(),
            Some(Place::Local(root)) => root.clone(),
            Some(Place::S3(root)) => {
                let what = format!("its prefix `{root}` is on S3, and a folder is due here");
                let error = io::Error::new(io::ErrorKind::InvalidData, what);
                return Err(StoreError::new("read the list", &list.name, error));
            }
        };
        LocalSource::rooted(&root, Names::List(list), options)
    }

    /// A list of paths, one a line, relative to `folder`.
    ///
    /// # Errors
    /// When the lines cannot be spooled to the temporary folder, or one is no path.
    pub fn from_lines(
        mut lines: impl Read,
        folder: &Path,
        options: SourceOptions,
    ) -> Result<LocalSource, StoreError> {
        let mut spool = || -> io::Result<File> {
            let mut file = tempfile::tempfile()?;
            io::copy(&mut lines, &mut file)?;
            Ok(file)
        };
        let file = spool().map_err(|error| StoreError::new("read the list from", "-", error))?;
        let form = Form::Lines(lists::Names::Paths);
        let list = List::open(PathBuf::from("-"), form, Text::Spooled(file))?;
        LocalSource::rooted(folder, Names::List(list), options)
    }

    /// Keys that an earlier listing of `folder` had: in byte order, each ended by a zero byte, which
    /// no name can hold, and followed by its meta (maybe none), which a zero byte ends too. A key that is not there
    /// any more is listed as missing; one of a `tree` is held to the rules for links in a tree, any
    /// other to those for what somebody named.
    ///
    /// # Errors
    /// When the folder does not exist or may not be read.
    pub fn from_keys(
        keys: File,
        tree: bool,
        folder: &Path,
        options: SourceOptions,
    ) -> Result<LocalSource, StoreError> {
        LocalSource::rooted(folder, Names::Keys { file: keys, tree }, options)
    }

    fn rooted(
        root: &Path,
        names: Names,
        mut options: SourceOptions,
    ) -> Result<LocalSource, StoreError> {
        let fault = |error| StoreError::new("read the input", root, error);
        let root = root.canonicalize().map_err(fault)?;
        let meta = fs::metadata(&root).map_err(fault)?;
        for folder in &mut options.avoid {
            *folder = settled(folder);
        }
        Ok(LocalSource { root, seen: (meta.dev(), meta.ino()), names, options })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_path())
    }

    fn is_tree(&self) -> bool {
        matches!(self.names, Names::Tree | Names::Keys { tree: true, .. })
    }

    fn object(&self, key: Key, meta: &Metadata) -> Result<Object, StoreError> {
        let identity = match self.options.identity {
            IdentityKind::Mtime | IdentityKind::Etag => Identity::Mtime(mtime_ns(meta)),
            IdentityKind::Size => Identity::Size,
            IdentityKind::Sha256 => {
                let path = self.path(&key);
                match File::open(&path).and_then(sha256_of) {
                    Ok(digest) => Identity::Sha256(digest),
                    // Reading it will be refused too, and that is the picture's fault alone.
                    Err(error) if is_denied(&error) => Identity::Size,
                    Err(error) => return Err(StoreError::new("read", path, error)),
                }
            }
        };
        Ok(Object { key, size: meta.len(), identity, meta: None })
    }

    /// What a file or link in the tree is; `None` when it vanished while we looked.
    fn classify(
        &self,
        key: Key,
        entry: Entry,
        select: &dyn Select,
    ) -> Option<Result<Listed, StoreError>> {
        let path = self.path(&key);
        let skipped = |reason| Some(Ok(Listed::Skipped(reason)));
        if entry == Entry::Special {
            return skipped(Skip::Special);
        }
        if entry == Entry::Link && fs::metadata(&path).is_ok_and(|m| m.is_dir()) {
            return skipped(Skip::FolderLink);
        }
        if let Err(reason) = select.file(&key) {
            return skipped(reason);
        }
        let faulty = |key, fault| Some(Ok(unseen(key, Identity::Link(fault))));
        match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => skipped(Skip::Special),
            Ok(_) if entry == Entry::Link && self.leaves(&path) => faulty(key, LinkFault::Outside),
            Ok(meta) => Some(self.object(key, &meta).map(Listed::Object)),
            Err(_) if entry == Entry::Link => faulty(key, LinkFault::Broken),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if is_denied(&error) => Some(Ok(unseen(key, Identity::Size))),
            Err(error) => Some(Err(StoreError::new("look at", path, error))),
        }
    }

    /// Whether a link's target is out of bounds.
    fn leaves(&self, path: &Path) -> bool {
        !self.options.follow_symlinks
            && !path.canonicalize().is_ok_and(|target| target.starts_with(&self.root))
    }

    /// What a line of a list names. Somebody named it, so neither suffix nor dots are asked.
    fn named(&self, key: Key) -> Result<Listed, StoreError> {
        let path = self.path(&key);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => Ok(Listed::Skipped(Skip::Folder)),
            Ok(meta) if !meta.is_file() => Ok(Listed::Skipped(Skip::Special)),
            Ok(meta) => self.object(key, &meta).map(Listed::Object),
            // One name among many: it gets its line, whatever is wrong with it.
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => {
                    Ok(unseen(key, Identity::Missing))
                }
                Some(Errno::ELOOP) => Ok(unseen(key, Identity::Link(LinkFault::Broken))),
                _ if is_denied(&error) => Ok(unseen(key, Identity::Size)),
                _ => Err(StoreError::new("look at", path, error)),
            },
        }
    }

    /// What a key of an earlier listing is now.
    fn again(&self, key: Key, select: &dyn Select) -> Result<Listed, StoreError> {
        if self.is_tree()
            && let Ok(meta) = fs::symlink_metadata(self.path(&key))
            && !meta.is_dir()
            && let Some(found) = self.classify(key.clone(), Entry::of(meta.file_type()), select)
        {
            return found;
        }
        self.named(key)
    }

    /// What a name of a list stands for, with what the list says of it.
    fn with_meta(listed: Listed, meta: Option<Box<str>>) -> Listed {
        match listed {
            Listed::Object(object) => Listed::Object(Object { meta, ..object }),
            skipped => skipped,
        }
    }

    fn read_once(&self, object: &Object) -> Result<Vec<u8>, ReadError> {
        let path = self.path(&object.key);
        // A pipe of that name must not hold us up: it would open only when somebody writes to it.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| read_error(&path, error))?;
        let meta = file.metadata().map_err(|error| read_error(&path, error))?;
        if !meta.is_file() || !self.unchanged(object, &meta) {
            return Err(ReadError::Changed);
        }
        let is_link = fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
        if self.is_tree() && is_link && self.leaves(&path) {
            return Err(ReadError::Changed);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(object.size).unwrap_or(0));
        (&mut file)
            .take(object.size.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| read_error(&path, error))?;
        // Somebody may have written while we read.
        let meta = file.metadata().map_err(|error| read_error(&path, error))?;
        if bytes.len() as u64 != object.size || !self.unchanged(object, &meta) {
            return Err(ReadError::Changed);
        }
        match &object.identity {
            Identity::Sha256(planned) if *planned != sha256(&bytes) => Err(ReadError::Changed),
            _ => Ok(bytes),
        }
    }

    fn unchanged(&self, object: &Object, meta: &Metadata) -> bool {
        let same_time = match object.identity {
            Identity::Mtime(planned) => mtime_ns(meta) == planned,
            _ => true,
        };
        meta.len() == object.size && same_time
    }
}

impl Source for LocalSource {
    fn list<'a>(
        &'a self,
        select: &'a dyn Select,
        after: Option<&Key>,
    ) -> Result<Listing<'a>, StoreError> {
        match &self.names {
            Names::One(key) => {
                let left = after.is_none_or(|after| key > after);
                Ok(Box::new(left.then(|| self.named(key.clone())).into_iter()))
            }
            Names::List(list) => {
                let choices = lists::choose(list.sorted()?, select, after);
                Ok(Box::new(choices.map(|choice| match choice? {
                    Choice::Skipped(reason) => Ok(Listed::Skipped(reason)),
                    Choice::Look(Named { key, meta }) => {
                        self.named(key).map(|listed| LocalSource::with_meta(listed, meta))
                    }
                })))
            }
            Names::Keys { file, .. } => {
                let earlier = lists::earlier(file, &self.describe(), after);
                Ok(Box::new(earlier.map(|named| {
                    let Named { key, meta } = named?;
                    self.again(key, select).map(|listed| LocalSource::with_meta(listed, meta))
                })))
            }
            Names::Tree => {
                let mut walk = Walk::new(&self.root, after.cloned())?;
                Ok(Box::new(std::iter::from_fn(move || {
                    loop {
                        let (key, entry) = match walk.next()? {
                            Ok(found) => found,
                            Err(error) => return Some(Err(error)),
                        };
                        if entry != Entry::Folder {
                            match self.classify(key, entry, select) {
                                None => continue,
                                found => return found,
                            }
                        }
                        // Folders above `after` were counted when they were first met.
                        let verdict = if self.options.avoid.contains(&self.path(&key)) {
                            Err(Skip::Output)
                        } else {
                            select.folder(&key)
                        };
                        match verdict {
                            Ok(()) => walk.descend(&key),
                            Err(reason) if walk.is_new(&key) => {
                                return Some(Ok(Listed::Skipped(reason)));
                            }
                            Err(_) => {}
                        }
                    }
                })))
            }
        }
    }

    fn read(&self, object: &Object) -> Result<Vec<u8>, ReadError> {
        for attempt in 1.. {
            match self.read_once(object) {
                Err(ReadError::Unreadable) if attempt < ATTEMPTS => {
                    std::thread::sleep(Duration::from_millis(50 << attempt));
                }
                other => return other,
            }
        }
        unreachable!("the last attempt returns")
    }

    fn vouches(&self, witness: Option<&Key>) -> bool {
        let same = fs::metadata(&self.root).is_ok_and(|m| (m.dev(), m.ino()) == self.seen);
        let readable = |key: &Key| {
            let mut byte = [0];
            File::open(self.path(key)).and_then(|mut file| file.read(&mut byte)).is_ok()
        };
        same && witness.is_none_or(readable)
    }

    fn root(&self) -> String {
        self.root.display().to_string()
    }

    fn describe(&self) -> String {
        match &self.names {
            Names::Tree | Names::Keys { .. } => self.root.display().to_string(),
            Names::One(key) => self.path(key).display().to_string(),
            Names::List(list) => list.name.display().to_string(),
        }
    }
}

/// The folder that a file lies in.
fn above(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An object of which no more is known than its name and what keeps us from it.
fn unseen(key: Key, identity: Identity) -> Listed {
    Listed::Object(Object { key, size: 0, identity, meta: None })
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn read_error(path: &Path, error: io::Error) -> ReadError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => ReadError::Gone,
        Some(Errno::EACCES | Errno::EPERM) => ReadError::Denied,
        // Ours, not the file's: too many open files, no memory.
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
            ReadError::Store(StoreError::new("read", path, error))
        }
        _ => ReadError::Unreadable,
    }
}

fn mtime_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

/// The path that a folder has, or will have once it is made, without links.
pub(crate) fn settled(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => settled(parent).join(name),
        (_, Some(name)) => std::env::current_dir().unwrap_or_default().join(name),
        _ => path.to_owned(),
    }
}
