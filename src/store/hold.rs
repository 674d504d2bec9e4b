//! What keeps other runs off an output, whatever it lies in.

use std::path::Path;
use std::time::Duration;

use super::Location;
use super::local::{Lock, LockError};
use super::s3::{Lease, S3};

/// A held output; given back when dropped.
#[derive(Debug)]
pub enum Hold {
    /// An OS lock in a folder.
    Lock(Lock),
    /// Leases in a bucket.
    Lease(Lease),
}

impl Hold {
    /// Takes the lock file `path`, whole or for shard `index` of `count`, waiting up to `patience`.
    ///
    /// # Errors
    /// [`LockError::Held`] when the patience ran out.
    pub fn of_folder(
        path: &Path,
        shard: Option<(u32, u32)>,
        patience: Duration,
    ) -> Result<Hold, LockError> {
        Ok(Hold::Lock(match shard {
            None => Lock::acquire(path, patience)?,
            Some(shard) => Lock::acquire_shard(path, shard, patience)?,
        }))
    }

    /// Takes the leases of the output under `prefix`, for all of it or for shard `index` of `count`.
    ///
    /// # Errors
    /// [`LockError::Held`] when the patience ran out.
    pub fn of_prefix(
        s3: &S3,
        prefix: &Location,
        shard: Option<(u32, u32)>,
        patience: Duration,
    ) -> Result<Hold, LockError> {
        Lease::acquire(s3, prefix, shard, patience).map(Hold::Lease)
    }

    /// Whether this is the only run here, and no other gets in before [`Hold::open_door`].
    ///
    /// # Errors
    /// When that cannot be said.
    pub fn is_alone(&self) -> Result<bool, LockError> {
        match self {
            Hold::Lock(lock) => lock.is_alone(),
            Hold::Lease(lease) => Ok(lease.is_whole()),
        }
    }

    /// Ends a shard's hold: whether nobody is left here, and nobody gets in before
    /// [`Hold::open_door`]. A whole run goes on holding a lock, until it is dropped; a lease is given
    /// back, because a process that ends need not drop anything.
    ///
    /// # Errors
    /// When that cannot be said.
    pub fn leave(&self) -> Result<bool, LockError> {
        match self {
            Hold::Lock(lock) => lock.leave(),
            Hold::Lease(lease) => {
                lease.give_back();
                Ok(lease.is_whole())
            }
        }
    }

    /// Lets other shards in.
    ///
    /// # Errors
    /// When that fails.
    pub fn open_door(&self) -> Result<(), LockError> {
        match self {
            Hold::Lock(lock) => lock.open_door(),
            Hold::Lease(_) => Ok(()),
        }
    }

    /// Whether it is still ours; asked before anything is committed.
    ///
    /// # Errors
    /// [`LockError::Lost`] when somebody has taken it over, [`LockError::Store`] when that cannot be
    /// said.
    pub fn check(&self) -> Result<(), LockError> {
        match self {
            // The kernel takes no lock away from a process that lives.
            Hold::Lock(_) => Ok(()),
            Hold::Lease(lease) => lease.check(),
        }
    }
}
