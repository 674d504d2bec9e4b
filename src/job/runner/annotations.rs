//! Where annotated pictures go: a folder or a bucket that other jobs may use, too.

use crate::job::session::Session;
use crate::job::shard::Shard;
use std::path::PathBuf;

use crate::store::{
    Key, LocalStore, Place, S3, S3Store, Store, StoreError, annotated_name, sha256,
};

/// The place of annotated pictures.
pub(super) enum Annotations {
    /// A folder, with a folder of temporaries in it.
    Folder(LocalStore),
    /// A prefix in a bucket.
    Bucket(S3Store),
}

impl Annotations {
    /// The place that a job names, if it does.
    pub(super) fn of(session: &Session) -> Option<Annotations> {
        let spec = &session.spec;
        Some(match spec.annotate.as_ref()? {
            Place::S3(prefix) => Annotations::Bucket(S3Store::new(&S3::with(&spec.s3), prefix)),
            Place::Local(folder) => {
                // Jobs may share the folder, so each has temporaries of its own there, and so has
                // each shard.
                let mut temporaries = format!(".haul-tmp-{}", session.job.id);
                if let Some((index, count)) = session.shard.map(Shard::numbers) {
                    temporaries.push_str(&format!("-{index}-of-{count}"));
                }
                Annotations::Folder(LocalStore::new(folder, &temporaries))
            }
        })
    }

    /// The store to write them to.
    pub(super) fn store(&self) -> &dyn Store {
        match self {
            Annotations::Folder(store) => store,
            Annotations::Bucket(store) => store,
        }
    }

    /// The name of a picture there.
    pub(super) fn name(&self, key: &Key) -> PathBuf {
        let name = annotated_name(key);
        match self {
            // Names in buckets are text, and not of any length: what cannot be one gets another.
            Annotations::Bucket(store) if name.to_str().is_none() || store.is_too_long(&name) => {
                PathBuf::from(format!("{}.annotated.jpg", sha256(key.as_bytes())))
            }
            _ => name,
        }
    }

    /// Removes what interrupted writes of this job have left behind.
    pub(super) fn clear_temporaries(&self) -> Result<(), StoreError> {
        self.store().clear_temporaries()
    }

    /// Removes the folder of temporaries, if nothing is in it.
    pub(super) fn remove_temporaries(&self) {
        if let Annotations::Folder(store) = self {
            store.remove_temporaries();
        }
    }
}
