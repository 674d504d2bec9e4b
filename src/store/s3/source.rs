//! Reading pictures from a bucket: [`S3Source`].
//!
//! Keys are what comes after the root, a prefix that is empty or ends in `/`; nothing of them is
//! normalised. What an object is, its entity tag says; a reading asks for that one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use md5::{Digest as _, Md5};

use super::calls::{Got, Head};
use super::client::{Asked, S3};
use super::fault::{Fault, Kind};
use super::gate::WIDEST;
use super::listing::{Entry, Page, Want};
use crate::store::lists::{self, Choice, Form, List, Named, Text};
use crate::store::{
    Identity, IdentityKind, Key, Listed, Listing, Location, Object, Place, ReadError, Reading,
    Select, Skip, Source, StoreError, hex,
};

/// The most bytes that a key may have.
const LONGEST_KEY: usize = 1024;
/// A list is fetched in pieces of this size.
const PIECE: u64 = 8 << 20;
/// Bytes that are not what their tag says are fetched so often.
const FETCHES: u32 = 4;

/// How an input in a bucket is read.
#[derive(Clone, Debug, Default)]
pub struct S3SourceOptions {
    /// Identify pictures by size and entity tag (the default), or by size. Content is not asked.
    pub identity: IdentityKind,
    /// Prefixes that are never input: the output and the annotated pictures.
    pub avoid: Vec<Location>,
    /// The column of a table that holds the keys, if it is not to be found by its name.
    pub key_column: Option<String>,
}

#[derive(Debug)]
enum Names {
    /// Everything that begins with a prefix.
    Prefix(Location),
    /// What a list names.
    List(List),
    /// Keys and meta of an earlier listing, in order, a zero byte after each; of a prefix's if `tree`.
    Keys { file: File, tree: bool },
}

/// An input in a bucket.
#[derive(Debug)]
pub struct S3Source {
    s3: S3,
    root: Location,
    names: Names,
    options: S3SourceOptions,
}

impl S3Source {
    /// A list, if there is an object of exactly this name and a list's suffix (`.txt`, `.lst`,
    /// `.json`, `.manifest`, `.csv`), or else a prefix.
    ///
    /// # Errors
    /// When the list cannot be read, or is malformed.
    pub fn open(
        s3: &S3,
        input: &Location,
        options: S3SourceOptions,
    ) -> Result<S3Source, StoreError> {
        let (path, folder) = (Path::new(&input.key), Place::S3(input.root()));
        let Some(form) = Form::of(path, folder, options.key_column.as_deref()) else {
            return Ok(S3Source::new(s3, input, options));
        };
        let (asked, of) = (s3.clone(), input.clone());
        let head = match s3.wait(async move { asked.look(&of).await }) {
            Ok(head) => head,
            Err(fault) if fault.kind == Kind::Missing => {
                return Ok(S3Source::new(s3, input, options));
            }
            Err(fault) => return Err(fault.error("look at", input)),
        };
        let text = Text::Spooled(spool(s3, input, &head)?);
        let list = List::open(PathBuf::from(input.to_string()), form, text)?;
        S3Source::from_list(s3, list, &input.root(), options)
    }

    /// Everything whose key begins with a prefix. Keys are relative to its last `/`.
    #[must_use]
    pub fn new(s3: &S3, prefix: &Location, options: S3SourceOptions) -> S3Source {
        S3Source::rooted(s3, prefix.root(), Names::Prefix(prefix.clone()), options)
    }

    /// What a list names, relative to `root` if the list does not say otherwise.
    pub(in crate::store) fn from_list(
        s3: &S3,
        list: List,
        root: &Location,
        options: S3SourceOptions,
    ) -> Result<S3Source, StoreError> {
        let root = match list.root() {
            None => root.clone(),
            Some(Place::S3(root)) => root.clone(),
            Some(Place::Local(root)) => {
                let what = format!("its prefix `{}` is no s3:// address", root.display());
                let error = io::Error::new(io::ErrorKind::InvalidData, what);
                return Err(StoreError::new("read the list", &list.name, error));
            }
        };
        if options.identity == IdentityKind::Sha256 {
            let what = format!("its pictures are in `{root}`, where --identity is etag or size");
            let error = io::Error::new(io::ErrorKind::InvalidData, what);
            return Err(StoreError::new("read the list", &list.name, error));
        }
        Ok(S3Source::rooted(s3, root, Names::List(list), options))
    }

