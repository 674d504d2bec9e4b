//! The file system as [`LocalStore`](super::LocalStore) sees it: one operation a method.
//!
//! Everything that a job publishes goes through here, so that a test can put a double in its place
//! which knows what is durable and what is only pending, and can crash or fail at any operation
//! (`tests/crash`). Nothing here decides anything.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::RenameFlags;

/// The operations of a file system that durable publishing is made of.
///
/// Each is one system call, or as good as one; errors are the system's.
pub trait Disk: Send + Sync + Debug {
    /// Makes one folder, whose parent must exist (mkdir).
    ///
    /// # Errors
    /// The system's; `AlreadyExists` where the name is taken.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable (fsync of the folder).
    ///
    /// # Errors
    /// The system's.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Creates an empty file under a name that must be free (O_EXCL).
    ///
    /// # Errors
    /// The system's.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file a second name, which must be free (link).
    ///
    /// # Errors
    /// The system's; `AlreadyExists` where the name is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Whether two names are one file; `false` where one of them is gone.
    ///
    /// # Errors
    /// The system's.
    fn same_file(&self, a: &Path, b: &Path) -> io::Result<bool>;

    /// Moves a file to a name, in place of what was there (rename).
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Moves a file to a name that must be free (renameat2 with RENAME_NOREPLACE).
    ///
    /// # Errors
    /// The system's; `AlreadyExists` where the name is taken.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file (unlink).
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder (rmdir).
    ///
    /// # Errors
    /// The system's.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a folder, in no particular order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
}

/// A file that was just created.
pub trait DiskFile: io::Write + Send {
    /// Makes what was written durable (fsync).
    ///
    /// # Errors
    /// The system's. What was written must then be taken for lost.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operating system's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk for SystemDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Box::new(file))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn same_file(&self, a: &Path, b: &Path) -> io::Result<bool> {
        let inode = |path: &Path| match fs::symlink_metadata(path) {
            Ok(data) => Ok(Some((data.dev(), data.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let (a, b) = (inode(a)?, inode(b)?);
        Ok(a.is_some() && a == b)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let here = nix::fcntl::AT_FDCWD;
        nix::fcntl::renameat2(here, from, here, to, RenameFlags::RENAME_NOREPLACE)?;
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
    }
}
