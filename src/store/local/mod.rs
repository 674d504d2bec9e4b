//! Folders of this machine, or of a file server it has mounted.

mod disk;
mod files;
mod lock;
mod source;
mod walk;

pub use disk::{Disk, DiskFile, SystemDisk};
pub use files::LocalStore;
pub use lock::{Lock, LockError, MOST_SHARDS};
pub(crate) use source::settled;
pub use source::{IdentityKind, LocalSource, SourceOptions};
