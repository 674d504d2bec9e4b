//! An output under a prefix: [`S3Store`].

use std::path::{Path, PathBuf};

use super::calls::{About, Got, If, Put};
use super::client::{Asked, S3};
use super::fault::{Fault, Kind};
use super::listing::Want;
use super::source::sound;
use crate::store::{Location, Owner, PutNew, Reads, Store, StoreError, Writing};

/// Objects that are read or deleted at once.
const AT_ONCE: usize = 32;

/// A prefix of a bucket that is written to.
#[derive(Clone, Debug)]
pub struct S3Store {
    s3: S3,
    prefix: Location,
    content_type: Option<String>,
}

impl S3Store {
    /// The store under a prefix; a `/` is put after it if it has none.
    #[must_use]
    pub fn new(s3: &S3, prefix: &Location) -> S3Store {
        S3Store { s3: s3.clone(), prefix: prefix.folder(), content_type: None }
    }

    /// The same store, whose new objects say that they are of this media type.
    #[must_use]
    pub fn with_content_type(self, content_type: &str) -> S3Store {
        S3Store { content_type: Some(content_type.to_owned()), ..self }
    }

    fn about(&self, job: Option<&str>) -> About {
        About { job: job.map(str::to_owned), content_type: self.content_type.clone() }
    }

    /// The prefixes directly below this one, each as a name without the `/` at its end.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn folders(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for page in self.s3.list(&self.prefix, Want { folders: true, ..Want::default() }) {
            let page = page.map_err(|fault| fault.error("list", &self.prefix))?;
            for prefix in page.prefixes {
                let name = prefix.get(self.prefix.key.len()..).unwrap_or_default();
                let name = name.strip_suffix(b"/").unwrap_or(name);
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(names)
    }

    /// Whether an object of this name would have a longer key than objects may have.
    #[must_use]
    pub fn is_too_long(&self, name: &Path) -> bool {
        self.at(name).key.len() > 1024
    }

    /// Begins to read an object.
    fn ask(&self, at: &Location) -> Asked<Result<Got, Fault>> {
        let (s3, of) = (self.s3.clone(), at.clone());
        self.s3.ask(async move { s3.get(&of, None, None).await })
    }

    /// Its bytes, once they are there and are what their tag says; nothing where there is none.
    fn read_of(
        &self,
        first: Asked<Result<Got, Fault>>,
        at: &Location,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let broken = || Fault::new(Kind::Broken, "its bytes are not what its tag says");
        match sound(&self.s3, first, || self.ask(at), broken) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(fault) if fault.kind == Kind::Missing => Ok(None),
            Err(fault) => Err(fault.error("read", at)),
        }
    }

    fn at(&self, name: &Path) -> Location {
        self.prefix.join(&name.to_string_lossy())
    }

    fn put(&self, name: &Path, bytes: &[u8], job: Option<&str>) -> Result<PutNew, StoreError> {
        let at = self.at(name);
        let (s3, to, copy) = (self.s3.clone(), at.clone(), bytes.to_vec());
        let about = self.about(job);
        let put = self.s3.wait(async move { s3.put(&to, &copy, &If::Free, &about).await });
        match put.map_err(|fault| fault.error("write", &at).writing(bytes.len()))? {
            Put::Done(_) => Ok(PutNew::Created),
            // Our own write may have been done, and its answer lost. If the bytes are another's,
            // they are as good.
            Put::Not { doubt: true } if self.read(name)?.as_deref() == Some(bytes) => {
                self.s3.0.counts.add(|traffic| traffic.answers_lost += 1);
                Ok(PutNew::Created)
            }
            Put::Not { .. } => Ok(PutNew::Exists),
        }
    }
}

impl Store for S3Store {
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError> {
        self.put(name, bytes, None)
    }

    fn put_new_of(&self, name: &Path, bytes: &[u8], job: &str) -> Result<PutNew, StoreError> {
        self.put(name, bytes, Some(job))
    }

