//! What somebody who is not trusted may name: objects below certain folders and prefixes.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Location, Place, S3, S3Options, StoreError};

/// Folders and prefixes out of which nobody is let.
#[derive(Debug)]
pub struct Roots {
    folders: Vec<(PathBuf, OwnedFd)>,
    prefixes: Vec<Location>,
    s3: S3Options,
}

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is no location at all.
    #[error("{0}")]
    Malformed(String),
    /// It does not lie below any of the roots, or leads out of them.
    #[error("`{0}` lies outside of what this server may read (--root says what it may)")]
    Outside(String),
    /// There is no such object.
    #[error("there is no `{0}`")]
    Gone(String),
    /// Its permissions refuse us.
    #[error("`{0}` may not be read")]
    Denied(String),
    /// It is larger than was asked for.
    #[error("`{0}` has more than {1} bytes")]
    TooLarge(String, u64),
    /// The store failed, not the object.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Roots {
    /// Opens the folders among `places`, and remembers the prefixes, which are not looked at.
    ///
    /// # Errors
    /// When a folder is not there or may not be entered.
    pub fn open(places: &[Place], s3: &S3Options) -> Result<Roots, StoreError> {
        let mut roots = Roots { folders: Vec::new(), prefixes: Vec::new(), s3: s3.clone() };
        for place in places {
            match place {
                Place::S3(prefix) => roots.prefixes.push(prefix.folder()),
                Place::Local(path) => {
                    let failed = |error| StoreError::new("open the root", path, error);
                    let path = path.canonicalize().map_err(failed)?;
                    if !path.is_dir() {
                        return Err(failed(io::ErrorKind::NotADirectory.into()));
                    }
                    let folder = File::open(&path).map_err(failed)?;
                    roots.folders.push((path, folder.into()));
                }
            }
        }
        Ok(roots)
    }

    /// Whether nothing at all may be named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.prefixes.is_empty()
    }

    /// Whether what `location` names would lie below a root, as far as its name tells.
    ///
    /// # Errors
    /// [`RootError::Malformed`] and [`RootError::Outside`].
    pub fn check(&self, location: &str) -> Result<(), RootError> {
        self.find(location).map(drop)
    }

    /// The bytes of an object: `s3://bucket/key`, a path, or a path relative to the first folder.
    ///
    /// # Errors
    /// [`RootError`]: when it is outside, not there, or has more than `most` bytes.
    pub fn read(&self, location: &str, most: u64) -> Result<Vec<u8>, RootError> {
        match self.find(location)? {
            Found::Object(at) => {
                let temporary = |error| StoreError::new("make", "a temporary file", error);
                let mut file = tempfile::tempfile().map_err(temporary)?;
                let size = S3::with(&self.s3).download(&at, &mut file, most);
                size.map_err(|error| of_bucket(location, most, error))?;
                let mut bytes = Vec::new();
                file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(temporary)?;
                Ok(bytes)
            }
            Found::File(folder, name) => {
                let file = open_below(folder, &name).map_err(|errno| of_file(location, errno))?;
                let failed = |error| StoreError::new("read", location, error);
                let metadata = file.metadata().map_err(failed)?;
                if !metadata.is_file() {
                    return Err(RootError::Gone(location.to_owned()));
                }
                let mut bytes = Vec::new();
                // It may grow meanwhile.
                file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
                match bytes.len() as u64 > most {
                    true => Err(RootError::TooLarge(location.to_owned(), most)),
                    false => Ok(bytes),
                }
            }
        }
    }

    /// How many bytes an object has now, `most` or less.
    ///
    /// # Errors
    /// As [`Roots::read`].
    pub fn size(&self, location: &str, most: u64) -> Result<u64, RootError> {
        let size = match self.find(location)? {
            Found::Object(at) => {
                let size = S3::with(&self.s3).size(&at);
                size.map_err(|error| of_bucket(location, most, error))?
            }
            Found::File(folder, name) => {
                let file = open_below(folder, &name).map_err(|errno| of_file(location, errno))?;
                let failed = |error| StoreError::new("look at", location, error);
                file.metadata().map_err(failed)?.len()
            }
        };
        match size > most {
            true => Err(RootError::TooLarge(location.to_owned(), most)),
            false => Ok(size),
        }
    }

    fn find(&self, location: &str) -> Result<Found<'_>, RootError> {
        let outside = || RootError::Outside(location.to_owned());
        if location.is_empty() || location.contains('\0') {
            return Err(RootError::Malformed("the location is empty".to_owned()));
        }
        match Place::parse(Path::new(location)).map_err(RootError::Malformed)? {
            Place::S3(at) => {
                let below = |root: &&Location| {
                    root.bucket == at.bucket
                        && at.key.len() > root.key.len()
                        && at.key.starts_with(&root.key)
                };
                if !self.prefixes.iter().any(|root| below(&root)) {
                    return Err(outside());
                }
                Ok(Found::Object(at))
            }
            Place::Local(path) => {
                // What goes up could be let in by a link of the same name; nobody needs it.
                if path.components().any(|part| part == Component::ParentDir) {
                    return Err(outside());
                }
                let found = if path.is_absolute() {
                    self.folders.iter().find_map(|(root, folder)| {
                        path.strip_prefix(root).ok().map(|rest| (folder, rest.to_owned()))
                    })
                } else {
                    self.folders.first().map(|(_, folder)| (folder, path.clone()))
                };
                let (folder, name) = found.ok_or_else(outside)?;
                match name.as_os_str().is_empty() {
                    true => Err(outside()),
                    false => Ok(Found::File(folder, name)),
                }
            }
        }
    }
}