    /// Keys that an earlier listing below `root` had: in byte order, each ended by a zero byte and
    /// followed by its meta (maybe none), which a zero byte ends too. A key that is not there any
    /// more is listed as missing. They were found below a prefix if `tree`, or else named.
    #[must_use]
    pub fn from_keys(
        s3: &S3,
        keys: File,
        tree: bool,
        root: &Location,
        options: S3SourceOptions,
    ) -> S3Source {
        S3Source::rooted(s3, root.folder(), Names::Keys { file: keys, tree }, options)
    }

    fn rooted(s3: &S3, root: Location, names: Names, options: S3SourceOptions) -> S3Source {
        S3Source { s3: s3.clone(), root, names, options }
    }

    /// Where an object lies; `None` if the key can be no object's.
    fn at(&self, key: &Key) -> Option<Location> {
        std::str::from_utf8(key.as_bytes()).ok().map(|key| self.root.join(key))
    }

    fn identity(&self, etag: Option<String>) -> Identity {
        match (self.options.identity, etag) {
            (IdentityKind::Size, _) | (_, None) => Identity::Size,
            (_, Some(tag)) => Identity::Etag(tag),
        }
    }

    fn list_prefix<'a>(
        &'a self,
        prefix: &'a Location,
        select: &'a dyn Select,
        after: Option<&Key>,
    ) -> Listing<'a> {
        let root = self.root.key.as_bytes();
        let after = after.map(|after| [root, after.as_bytes()].concat());
        let start = after.as_deref().map(start_after);
        let mut pages = self.s3.list(prefix, Want { after: start, ..Want::default() });
        let mut page = Page::default().entries.into_iter();
        let mut previous: Option<Vec<u8>> = None;
        let mut folders = Folders::new(select);
        let avoid = self.options.avoid.iter().map(Location::folder);
        let avoid: Vec<_> = avoid.filter(|at| at.bucket == self.root.bucket).collect();
        let mut failed = false;
        Box::new(std::iter::from_fn(move || {
            loop {
                if failed {
                    return None;
                }
                let Some(entry) = page.next() else {
                    match pages.next()? {
                        Ok(next) => page = next.entries.into_iter(),
                        Err(fault) => {
                            failed = true;
                            return Some(Err(fault.error("list", prefix)));
                        }
                    }
                    continue;
                };
                if let Err(what) = follows(&entry.key, previous.as_deref(), prefix) {
                    failed = true;
                    let error = io::Error::new(io::ErrorKind::InvalidData, what);
                    return Some(Err(StoreError::new("list", prefix.to_string(), error)));
                }
                let is_new = after.as_ref().is_none_or(|after| entry.key > *after);
                previous = Some(entry.key.clone());
                if is_new {
                    return Some(Ok(self.classify(entry, &avoid, &mut folders)));
                }
            }
        }))
    }

    /// What becomes of a listed key.
    fn classify(&self, entry: Entry, avoid: &[Location], folders: &mut Folders<'_>) -> Listed {
        let Entry { key, size, etag } = entry;
        if avoid.iter().any(|at| key.starts_with(at.key.as_bytes())) {
            return Listed::Skipped(Skip::Output);
        }
        let key = &key[self.root.key.len()..];
        // The root itself may be an object, and has no name.
        if key.is_empty() || (size == 0 && key.ends_with(b"/")) {
            return Listed::Skipped(Skip::Marker);
        }
        let key = Key::new(key);
        match folders.above(&key).and_then(|()| folders.select.file(&key)) {
            Err(reason) => Listed::Skipped(reason),
            Ok(()) => {
                Listed::Object(Object { key, size, identity: self.identity(etag), meta: None })
            }
        }
    }

    /// Looks at objects that somebody named, several at a time, and gives them in their order.
    fn look<'a>(
        &'a self,
        mut choices: impl Iterator<Item = Result<Choice, StoreError>> + Send + 'a,
    ) -> Listing<'a> {
        let mut under_way: VecDeque<Looking> = VecDeque::new();
        Box::new(std::iter::from_fn(move || {
            while under_way.len() < WIDEST
                && let Some(choice) = choices.next()
            {
                under_way.push_back(match choice {
                    Err(error) => Looking::Done(Err(error)),
                    Ok(Choice::Skipped(reason)) => Looking::Done(Ok(Listed::Skipped(reason))),
                    Ok(Choice::Look(named)) => self.begin_look(named),
                });
            }
            Some(match under_way.pop_front()? {
                Looking::Done(listed) => listed,
                Looking::Asked(named, at, head) => self.looked_at(named, &at, head.wait()),
            })
        }))
    }

    fn begin_look(&self, named: Named) -> Looking {
        match self.at(&named.key) {
            // It cannot be asked for; reading it says so.
            None => Looking::Done(Ok(unseen(named, Identity::Size))),
            Some(at) if at.key.len() > LONGEST_KEY => {
                Looking::Done(Ok(unseen(named, Identity::Missing)))
            }
            Some(at) => {
                let (s3, of) = (self.s3.clone(), at.clone());
                let head = self.s3.ask(async move { s3.look(&of).await });
                Looking::Asked(named, at, head)
            }
        }
    }

    fn looked_at(
        &self,
        named: Named,
        at: &Location,
        head: Result<Head, Fault>,
    ) -> Result<Listed, StoreError> {
        match head {
            Ok(head) if head.size == 0 && at.key.ends_with('/') => {
                Ok(Listed::Skipped(Skip::Folder))
            }
            Ok(head) => {
                let Named { key, meta } = named;
                let etag = head.etag.map(|tag| tag.trim_matches('"').to_owned());
                let identity = self.identity(etag.filter(|tag| !tag.is_empty()));
                Ok(Listed::Object(Object { key, size: head.size, identity, meta }))
            }
            // One name among many: it gets its line, whatever is wrong with it.
            Err(fault) if fault.kind == Kind::Missing => Ok(unseen(named, Identity::Missing)),
            Err(fault) if fault.kind == Kind::Denied => Ok(unseen(named, Identity::Size)),
            Err(fault) => Err(fault.error("look at", at)),
        }
    }
}

