//! Writing into a folder: [`LocalStore`].

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::disk::{Disk, SystemDisk};
use crate::store::{PutNew, Store, StoreError};

/// A folder as a [`Store`].
#[derive(Debug)]
pub struct LocalStore {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    temporaries: PathBuf,
    // Process numbers repeat between hosts and containers that share a folder.
    nonce: u64,
    serial: AtomicU64,
    /// Folders that are there, durably.
    made: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// A store in the folder `root`, which need not exist yet; nothing is touched.
    ///
    /// Temporary files go to `root/temporaries`, which must be on the same file system.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, temporaries: &str) -> LocalStore {
        LocalStore::on(Arc::new(SystemDisk), root, temporaries)
    }

    /// The same on any [`Disk`].
    #[must_use]
    pub fn on(disk: Arc<dyn Disk>, root: impl Into<PathBuf>, temporaries: &str) -> LocalStore {
        let root = root.into();
        LocalStore {
            disk,
            temporaries: root.join(temporaries),
            root,
            nonce: RandomState::new().hash_one(std::process::id()),
            serial: AtomicU64::new(0),
            made: Mutex::default(),
        }
    }

    /// Removes the folder of temporaries if nothing is in it: for folders that people look into.
    pub fn remove_temporaries(&self) {
        // Still in use by another run, or never made: both are fine.
        let _ = self.disk.remove_folder(&self.temporaries);
    }

    /// Makes a folder and its missing parents, each durable in its own parent.
    fn make_folder(&self, folder: &Path) -> Result<(), StoreError> {
        // Held throughout: nobody may write below a folder that is not durable yet.
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let missing: Vec<&Path> =
            folder.ancestors().take_while(|folder| !made.contains(*folder)).collect();
        for folder in missing.into_iter().rev() {
            self.make_one_folder(folder)?;
            made.insert(folder.to_owned());
        }
        Ok(())
    }

    fn make_one_folder(&self, folder: &Path) -> Result<(), StoreError> {
        let Some(parent) = folder.parent() else { return Ok(()) };
        let exists = match self.disk.make_folder(folder) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            // Of what is above the output only this counts: can we go on below it?
            Err(_) if !folder.starts_with(&self.root) && self.disk.list(folder).is_ok() => true,
            Err(error) => return Err(StoreError::new("make the folder", folder, error)),
        };
        // Also where it was there: whoever made it may have died before this.
        match self.sync_folder(parent) {
            // A folder above the output that was there may be one that we cannot even open.
            Err(_) if exists && !parent.starts_with(&self.root) && folder != self.root => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&self, folder: &Path) -> Result<(), StoreError> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        self.disk
            .sync_folder(folder)
            .map_err(|error| StoreError::new("make durable", folder, error))
    }

    fn sync_if_there(&self, folder: &Path) -> Result<(), StoreError> {
        match self.sync_folder(folder) {
            // Without the folder there is no name in it either.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Writes a temporary file, durably, and gives its path.
    fn stage(&self, target: &Path, bytes: &[u8]) -> Result<Staged<'_>, StoreError> {
        self.make_folder(&self.temporaries)?;
        if let Some(parent) = target.parent() {
            self.make_folder(parent)?;
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.temporaries.join(format!("{:016x}-{serial}", self.nonce));
        let full = |error| StoreError::new("write", target, error).writing(bytes.len());
        let mut file = self.disk.create(&path).map_err(full)?;
        let staged = Staged { disk: &*self.disk, path };
        file.write_all(bytes).and_then(|()| file.sync()).map_err(full)?;
        Ok(staged)
    }
}

/// A temporary file that goes when it is dropped.
struct Staged<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        // Gone already after a rename; if it cannot be removed, the next run clears it.
        let _ = self.disk.remove(&self.path);
    }
}

