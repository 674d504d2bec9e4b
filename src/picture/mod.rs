//! Bytes to upright RGB, letterbox and drawing. Knows no other module.
//!
//! [`probe`] reads a header and says what decoding will cost, so that a caller can budget memory
//! before any of it is allocated; [`decode`] then yields an upright RGB [`Picture`]. What a file
//! is, its bytes say, never its name, and a picture becomes what `cv2.imread(IMREAD_COLOR)` makes
//! of it: `docs/pictures.md` has one row per form, each with the test picture that proves it.
//! Hostile bytes end in a [`PictureError`], never in a panic, a hang or a larger allocation than
//! [`Header::decode_bytes`].

mod annotate;
mod container;
mod decode;
mod error;
mod jpeg;
mod letterbox;
mod orient;
mod other;
mod probe;
mod resize;

pub use annotate::{Encoding, Mark, annotate};
pub use decode::{Decoder, Picture, decode};
pub use error::{Code, PictureError};
pub use letterbox::{Letterbox, Letterboxer};
pub use probe::{Format, Header, Limits, Truncated, probe};

/// The crates that decide a picture's pixels, with their exact versions: part of a job's
/// fingerprint, because another version may decode the same bytes differently. Resizing is done
/// here, with the arithmetic of the crate named, to which a test holds it. The number of our own
/// checks rises when other files than before are taken or refused.
pub const DECODERS: &str = "zune-jpeg 0.5.15, image 0.25.10, png 0.18.1, image-webp 0.2.4, \
     tiff 0.11.3, gif 0.14.2, fast_image_resize 6.1.0, checks 2";