impl Source for S3Source {
    fn list<'a>(
        &'a self,
        select: &'a dyn Select,
        after: Option<&Key>,
    ) -> Result<Listing<'a>, StoreError> {
        Ok(match &self.names {
            Names::Prefix(prefix) => self.list_prefix(prefix, select, after),
            Names::List(list) => self.look(lists::choose(list.sorted()?, select, after)),
            Names::Keys { file, tree } => {
                let earlier = lists::earlier(file, &self.describe(), after);
                self.look(earlier.map(|named| {
                    let named = named?;
                    Ok(match select.file(&named.key) {
                        Err(reason) if *tree => Choice::Skipped(reason),
                        _ => Choice::Look(named),
                    })
                }))
            }
        })
    }

    fn read(&self, object: &Object) -> Result<Vec<u8>, ReadError> {
        self.begin(object).wait()
    }

    fn begin(&self, object: &Object) -> Reading {
        let Some(at) = self.at(&object.key) else {
            return Reading::done(Err(ReadError::Unreadable));
        };
        let tag = match &object.identity {
            Identity::Etag(tag) => Some(format!("\"{tag}\"")),
            _ => None,
        };
        let (s3, size) = (self.s3.clone(), object.size);
        let fetch = move || {
            let (s3, at, tag) = (s3.clone(), at.clone(), tag.clone());
            s3.clone().ask(async move {
                let got = s3.get(&at, Some(size), tag.as_deref()).await;
                got.map_err(|fault| read_error(&fault, &at))
            })
        };
        let (s3, first) = (self.s3.clone(), fetch());
        // Digests are for the thread that waits: that of S3 has others to serve.
        Reading::under_way(move || sound(&s3, first, fetch, || ReadError::Unreadable))
    }

    fn ahead(&self) -> usize {
        WIDEST
    }

    fn vouches(&self, witness: Option<&Key>) -> bool {
        // Whoever names keys need not be allowed to list.
        let listed = match (&self.names, witness) {
            (Names::List(_) | Names::Keys { tree: false, .. }, Some(_)) => None,
            (Names::Prefix(prefix), _) => Some(prefix),
            (Names::List(_) | Names::Keys { .. }, _) => Some(&self.root),
        };
        if let Some(prefix) = listed {
            let mut pages = self.s3.list(prefix, Want { most: Some(1), ..Want::default() });
            if pages.next().is_none_or(|page| page.is_err()) {
                return false;
            }
        }
        let Some(witness) = witness else { return true };
        let Some(at) = self.at(witness) else { return false };
        let s3 = self.s3.clone();
        self.s3.wait(async move { s3.first_byte(&at).await.is_ok() })
    }

    fn remark(&self) -> Option<String> {
        let Names::Prefix(prefix) = &self.names else { return None };
        let folder = prefix.folder();
        if folder == *prefix {
            return None;
        }
        // People who write no slash mostly mean what is behind it.
        let mut pages = self.s3.list(&folder, Want { most: Some(1), ..Want::default() });
        let page = pages.next()?.ok().filter(|page| !page.entries.is_empty())?;
        let key = page.entries.first()?.key.get(self.root.key.len()..)?.to_vec();
        Some(format!(
            "`{prefix}` is everything whose key begins so, and keys in the results are such as `{}` \
             (for what is in `{folder}` alone, end it with a slash)",
            Key::new(key)
        ))
    }

    fn root(&self) -> String {
        self.root.to_string()
    }

    fn describe(&self) -> String {
        match &self.names {
            Names::Prefix(prefix) => prefix.to_string(),
            Names::List(list) => list.name.display().to_string(),
            Names::Keys { .. } => self.root.to_string(),
        }
    }
}

