//! Where lines go that nobody waits for.

use std::path::PathBuf;

use crate::serve::problem::Problem;
use crate::store::{
    Key, LocalStore, Location, Place, S3, S3Options, S3Store, Store, name_of, sha256,
};

/// What an output's name ends in, as with batch transform.
const SUFFIX: &str = ".out";

/// A folder or prefix that lines are written to, each as an object of its own: `<key>.out`.
#[derive(Clone, Debug)]
pub(super) enum Output {
    /// A folder.
    Folder(PathBuf),
    /// A prefix.
    Bucket(Location, S3Store),
}

impl Output {
    /// The output at a place; nothing is touched yet.
    pub(super) fn at(place: &Place, s3: &S3Options) -> Output {
        match place {
            Place::S3(prefix) => {
                Output::Bucket(prefix.folder(), S3Store::new(&S3::with(s3), prefix))
            }
            Place::Local(folder) => Output::Folder(folder.clone()),
        }
    }

    /// Whether an object of this bucket is one that was written here: to take it for a picture
    /// would make another, and so on without end.
    pub(super) fn is_own(&self, bucket: &str, key: &str) -> bool {
        match self {
            Output::Folder(_) => false,
            Output::Bucket(prefix, _) => {
                prefix.bucket == bucket && key.starts_with(&prefix.key) && key.ends_with(SUFFIX)
            }
        }
    }

    /// Writes a picture's line, in place of an older one of the same key: a message may come twice.
    /// Blocks. Gives the name of what was written.
    ///
    /// # Errors
    /// [`Problem`] of the store.
    pub(super) fn write(&self, key: &str, line: &[u8]) -> Result<String, Problem> {
        let name = self.name(key);
        let (whole, written) = match self {
            Output::Folder(folder) => {
                // A new one each time, for it remembers folders that it has seen, and a function
                // lives long enough for somebody to remove them. So has it temporaries of its own,
                // which go with it.
                let temporaries = format!(".haul-tmp-{}", uuid::Uuid::new_v4());
                let store = LocalStore::new(folder, &temporaries);
                let written = store.replace(&name, line);
                store.remove_temporaries();
                (folder.join(&name).to_string_lossy().into_owned(), written)
            }
            Output::Bucket(prefix, store) => {
                (prefix.join(&name.to_string_lossy()).to_string(), store.replace(&name, line))
            }
        };
        written.map(|()| whole).map_err(|error| {
            Problem::new(http::StatusCode::BAD_GATEWAY, "store", error.to_string())
        })
    }

    fn name(&self, key: &str) -> PathBuf {
        let Output::Bucket(_, store) = self else { return name_of(&Key::from(key), SUFFIX) };
        let name = PathBuf::from(format!("{key}{SUFFIX}"));
        match store.is_too_long(&name) {
            true => PathBuf::from(format!("{}{SUFFIX}", sha256(key.as_bytes()))),
            false => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let output = Output::at(&Place::Local(folder.clone()), &S3Options::default());
        for key in ["a/b.jpg", "../../up.jpg", "/etc/x", "a//b", ""] {
            output.write(key, b"line\n").unwrap();
            // Again, as when a message comes twice.
            let named = output.write(key, b"line\n").unwrap();
            assert!(std::path::Path::new(&named).starts_with(&folder), "{named}");
        }
        assert_eq!(std::fs::read(folder.join("a/b.jpg.out")).unwrap(), b"line\n");
        let beside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(beside.len(), 1, "{beside:?}");
    }

    #[test]
    fn its_own_objects_are_known() {
        let prefix = Location { bucket: "b".into(), key: "out".into() };
        let output = Output::at(&Place::S3(prefix), &S3Options::default());
        assert!(output.is_own("b", "out/a.jpg.out"));
        assert!(!output.is_own("b", "out/a.jpg"), "somebody else put it there");
        assert!(!output.is_own("c", "out/a.jpg.out") && !output.is_own("b", "in/a.jpg.out"));
        assert_eq!(output.name("a/b.jpg"), PathBuf::from("a/b.jpg.out"));
        assert!(output.name(&"k".repeat(1024)).as_os_str().len() < 100);
    }
}
