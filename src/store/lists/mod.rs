//! Lists that name the pictures of an input, wherever list and pictures lie: a name a line, a
//! SageMaker manifest, a table.
//!
//! A list is read as a stream and its names are sorted, on disk if they are many. What a name stands
//! for is asked of the source that it is a list of.

mod manifest;
mod table;

pub(super) use manifest::Prefix;
pub use manifest::is_manifest;
pub use table::is_table;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use self::manifest::read_manifest;
use self::table::{Row, read_table};
use super::sorter::{Sorted, Sorter};
use super::{Key, Place, Select, Skip, StoreError, one_line};

/// The longest path that the system takes. Keys of objects are shorter.
const LONGEST_KEY: usize = 4096;

/// Bytes of a file that may be read for one name.
const LONGEST_ITEM: u64 = 256 << 10;

fn too_long() -> io::Error {
    let what = format!("more than {LONGEST_ITEM} bytes (is a quote left open?)");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn has_suffix(path: &Path, suffixes: &[&str]) -> bool {
    let suffix = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    suffixes.iter().any(|one| suffix.eq_ignore_ascii_case(one))
}

/// An error in the list itself: the same list gives it again.
fn malformed(path: &Path, what: impl Into<String>) -> StoreError {
    // Columns, prefixes and keys are in it, as whoever wrote the list has named them.
    let what = one_line(&what.into());
    StoreError::new("read the list", path, io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Whether a file is a list of any kind, by its suffix.
#[must_use]
pub fn is_list(path: &Path) -> bool {
    is_manifest(path) || is_table(path) || is_lines(path)
}

fn is_lines(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "txt" || e == "lst")
}

/// How names of a list become keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// They are paths: `./` in front means nothing.
    Paths,
    /// They are keys of objects, of which nothing is normalised.
    Keys,
}

impl Names {
    fn plain(self, mut name: &[u8]) -> &[u8] {
        while let (Names::Paths, Some(rest)) = (self, name.strip_prefix(b"./")) {
            name = rest;
        }
        name
    }

    /// The key that a name is; what nothing can be called is said before it is asked for.
    fn key(self, name: &[u8]) -> Result<&[u8], String> {
        let name = self.plain(name);
        if name.is_empty() {
            Err("names nothing".to_owned())
        } else if name.starts_with(b"s3://") {
            Err("is a whole address, and names are relative to where the list lies (the \
                 prefix of a manifest may be anywhere)"
                .to_owned())
        } else if name.contains(&0) {
            Err("holds a NUL, which no name can".to_owned())
        } else if name.len() > LONGEST_KEY {
            Err(format!("has {} bytes; a path has at most {LONGEST_KEY}", name.len()))
        } else {
            Ok(name)
        }
    }
}

/// What kind of list it is.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A name a line.
    Lines(Names),
    /// A SageMaker manifest, whose prefix is relative to this place.
    Manifest(Place),
    /// Rows, of which a column (this, or one of the usual names) holds the keys.
    Table(Names, Option<String>),
}

impl Form {
    /// The form that a name's suffix stands for; `None` where the name is no list's.
    pub(super) fn of(path: &Path, folder: Place, key_column: Option<&str>) -> Option<Form> {
        let names = match folder {
            Place::Local(_) => Names::Paths,
            Place::S3(_) => Names::Keys,
        };
        if is_manifest(path) {
            Some(Form::Manifest(folder))
        } else if is_table(path) {
            Some(Form::Table(names, key_column.map(str::to_owned)))
        } else if is_lines(path) {
            Some(Form::Lines(names))
        } else {
            None
        }
    }
}

/// Where the text of a list is.
#[derive(Debug)]
pub(super) enum Text {
    /// In a file, as it is when it is read.
    At(PathBuf),
    /// In a temporary file: it came from elsewhere.
    Spooled(File),
}

/// A list that was found to be well-formed.
#[derive(Debug)]
pub(super) struct List {
    /// What messages call it.
    pub(super) name: PathBuf,
    form: Form,
    text: Text,
    prefix: Option<Prefix>,
}

/// What a list says: a key, and what a table says besides.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) key: Key,
    pub(super) meta: Option<Box<str>>,
}

/// Names in byte order of the keys.
type Sequence = Box<dyn Iterator<Item = Result<Named, StoreError>> + Send>;

/// A name of a list, and whether it is looked at.
pub(super) enum Choice {
    /// It is only counted.
    Skipped(Skip),
    /// What it stands for decides.
    Look(Named),
}

impl List {
    /// A list; what is wrong with it is found before anything is planned.
    ///
    /// # Errors
    /// When it cannot be read, or is malformed.
    pub(super) fn open(name: PathBuf, form: Form, text: Text) -> Result<List, StoreError> {
        let mut list = List { name, form, text, prefix: None };
        match &list.form {
            Form::Lines(_) | Form::Manifest(_) => list.prefix = list.each(&mut |_| Ok(()))?,
            // Two rows may contradict each other.
            Form::Table(..) => {
                for row in list.sorted()? {
                    row?;
                }
            }
        }
        Ok(list)
    }

    /// What a manifest's keys are relative to.
    pub(super) fn root(&self) -> Option<&Place> {
        self.prefix.as_ref().map(|prefix| &prefix.root)
    }