/// A name of a list, and whether what it stands for is known yet.
enum Looking {
    Done(Result<Listed, StoreError>),
    Asked(Named, Location, Asked<Result<Head, Fault>>),
}

/// What `select` says of the folders above a key. There are none in a bucket, but names are read as
/// if there were.
struct Folders<'a> {
    select: &'a dyn Select,
    /// The last ones asked for, and the answer: the next key mostly lies there too.
    last: Vec<u8>,
    verdict: Result<(), Skip>,
}

impl<'a> Folders<'a> {
    fn new(select: &'a dyn Select) -> Folders<'a> {
        Folders { select, last: Vec::new(), verdict: Ok(()) }
    }

    fn above(&mut self, key: &Key) -> Result<(), Skip> {
        let key = key.as_bytes();
        let end = memchr::memrchr(b'/', key).map_or(0, |slash| slash + 1);
        if self.last != key[..end] {
            self.last = key[..end].to_vec();
            let folders = memchr::memchr_iter(b'/', key).map(|slash| Key::new(&key[..slash]));
            self.verdict = folders.into_iter().try_for_each(|folder| self.select.folder(&folder));
        }
        self.verdict
    }
}

/// Where a listing is to begin that goes on after a key: there, or a little before it, since what it
/// has before that is passed over.
fn start_after(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    // Some servers repeat it in their answer as it is, which is then no XML that can be read. What
    // was no UTF-8 is U+FFFD now, and greater.
    let odd = |c: char| c.is_control() || matches!(c, '\u{fffd}'..='\u{ffff}');
    text[..text.find(odd).unwrap_or(text.len())].to_owned()
}

/// Whether a listed key belongs where it is.
fn follows(key: &[u8], previous: Option<&[u8]>, prefix: &Location) -> Result<(), String> {
    let text = String::from_utf8_lossy;
    if !key.starts_with(prefix.key.as_bytes()) {
        return Err(format!("the store names `{}`, which does not begin so", text(key)));
    }
    match previous {
        Some(previous) if key <= previous => Err(format!(
            "the store names `{}` after `{}`, and haul needs listings in byte order (directory \
             buckets of S3 Express do not give it)",
            text(key),
            text(previous),
        )),
        _ => Ok(()),
    }
}

/// An object of which no more is known than its name and what keeps us from it.
fn unseen(named: Named, identity: Identity) -> Listed {
    let Named { key, meta } = named;
    Listed::Object(Object { key, size: 0, identity, meta })
}

/// Waits for an object, and holds it against its tag where that is a digest. `fetch` begins to read
/// it again; `broken` says that it stays another than its tag says.
pub(super) fn sound<E>(
    s3: &S3,
    first: Asked<Result<Got, E>>,
    fetch: impl Fn() -> Asked<Result<Got, E>>,
    broken: impl Fn() -> E,
) -> Result<Vec<u8>, E> {
    let mut under_way = first;
    let mut before: Option<String> = None;
    for _ in 0..FETCHES {
        let got = under_way.wait()?;
        let digest = match digest_of(&got) {
            Some(due) if !s3.0.opaque_tags.load(Ordering::Relaxed) => {
                let is = hex(&Md5::digest(&got.bytes));
                if is == due {
                    s3.0.true_tags.store(true, Ordering::Relaxed);
                }
                (is != due).then_some(is)
            }
            _ => None,
        };
        if digest.is_none() {
            return Ok(got.bytes);
        }
        if digest == before {
            if s3.0.true_tags.load(Ordering::Relaxed) {
                return Err(broken());
            }
            // Nothing is broken twice in the same way: the tags of this server are no digests.
            s3.0.opaque_tags.store(true, Ordering::Relaxed);
            return Ok(got.bytes);
        }
        before = digest;
        s3.0.counts.add(|traffic| *traffic.retried.entry("checksum".into()).or_default() += 1);
        under_way = fetch();
    }
    Err(broken())
}

/// The MD5 that the tag of an object may be.
fn digest_of(got: &Got) -> Option<String> {
    let tag = got.etag.as_deref().filter(|_| got.plain)?.trim_matches('"');
    let is_digest = tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| tag.to_ascii_lowercase())
}

