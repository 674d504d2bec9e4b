//! From bytes to an upright RGB picture.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::PictureError;
use super::probe::{self, Format, Header, Limits};
use super::{jpeg, orient, other};
use crate::failpoint;

/// A decoded picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    let mut decoder = Decoder::new();
    decoder.run(bytes, header, limits)?;
    Ok(decoder.picture)
}

/// Decodes one picture after another in the same memory: that of an ordinary photograph stays,
/// so that the next one asks the system for none and finds it in the cache.
#[derive(Debug, Default)]
pub struct Decoder {
    picture: Picture,
    /// A JPEG written anew for its decoder.
    file: Vec<u8>,
    /// Pixels as stored, where they have to be turned.
    stored: Vec<u8>,
}

impl Decoder {
    /// Most bytes that stay between pictures, once [`Decoder::trim`] was called.
    pub const KEPT: usize = 8 << 20;

    /// Without memory yet: the first picture takes it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decode the file whose [`Header`] [`super::probe()`] has read.
    ///
    /// What was kept aside, it allocates at most [`Header::decode_bytes`]. The same bytes give the
    /// same pixels, whatever was decoded before.
    ///
    /// # Errors
    /// A picture over `limits`, incomplete, damaged or unsupported. A panic inside a decoder
    /// becomes [`super::Code::Internal`].
    pub fn run(
        &mut self,
        bytes: &[u8],
        header: &Header,
        limits: &Limits,
    ) -> Result<&Picture, PictureError> {
        probe::check(header, bytes.len(), limits)?;
        let Self { picture, file, stored } = self;
        let turned = header.orientation != 1;
        let rgb = if turned { &mut *stored } else { &mut picture.rgb };
        picture.truncated = guarded(|| {
            failpoint::hit("decode").map_err(|_| PictureError::internal())?;
            match header.format {
                Format::Jpeg => jpeg::pixels(bytes, header, limits.truncated, file, rgb),
                _ => other::pixels(bytes, header, rgb).map(|()| false),
            }
        })?;
        let expected = u64::from(header.width) * u64::from(header.height) * 3;
        if rgb.len() as u64 != expected {
            return Err(PictureError::internal());
        }
        (picture.width, picture.height) = (header.width, header.height);
        if turned {
            // The upright copy was promised the room that the file's took.
            release(file);
            (picture.width, picture.height) = orient::upright(
                stored,
                header.width,
                header.height,
                header.orientation,
                &mut picture.rgb,
            );
        }
        Ok(picture)
    }

    /// The picture that was decoded last, to be kept; its memory goes with it.
    pub fn take(&mut self) -> Picture {
        std::mem::take(&mut self.picture)
    }

    /// Give back what is not worth keeping: after it at most [`Decoder::KEPT`] bytes are held. To
    /// be called when a picture is done with.
    pub fn trim(&mut self) {
        let held = self.picture.rgb.capacity() + self.file.capacity() + self.stored.capacity();
        if held > Self::KEPT {
            *self = Self::new();
        }
    }
}

/// Empty `buffer`, with room for `length` bytes. What it had is given back before it gets more,
/// so that both never count together.
pub(super) fn empty(buffer: &mut Vec<u8>, length: usize) {
    buffer.clear();
    if buffer.capacity() < length {
        *buffer = Vec::new();
        buffer.reserve_exact(length);
    }
}

/// Make `buffer` hold `length` bytes of whatever is there, for who writes all of them.
pub(super) fn sized(buffer: &mut Vec<u8>, length: usize) {
    if buffer.capacity() < length {
        *buffer = Vec::new();
        *buffer = vec![0; length]; // untouched memory is zero already
    }
    buffer.resize(length, 0);
}

/// Make `buffer` hold `length` zeros: a decoder that leaves out pixels must not show an earlier
/// picture's.
pub(super) fn zeros(buffer: &mut Vec<u8>, length: usize) {
    if buffer.capacity() >= length {
        buffer.clear();
    }
    sized(buffer, length);
}

/// Give back a buffer that is too large to be kept.
fn release(buffer: &mut Vec<u8>) {
    if buffer.capacity() > Decoder::KEPT {
        *buffer = Vec::new();
    }
}

/// Run a decoder; a panic of it is this picture's error and nobody else's.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, PictureError>) -> Result<T, PictureError> {
    // Unwind safe: everything the closure can reach is either ours to drop or read only.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(PictureError::internal()))
}
