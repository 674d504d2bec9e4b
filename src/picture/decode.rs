//! From bytes to an upright RGB picture.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::PictureError;
use super::probe::{self, Format, Header, Limits};
use super::{jpeg, orient, other};

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels of the upright picture.
    pub width: u32,
    /// Height in pixels of the upright picture.
    pub height: u32,
    /// Interleaved 8-bit RGB, row by row: `width * height * 3` bytes.
    pub rgb: Vec<u8>,
    /// The file was incomplete and [`super::Truncated::Accept`] took it anyway.
    pub truncated: bool,
}

/// Decode the file whose [`Header`] [`super::probe()`] has read.
///
/// # Errors
/// A picture over `limits`, incomplete, damaged or unsupported. A panic inside a decoder becomes
/// [`super::Code::Internal`].
pub fn decode(bytes: &[u8], header: &Header, limits: &Limits) -> Result<Picture, PictureError> {
    probe::check(header, bytes.len(), limits)?;
    let (rgb, truncated) = guarded(|| match header.format {
        Format::Jpeg => jpeg::pixels(bytes, header, limits.truncated),
        _ => other::pixels(bytes, header).map(|rgb| (rgb, false)),
    })?;
    let expected = u64::from(header.width) * u64::from(header.height) * 3;
    if rgb.len() as u64 != expected {
        return Err(PictureError::internal());
    }
    let (rgb, width, height) =
        orient::upright(rgb, header.width, header.height, header.orientation);
    Ok(Picture { width, height, rgb, truncated })
}

/// Run a decoder; a panic of it is this picture's error and nobody else's.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, PictureError>) -> Result<T, PictureError> {
    // Unwind safe: everything the closure can reach is either ours to drop or read only.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(PictureError::internal()))
}