fn read_error(fault: &Fault, at: &Location) -> ReadError {
    match fault.kind {
        Kind::Missing => ReadError::Gone,
        Kind::Precondition => ReadError::Changed,
        Kind::Denied => ReadError::Denied,
        Kind::Archived => ReadError::Archived,
        // Bytes that never come whole, or a no that is about this object: of another key, say.
        Kind::Broken | Kind::Refused => ReadError::Unreadable,
        _ => ReadError::Store(fault.error("read", at)),
    }
}

/// Copies a list into a temporary file, piece by piece.
fn spool(s3: &S3, at: &Location, head: &Head) -> Result<File, StoreError> {
    let here = |error| StoreError::new("copy the list to", "a temporary file", error);
    let mut file = tempfile::tempfile().map_err(here)?;
    for first in (0..head.size).step_by(PIECE as usize) {
        let last = (first + PIECE).min(head.size) - 1;
        let (asked, of, tag) = (s3.clone(), at.clone(), head.etag.clone());
        let due = Some(last - first + 1);
        let piece =
            s3.wait(
                async move { asked.get_range(&of, first, Some(last), due, tag.as_deref()).await },
            );
        let piece = piece.map_err(|fault| fault.error("read the list", at))?;
        file.write_all(&piece.bytes).map_err(here)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_begins_no_later_than_it_must() {
        for (key, start) in [
            (&b"a/b.jpg"[..], "a/b.jpg"),
            (b"a\x01b", "a"),
            (b"a\xffb", "a"),
            (b"\xc3", ""),
            ("ü+%2B \u{1f600}".as_bytes(), "ü+%2B \u{1f600}"),
            ("a\u{ffff}b".as_bytes(), "a"),
        ] {
            assert_eq!(start_after(key), start);
        }
    }
}
