//! Opens an input, wherever it lies.

use std::sync::Arc;

use super::{LocalSource, Place, S3, S3Source, S3SourceOptions, Source, SourceOptions, StoreError};

/// Opens a folder, a prefix, a picture or a list. Where a list lies and where its pictures lie are
/// two things: a manifest on a disk may name objects of a bucket.
///
/// # Errors
/// When the input does not exist, may not be read, or is a list that is malformed.
pub fn open_input(
    input: &Place,
    s3: &S3,
    folder: SourceOptions,
    bucket: S3SourceOptions,
) -> Result<Arc<dyn Source>, StoreError> {
    let path = match input {
        Place::S3(at) => return Ok(Arc::new(S3Source::open(s3, at, bucket)?)),
        Place::Local(path) => path,
    };
    let Some(list) = LocalSource::list_at(path, folder.key_column.as_deref())? else {
        return Ok(Arc::new(LocalSource::open(path, folder)?));
    };
    Ok(match list.root().cloned() {
        Some(Place::S3(root)) => Arc::new(S3Source::from_list(s3, list, &root, bucket)?),
        _ => Arc::new(LocalSource::from_list(list, path, folder)?),
    })
}