enum Found<'a> {
    Object(Location),
    File(&'a OwnedFd, PathBuf),
}

fn of_bucket(location: &str, most: u64, error: StoreError) -> RootError {
    let name = location.to_owned();
    match error.source.kind() {
        io::ErrorKind::NotFound => RootError::Gone(name),
        io::ErrorKind::PermissionDenied => RootError::Denied(name),
        io::ErrorKind::FileTooLarge => RootError::TooLarge(name, most),
        _ => RootError::Store(error),
    }
}

/// Opens what lies below a folder; the system refuses whatever would lead out of it, links too.
fn open_below(folder: &OwnedFd, name: &Path) -> Result<File, Errno> {
    let how = OpenHow::new()
        // A pipe without a writer must keep nobody waiting.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(folder, name, how).map(File::from)
}

fn of_file(location: &str, errno: Errno) -> RootError {
    let name = location.to_owned();
    match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO | Errno::ENAMETOOLONG => {
            RootError::Gone(name)
        }
        Errno::EXDEV | Errno::ELOOP => RootError::Outside(name),
        Errno::EACCES | Errno::EPERM => RootError::Denied(name),
        other => RootError::Store(StoreError::new("read", location, other.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret.jpg"), b"secret").unwrap();
        std::fs::write(root.join("sub/a.jpg"), b"picture").unwrap();
        std::os::unix::fs::symlink("../../secret.jpg", root.join("sub/up.jpg")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret.jpg"), root.join("abs.jpg")).unwrap();
        std::os::unix::fs::symlink("/proc/self/environ", root.join("env")).unwrap();
        std::os::unix::fs::symlink("sub/a.jpg", root.join("fine.jpg")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let bucket = Location { bucket: "b".into(), key: "in".into() };
        let places = [Place::Local(root.clone()), Place::S3(bucket)];
        let roots = Roots::open(&places, &S3Options::default()).unwrap();
        let read = |location: &str| roots.read(location, 100);
        let absolute = root.canonicalize().unwrap().join("sub/a.jpg");
        for fine in ["sub/a.jpg", "./sub/a.jpg", "fine.jpg", absolute.to_str().unwrap()] {
            assert_eq!(read(fine).unwrap(), b"picture", "{fine}");
        }
        let secret = dir.path().join("secret.jpg");
        for outside in [
            "../secret.jpg",
            "sub/../../secret.jpg",
            "sub/up.jpg",
            "abs.jpg",
            "env",
            "/etc/passwd",
            secret.to_str().unwrap(),
            "s3://other/in/a.jpg",
            "s3://b/inner/a.jpg",
            "s3://b/in",
        ] {
            assert!(
                matches!(read(outside), Err(RootError::Outside(_))),
                "{outside}: {:?}",
                read(outside)
            );
        }
        for gone in ["none.jpg", "sub", "pipe", "sub/a.jpg/b"] {
            assert!(matches!(read(gone), Err(RootError::Gone(_))), "{gone}: {:?}", read(gone));
        }
        for malformed in ["", "http://a/b.jpg", "a\0b", "file:///etc/passwd"] {
            assert!(matches!(read(malformed), Err(RootError::Malformed(_))), "{malformed}");
        }
        assert!(matches!(roots.read("sub/a.jpg", 6), Err(RootError::TooLarge(_, 6))));
        assert!(matches!(roots.size("sub/a.jpg", 6), Err(RootError::TooLarge(_, 6))));
        assert_eq!(roots.size("sub/a.jpg", 7).unwrap(), 7);
        assert!(matches!(roots.size("../secret.jpg", 7), Err(RootError::Outside(_))));
        assert!(roots.check("s3://b/in/a.jpg").is_ok());
        let none = Roots::open(&[], &S3Options::default()).unwrap();
        assert!(none.is_empty() && matches!(none.read("a", 1), Err(RootError::Outside(_))));
    }
}
