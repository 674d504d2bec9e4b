//! Writing into a folder: [`LocalStore`].

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::RenameFlags;

use crate::store::{Key, PutNew, Store, StoreError};

/// A folder as a [`Store`].
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    temporaries: PathBuf,
    // Process numbers repeat between hosts and containers that share a folder.
    nonce: u64,
    serial: AtomicU64,
    made: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// A store in the folder `root`, which need not exist yet; nothing is touched.
    ///
    /// Temporary files go to `root/temporaries`, which must be on the same file system.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, temporaries: &str) -> LocalStore {
        let root = root.into();
        LocalStore {
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
        let _ = fs::remove_dir(&self.temporaries);
    }

    /// Makes a folder and its missing parents, each durable in its own parent.
    fn make_folder(&self, folder: &Path) -> Result<(), StoreError> {
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if made.contains(folder) {
            return Ok(());
        }
        fs::create_dir_all(folder)
            .map_err(|error| StoreError::new("make the folder", folder, error))?;
        // Also those that were there: whoever made them may have died before this.
        for folder in folder.ancestors() {
            if !folder.starts_with(&self.root) || !made.insert(folder.to_owned()) {
                break;
            }
            if let Some(parent) = folder.parent() {
                sync_folder(parent)?;
            }
        }
        Ok(())
    }

    /// Writes a temporary file, durably, and gives its path.
    fn stage(&self, target: &Path, bytes: &[u8]) -> Result<Staged, StoreError> {
        self.make_folder(&self.temporaries)?;
        if let Some(parent) = target.parent() {
            self.make_folder(parent)?;
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.temporaries.join(format!("{:016x}-{serial}", self.nonce));
        let full = |error| StoreError::new("write", target, error).writing(bytes.len());
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(full)?;
        let staged = Staged { path };
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(full)?;
        Ok(staged)
    }
}

/// A temporary file that goes when it is dropped.
struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already after a rename; if it cannot be removed, the next run clears it.
        let _ = fs::remove_file(&self.path);
    }
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::new("make durable", folder, error))
}

impl Store for LocalStore {
    fn put_new(&self, name: &Path, bytes: &[u8]) -> Result<PutNew, StoreError> {
        let target = self.root.join(name);
        let fault = |error| StoreError::new("publish", &target, error).writing(bytes.len());
        let staged = self.stage(&target, bytes)?;
        let outcome = match fs::hard_link(&staged.path, &target) {
            Ok(()) => PutNew::Created,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Over NFS a lost answer makes the client repeat a link that had succeeded.
                let ours = fs::metadata(&staged.path).map_err(fault)?;
                match fs::symlink_metadata(&target) {
                    Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                        PutNew::Created
                    }
                    _ => PutNew::Exists,
                }
            }
            Err(error) if links_refused(&error) => {
                rename_new(&staged.path, &target).map_err(fault)?
            }
            Err(error) => return Err(fault(error)),
        };
        // Also where the name existed: whoever put it may not have got this far.
        if let Some(parent) = target.parent() {
            sync_folder(parent)?;
        }
        Ok(outcome)
    }

    fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let target = self.root.join(name);
        let staged = self.stage(&target, bytes)?;
        fs::rename(&staged.path, &target)
            .map_err(|error| StoreError::new("replace", &target, error).writing(bytes.len()))?;
        target.parent().map_or(Ok(()), sync_folder)
    }

    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.root.join(name);
        match fs::read(&path) {
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
        let fault = |error| StoreError::new("list", &path, error);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(fault)?,
        };
        let mut names = entries
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<String>>>()
            .map_err(fault)?;
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, name: &Path) -> Result<(), StoreError> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::new("delete", path, error))
            }
            _ => Ok(()),
        }
    }

    fn clear_temporaries(&self) -> Result<(), StoreError> {
        let fault = |error| StoreError::new("clear", &self.temporaries, error);
        let entries = match fs::read_dir(&self.temporaries) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(fault)?,
        };
        for entry in entries {
            fs::remove_file(entry.map_err(fault)?.path()).map_err(fault)?;
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

/// The second way to create a name only if it is free.
fn rename_new(from: &Path, to: &Path) -> io::Result<PutNew> {
    let here = nix::fcntl::AT_FDCWD;
    match nix::fcntl::renameat2(here, from, here, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(PutNew::Created),
        Err(Errno::EEXIST) => Ok(PutNew::Exists),
        Err(error) => Err(error.into()),
    }
}

/// Where the annotated copy of a picture goes: `<key>.annotated.jpg`.
///
/// A segment that is empty, `.` or `..` would leave the folder or name another file, so it is
/// percent-encoded; a segment that starts with `%` has that encoded too, so that no two keys meet.
#[must_use]
pub fn annotated_name(key: &Key) -> PathBuf {
    let mut name: Vec<u8> = Vec::with_capacity(key.as_bytes().len() + 16);
    for (index, segment) in key.as_bytes().split(|&b| b == b'/').enumerate() {
        if index > 0 {
            name.push(b'/');
        }
        match segment {
            b"" => name.extend(b"%"),
            b"." => name.extend(b"%2E"),
            b".." => name.extend(b"%2E%2E"),
            [b'%', rest @ ..] => {
                name.extend(b"%25");
                name.extend(rest);
            }
            other => name.extend(other),
        }
    }
    name.extend(b".annotated.jpg");
    debug_assert!(!Path::new(std::ffi::OsStr::from_bytes(&name)).is_absolute());
    PathBuf::from(OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Component;

    fn name(key: &str) -> String {
        annotated_name(&Key::from(key)).to_str().unwrap().to_owned()
    }

    #[test]
    fn annotated_names_stay_inside_and_apart() {
        assert_eq!(name("a/b.jpg"), "a/b.jpg.annotated.jpg");
        assert_eq!(name("../../x.jpg"), "%2E%2E/%2E%2E/x.jpg.annotated.jpg");
        assert_eq!(name("/etc/x"), "%/etc/x.annotated.jpg");
        assert_eq!(name("a//b"), "a/%/b.annotated.jpg");
        let keys = ["..", "%2E%2E", "%252E%2E", ".", "%2E", "", "%", "%25", "a//b", "a/%/b"];
        let mut names: Vec<String> = keys.iter().map(|k| name(k)).collect();
        for name in &names {
            let inside = |c: Component<'_>| matches!(c, Component::Normal(_));
            assert!(Path::new(name).components().all(inside), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), keys.len());
    }

    #[test]
    fn put_new_without_hard_links_uses_rename_that_does_not_replace() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&a, "1").unwrap();
        fs::write(&b, "2").unwrap();
        assert_eq!(rename_new(&a, &c).unwrap(), PutNew::Created);
        assert_eq!(rename_new(&b, &c).unwrap(), PutNew::Exists);
        assert_eq!(fs::read(&c).unwrap(), b"1");
    }
}
