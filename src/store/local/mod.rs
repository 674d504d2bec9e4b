//! Folders of this machine, or of a file server it has mounted.

mod disk;
mod files;
mod lists;
mod lock;
mod source;
mod table;
mod walk;

pub use disk::{Disk, DiskFile, SystemDisk};
pub use files::LocalStore;
pub use lists::is_manifest;
pub use lock::{Lock, LockError, MOST_SHARDS};
pub(crate) use source::settled;
pub use source::{IdentityKind, LocalSource, SourceOptions};
pub use table::is_table;
