//! Copying an object into a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};

use super::client::S3;
use super::fault::Kind;
use crate::store::{Location, StoreError};

/// An object is read in pieces of this size,
const PIECE: u64 = 8 << 20;
/// so many at a time.
const AT_ONCE: usize = 4;

impl S3 {
    /// How many bytes an object has.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn size(&self, at: &Location) -> Result<u64, StoreError> {
        let (s3, of) = (self.clone(), at.clone());
        let head = self.wait(async move { s3.look(&of).await });
        head.map(|head| head.size).map_err(|fault| fault.error("look at", at))
    }

    /// Writes an object into a file, where that stands, and gives its size: `most` or less. All of
    /// it is of one version. In memory are a few pieces of it.
    ///
    /// # Errors
    /// When the object cannot be read, has more bytes, or is written to meanwhile; when the file
    /// cannot be written to.
    pub fn download(&self, at: &Location, to: &mut File, most: u64) -> Result<u64, StoreError> {
        let (s3, of) = (self.clone(), at.clone());
        let head = self.wait(async move { s3.look(&of).await });
        let head = head.map_err(|fault| fault.error("read", at))?;
        let size = head.size;
        if size > most {
            let what = format!("it has {size} bytes, more than {most}");
            let error = io::Error::new(io::ErrorKind::FileTooLarge, what);
            return Err(StoreError::new("read", at.to_string(), error));
        }
        // Without a tag nothing says that two pieces are of one version.
        let piece = if head.etag.is_some() { PIECE } else { size.max(1) };
        let mut starts = (0..size.div_ceil(piece)).map(|index| index * piece);
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < AT_ONCE
                && let Some(first) = starts.next()
            {
                let (s3, of, tag) = (self.clone(), at.clone(), head.etag.clone());
                let last = (first + piece).min(size) - 1;
                under_way.push_back(self.ask(async move {
                    let len = Some(last - first + 1);
                    s3.get_range(&of, first, Some(last), len, tag.as_deref()).await
                }));
            }
            let Some(reading) = under_way.pop_front() else { return Ok(size) };
            let got = reading.wait().map_err(|fault| match fault.kind {
                Kind::Precondition => {
                    let error = io::Error::other("it was replaced meanwhile (try again)");
                    StoreError::new("read", at.to_string(), error)
                }
                _ => fault.error("read", at),
            })?;
            to.write_all(&got.bytes).map_err(|error| {
                StoreError::new("copy", at.to_string(), error)
                    .writing(usize::try_from(size).unwrap_or(usize::MAX))
            })?;
        }
    }
}