    fn reader(&self) -> Result<Box<dyn Read + '_>, StoreError> {
        Ok(match &self.text {
            Text::At(path) => {
                let fault = |error| StoreError::new("read the list", &self.name, error);
                Box::new(File::open(path).map_err(fault)?)
            }
            Text::Spooled(file) => Box::new(FromStart::new(file)),
        })
    }

    /// Gives each name as bytes that sort by its key; for a manifest, its prefix too.
    fn each(
        &self,
        take: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
    ) -> Result<Option<Prefix>, StoreError> {
        let reader = self.reader()?;
        match &self.form {
            Form::Lines(names) => {
                read_lines(BufReader::new(reader), &self.name, *names, take).map(|()| None)
            }
            Form::Manifest(folder) => read_manifest(reader, &self.name, folder, take).map(Some),
            Form::Table(names, column) => {
                let column = column.as_deref();
                read_table(reader, &self.name, *names, column, |row| take(row.pack()))
                    .map(|()| None)
            }
        }
    }

    /// The names in byte order of their keys.
    ///
    /// # Errors
    /// When the list cannot be read, or has become malformed.
    pub(super) fn sorted(&self) -> Result<Sequence, StoreError> {
        let mut sorter = Sorter::new();
        let prefix = self.each(&mut |name| sorter.push(name, 0))?;
        if self.prefix.is_some() && prefix != self.prefix {
            let what = "element 1: the prefix was changed while it was in use";
            return Err(malformed(&self.name, what));
        }
        let name = self.name.clone();
        let sorted = sorter.finish().map_err(|error| StoreError::new("sort", &name, error))?;
        Ok(match &self.form {
            Form::Table(..) => Box::new(rows(sorted, name)),
            Form::Lines(_) | Form::Manifest(_) => Box::new(sorted.map(move |item| match item {
                Ok((key, _)) => Ok(Named { key: Key::new(key), meta: None }),
                Err(error) => Err(StoreError::new("sort", &name, error)),
            })),
        })
    }
}

/// The rows of a table.
fn rows(
    sorted: Sorted,
    name: PathBuf,
) -> impl Iterator<Item = Result<Named, StoreError>> + Send + use<> {
    let mut before: Option<Row> = None;
    sorted.map(move |item| {
        let (bytes, _) = item.map_err(|error| StoreError::new("sort", &name, error))?;
        let row = Row::unpack(&bytes).expect("a packed row is not one. This is a bug.");
        let key = Key::new(row.key.clone());
        if let Some(first) = before.as_ref().filter(|first| first.key == row.key) {
            if first.meta != row.meta {
                return Err(malformed(
                    &name,
                    format!(
                        "rows {} and {} are both about `{key}` and do not say the same",
                        first.number, row.number
                    ),
                ));
            }
            return Ok(Named { key, meta: row.meta.map(String::into_boxed_str) });
        }
        let meta = row.meta.clone().map(String::into_boxed_str);
        before = Some(row);
        Ok(Named { key, meta })
    })
}

/// Which of the sorted names of a list are looked at: those after a key, each once. Somebody named
/// them, so neither suffix nor dots are asked.
pub(super) fn choose<'a>(
    sorted: Sequence,
    select: &'a dyn Select,
    after: Option<&Key>,
) -> impl Iterator<Item = Result<Choice, StoreError>> + Send + 'a {
    let after = after.cloned();
    let mut previous: Option<Key> = None;
    sorted.filter_map(move |item| {
        let named = match item {
            Ok(named) => named,
            Err(error) => return Some(Err(error)),
        };
        let key = &named.key;
        if after.as_ref().is_some_and(|after| key < after) {
            return None;
        }
        if previous.as_ref() == Some(key) {
            return Some(Ok(Choice::Skipped(Skip::Duplicate)));
        }
        previous = Some(key.clone());
        if after.as_ref() == Some(key) {
            // It is planned; its doubles come after it, and so belong to the next picture.
            return None;
        }
        Some(Ok(match select.file(key) {
            Err(reason @ (Skip::Excluded | Skip::NotIncluded)) => Choice::Skipped(reason),
            _ => Choice::Look(named),
        }))
    })
}

/// The keys and meta of an earlier listing, in order, a zero byte after each: those after a key.
pub(super) fn earlier<'a>(
    file: &'a File,
    name: &str,
    after: Option<&Key>,
) -> impl Iterator<Item = Result<Named, StoreError>> + Send + use<'a> {
    let mut texts = BufReader::new(FromStart::new(file)).split(0);
    let (name, after) = (PathBuf::from(name), after.cloned());
    let pairs = std::iter::from_fn(move || {
        let key = texts.next()?;
        let meta = texts.next().unwrap_or_else(|| Ok(Vec::new()));
        Some(key.and_then(|key| Ok((Key::new(key), meta?))))
    });
    pairs.filter_map(move |pair| match pair {
        Err(error) => Some(Err(StoreError::new("read the list", &name, error))),
        Ok((key, _)) if after.as_ref().is_some_and(|after| key <= *after) => None,
        Ok((key, meta)) => {
            let meta = String::from_utf8(meta).ok().filter(|text| !text.is_empty());
            Some(Ok(Named { key, meta: meta.map(Into::into) }))
        }
    })
}

/// Reads a list of lines; gives each key to `take`.
///
/// # Errors
/// What is wrong with it, with the number of the line.
fn read_lines(
    lines: impl BufRead,
    path: &Path,
    names: Names,
    mut take: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<(), StoreError> {
    let fault = |error| StoreError::new("read the list", path, error);
    for (index, line) in lines.split(b'\n').enumerate() {
        let line = line.map_err(fault)?;
        let mut name = line.strip_suffix(b"\r").unwrap_or(&line);
        if index == 0 {
            name = name.strip_prefix("\u{feff}".as_bytes()).unwrap_or(name);
        }
        if names.plain(name).is_empty() {
            continue;
        }
        let key = names
            .key(name)
            .map_err(|what| malformed(path, format!("line {} {what}", index + 1)))?;
        take(key.to_vec()).map_err(fault)?;
    }
    Ok(())
}

/// Reads a shared file from its start without moving its cursor.
struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl FromStart<'_> {
    fn new(file: &File) -> FromStart<'_> {
        FromStart { file, offset: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
