//! Putting what a request came to where it was promised: whole, and never over what is there.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::entry::Target;
use crate::store::{LocalStore, Place, PutNew, S3, S3Options, S3Store, Store, StoreError, sha256};

/// How a publication ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// The object is there, with our bytes.
    Ours,
    /// There can be no such object; with the reason.
    Never(String),
}

/// Where objects are put.
#[derive(Debug)]
pub(super) struct Places {
    s3: S3Options,
    /// The folder for temporary files in an output that is a folder. No other server has this one.
    temporaries: String,
}

impl Places {
    /// Places for the server that has this state folder.
    pub(super) fn new(s3: &S3Options, state: &Path) -> Places {
        let digest = sha256(state.as_os_str().as_encoded_bytes());
        Places { s3: s3.clone(), temporaries: format!(".haul-async-{}", &digest[..12]) }
    }

    /// Makes a place ready; clears what a server that was killed has left in it.
    ///
    /// # Errors
    /// When its folder cannot be made or looked into.
    pub(super) fn prepare(&self, place: &str) -> Result<(), StoreError> {
        if let Some(folder) = folder(place) {
            let failed = |error| StoreError::new("make the folder", &folder, error);
            std::fs::create_dir_all(&folder).map_err(failed)?;
            LocalStore::new(folder, &self.temporaries).clear_temporaries()?;
        }
        Ok(())
    }

    /// Publishes an object, unless it is there already.
    ///
    /// # Errors
    /// When the store cannot be written to now.
    pub(super) fn put(
        &self,
        target: &Target,
        content_type: &str,
        bytes: &[u8],
    ) -> Result<Put, StoreError> {
        let store: Box<dyn Store> = match folder(&target.place) {
            Some(folder) => Box::new(LocalStore::new(folder, &self.temporaries)),
            None => match Place::parse(Path::new(&target.place)) {
                Ok(Place::S3(prefix)) => Box::new(
                    S3Store::new(&S3::with(&self.s3), &prefix).with_content_type(content_type),
                ),
                Ok(Place::Local(_)) | Err(_) => {
                    return Ok(Put::Never(format!("`{}` is no place", target.place)));
                }
            },
        };
        let name = Path::new(&target.name);
        let there = match store.put_new(name, bytes) {
            Ok(PutNew::Created) => return Ok(Put::Ours),
            // Ours from before the server was killed, or a stranger's.
            Ok(PutNew::Exists) => store.read(name),
            Err(error) => Err(error),
        };
        match there {
            Ok(Some(there)) if there == bytes => Ok(Put::Ours),
            Ok(Some(_)) => {
                Ok(Put::Never(format!("`{}` is there already, and not ours", target.location())))
            }
            Ok(None) => {
                let gone = std::io::Error::other("it was there, and is not there any more");
                Err(StoreError::new("read", target.location(), gone))
            }
            // A file where a folder must be, or the other way round, stays so; but not where it is
            // the output itself that is no folder any more.
            Err(error)
                if matches!(
                    error.source.kind(),
                    ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename
                ) && folder(&target.place).is_none_or(|folder| folder.is_dir()) =>
            {
                Ok(Put::Never(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

/// The folder that a place is, if it is one.
fn folder(place: &str) -> Option<PathBuf> {
    (!place.starts_with("s3://")).then(|| PathBuf::from(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out").to_str().unwrap().to_owned();
        let places = Places::new(&S3Options::default(), Path::new("/state"));
        places.prepare(&place).unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let target = Target { place: place.clone(), name: name.to_owned() };
            places.put(&target, "text/plain", bytes).unwrap()
        };
        assert_eq!(put("a/b.out", b"one"), Put::Ours);
        assert_eq!(put("a/b.out", b"one"), Put::Ours);
        assert!(matches!(put("a/b.out", b"two"), Put::Never(_)));
        assert!(matches!(put("a", b"two"), Put::Never(_)), "a folder");
        assert!(matches!(put("a/b.out/c", b"two"), Put::Never(_)), "below a file");
        assert_eq!(std::fs::read(dir.path().join("out/a/b.out")).unwrap(), b"one");
        // An output that is gone may come back.
        std::fs::rename(dir.path().join("out"), dir.path().join("away")).unwrap();
        std::fs::write(dir.path().join("out"), b"").unwrap();
        let target = Target { place, name: "c.out".to_owned() };
        assert!(places.put(&target, "text/plain", b"three").is_err());
    }
}
