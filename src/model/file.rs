//! A model's file, wherever it lies: on this machine, or in a bucket.

use std::fs::File;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};

use super::error::ModelError;
use super::packed::{Pack, open_pack, pack_in};
use super::read::{MAX_FILE, Model, read, read_from};
use crate::store::{Place, S3, S3Options, StoreError};

/// The file that somebody named as a model: a checkpoint, an archive with one in it, or a pack.
///
/// What is in a bucket was copied into a temporary file that has no name and goes with this value.
#[derive(Debug)]
pub struct ModelFile {
    given: PathBuf,
    copy: Option<File>,
}

impl ModelFile {
    /// The file at a path, of which nothing is read yet, or a copy of the object at an `s3://`
    /// address.
    ///
    /// # Errors
    /// [`ModelError::Address`] when it is neither, [`ModelError::Store`] when the object cannot be
    /// read or copied.
    pub fn find(given: &Path, s3: &S3Options) -> Result<ModelFile, ModelError> {
        let place = Place::parse(given).map_err(ModelError::Address)?;
        let copy = match &place {
            Place::Local(_) => None,
            Place::S3(at) => {
                let fault = |error| StoreError::new("make", "a temporary file", error);
                let mut file = tempfile::tempfile().map_err(fault).map_err(ModelError::Store)?;
                S3::with(s3).download(at, &mut file, MAX_FILE).map_err(ModelError::Store)?;
                Some(file)
            }
        };
        Ok(ModelFile { given: given.to_owned(), copy })
    }

    /// The path or address that was given, for messages.
    #[must_use]
    pub fn given(&self) -> &Path {
        &self.given
    }

    /// The path, where the file is one of this machine and packs may lie beside it.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        self.copy.is_none().then_some(&*self.given)
    }

    /// Reads it as a checkpoint, or as an archive with one.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&self) -> Result<Model, ModelError> {
        match &self.copy {
            None => read(&self.given),
            Some(copy) => read_from(self.start_of(copy)?, &self.given),
        }
    }

    /// Opens it as a pack; `None` if it does not begin like one.
    ///
    /// # Errors
    /// As [`open_pack`].
    pub fn open_pack(&self) -> Result<Option<Pack>, ModelError> {
        match &self.copy {
            None => open_pack(&self.given),
            Some(copy) => pack_in(self.start_of(copy)?, &self.given),
        }
    }

    fn start_of(&self, copy: &File) -> Result<File, ModelError> {
        let again = || -> io::Result<File> {
            let mut file = copy.try_clone()?;
            file.rewind()?;
            Ok(file)
        };
        again().map_err(|source| ModelError::Read { path: self.given.clone(), source })
    }
}