    fn owner(&self, name: &Path) -> Result<Owner, StoreError> {
        let at = self.at(name);
        let (s3, of) = (self.s3.clone(), at.clone());
        let head = self.s3.wait(async move { s3.look(&of).await });
        let head = head.map_err(|fault| fault.error("look at", &at))?;
        Ok(head.job.map_or(Owner::Nobody, Owner::Job))
    }

    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let at = self.at(name);
        let (s3, to, copy) = (self.s3.clone(), at.clone(), bytes.to_vec());
        let about = self.about(None);
        let put = self.s3.wait(async move { s3.put(&to, &copy, &If::Any, &about).await });
        put.map(drop).map_err(|fault| fault.error("write", &at).writing(bytes.len()))
    }

    fn begin_replace(
        &self,
        name: &Path,
        bytes: Vec<u8>,
        keep: Box<dyn Send>,
    ) -> Result<Writing, StoreError> {
        let (at, len) = (self.at(name), bytes.len());
        let (s3, to, about) = (self.s3.clone(), at.clone(), self.about(None));
        let put = self.s3.start(async move {
            let put = s3.put(&to, &bytes, &If::Any, &about).await;
            drop(keep);
            put
        });
        Ok(Writing::under_way(move || {
            let ended = put.recv().expect("the thread of S3 has ended. This is a bug.");
            ended.map(drop).map_err(|fault| fault.error("write", &at).writing(len))
        }))
    }

    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let at = self.at(name);
        let first = self.ask(&at);
        self.read_of(first, &at)
    }

    fn read_each<'a>(&'a self, names: &'a [PathBuf]) -> Reads<'a> {
        let mut under_way = std::collections::VecDeque::new();
        let mut rest = names.iter();
        Box::new(std::iter::from_fn(move || {
            while under_way.len() < AT_ONCE
                && let Some(name) = rest.next()
            {
                let at = self.at(name);
                let reading = self.ask(&at);
                under_way.push_back((at, reading));
            }
            let (at, reading) = under_way.pop_front()?;
            Some(self.read_of(reading, &at))
        }))
    }

    fn list(&self, folder: &Path) -> Result<Vec<String>, StoreError> {
        let at = match folder.as_os_str().is_empty() {
            true => self.prefix.clone(),
            false => self.at(folder).folder(),
        };
        let mut names = Vec::new();
        for page in self.s3.list(&at, Want { folders: true, ..Want::default() }) {
            let page = page.map_err(|fault| fault.error("list", &at))?;
            let keys = page.entries.into_iter().map(|entry| entry.key);
            for key in keys.chain(page.prefixes) {
                let name = key.get(at.key.len()..).unwrap_or_default();
                let name = name.strip_suffix(b"/").unwrap_or(name);
                // The object that stands for the folder itself.
                if !name.is_empty() {
                    names.push(String::from_utf8_lossy(name).into_owned());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn delete(&self, names: &[PathBuf]) -> Result<(), StoreError> {
        for some in names.chunks(AT_ONCE) {
            let deletions: Vec<_> = some
                .iter()
                .map(|name| {
                    let at = self.at(name);
                    let (s3, of) = (self.s3.clone(), at.clone());
                    (at, self.s3.start(async move { s3.delete(&of).await }))
                })
                .collect();
            for (at, deletion) in deletions {
                let ended = deletion.recv().expect("the thread of S3 has ended. This is a bug.");
                ended.map_err(|fault| fault.error("delete", &at))?;
            }
        }
        Ok(())
    }

    fn settle(&self, _: &Path) -> Result<(), StoreError> {
        // What a bucket shows, it keeps.
        Ok(())
    }

    fn clear_temporaries(&self) -> Result<(), StoreError> {
        // A write is one request: there are none.
        Ok(())
    }

    fn describe(&self) -> String {
        // Names are put behind it, with a `/` between.
        let prefix = self.prefix.to_string();
        prefix.strip_suffix('/').unwrap_or(&prefix).to_owned()
    }
}