impl Store for LocalStore {
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError> {
        let target = self.root.join(name);
        let fault = |error| StoreError::new("publish", &target, error).writing(bytes.len());
        let staged = self.stage(&target, bytes)?;
        let taken = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(PutNew::Exists),
            _ => Err(error),
        };
        let outcome = match self.disk.link(&staged.path, &target) {
            Ok(()) => PutNew::Created,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Over NFS a lost answer makes the client repeat a link that had succeeded.
                match self.disk.same_file(&staged.path, &target).map_err(fault)? {
                    true => PutNew::Created,
                    false => PutNew::Exists,
                }
            }
            Err(error) if links_refused(&error) => {
                let renamed = self.disk.rename_new(&staged.path, &target);
                renamed.map(|()| PutNew::Created).or_else(taken).map_err(fault)?
            }
            Err(error) => return Err(fault(error)),
        };
        // Also where the name existed: whoever put it may not have got this far.
        if let Some(parent) = target.parent() {
            self.sync_folder(parent)?;
        }
        Ok(outcome)
    }

    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let target = self.root.join(name);
        let staged = self.stage(&target, bytes)?;
        self.disk
            .rename(&staged.path, &target)
            .map_err(|error| StoreError::new("replace", &target, error).writing(bytes.len()))?;
        target.parent().map_or(Ok(()), |parent| self.sync_folder(parent))
    }

    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.root.join(name);
        match self.disk.read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(StoreError::new("read", path, error)),
        }
    }

    fn list(&self, folder: &Path) -> Result<Vec<String>, StoreError> {
        let path = self.root.join(folder);
        let entries = match self.disk.list(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| StoreError::new("list", &path, error))?,
        };
        let mut names: Vec<String> =
            entries.into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, names: &[PathBuf]) -> Result<(), StoreError> {
        let mut folders = HashSet::new();
        for name in names {
            let path = self.root.join(name);
            match self.disk.remove(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::new("delete", path, error)),
                Ok(()) => {}
            }
            // Also where it was gone: whoever removed it may not have got this far.
            folders.extend(path.parent().map(Path::to_owned));
        }
        folders.iter().try_for_each(|folder| self.sync_if_there(folder))
    }

    fn settle(&self, folder: &Path) -> Result<(), StoreError> {
        self.sync_if_there(&self.root.join(folder))
    }

    fn clear_temporaries(&self) -> Result<(), StoreError> {
        let fault = |error| StoreError::new("clear", &self.temporaries, error);
        let entries = match self.disk.list(&self.temporaries) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(fault)?,
        };
        for entry in entries {
            self.disk.remove(&self.temporaries.join(entry)).map_err(fault)?;
        }
        Ok(())
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }
}

/// Whether a file system does not know hard links (FAT, some FUSE and cloud mounts).
fn links_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK)
    )
}

#[cfg(test)]
mod tests {

    use super::*;

    /// A disk that knows no hard links, as FAT and some network mounts.
    #[derive(Debug)]
    struct NoLinks(SystemDisk);

    impl Disk for NoLinks {
        fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
            Err(Errno::EPERM.into())
        }
        fn make_folder(&self, path: &Path) -> io::Result<()> {
            self.0.make_folder(path)
        }
        fn sync_folder(&self, path: &Path) -> io::Result<()> {
            self.0.sync_folder(path)
        }
        fn create(&self, path: &Path) -> io::Result<Box<dyn crate::store::DiskFile>> {
            self.0.create(path)
        }
        fn same_file(&self, a: &Path, b: &Path) -> io::Result<bool> {
            self.0.same_file(a, b)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.0.rename(from, to)
        }
        fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.0.rename_new(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.0.remove(path)
        }
        fn remove_folder(&self, path: &Path) -> io::Result<()> {
            self.0.remove_folder(path)
        }
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            self.0.read(path)
        }
        fn list(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
            self.0.list(path)
        }
    }

    #[test]
    fn put_new_without_hard_links_uses_rename_that_does_not_replace() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::on(Arc::new(NoLinks(SystemDisk)), dir.path(), "tmp");
        assert_eq!(store.put_new(Path::new("a"), b"1").unwrap(), PutNew::Created);
        assert_eq!(store.put_new(Path::new("a"), b"2").unwrap(), PutNew::Exists);
        assert_eq!(store.read(Path::new("a")).unwrap().unwrap(), b"1");
        assert!(store.list(Path::new("tmp")).unwrap().is_empty());
    }
}
