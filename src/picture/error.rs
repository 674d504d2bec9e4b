//! Why a picture gave no pixels: one code, one fixed sentence, numbers from the file.

use std::fmt;

/// What kind of fault a picture has; [`Code::as_str`] is the name used in output lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The file has no bytes.
    Empty,
    /// The bytes begin like no picture format.
    NotAnImage,
    /// A picture, but of a format or variant that haul does not read.
    Unsupported,
    /// The file ends, or its data ends, before the picture is complete.
    Truncated,
    /// The file contradicts itself or its format.
    Corrupt,
    /// More pixels or memory than [`super::Limits`] allow.
    TooLarge,
    /// A decoder broke an invariant of its own.
    Internal,
}

impl Code {
    /// The code as it stands in output lines: `snake_case`, stable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotAnImage => "not_an_image",
            Self::Unsupported => "unsupported",
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::TooLarge => "too_large",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fault of the picture itself.
///
/// `message` is output: a fixed sentence per cause plus numbers from the file, and never a path,
/// a host or a library's words, so the same file gives the same bytes everywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PictureError {
    /// The kind of fault.
    pub code: Code,
    /// One sentence without a full stop.
    pub message: String,
}

impl PictureError {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn empty() -> Self {
        Self::new(Code::Empty, "the file is empty")
    }

    pub(super) fn not_an_image(bytes: usize) -> Self {
        Self::new(Code::NotAnImage, format!("the file's {bytes} bytes are not a picture"))
    }

    /// `what` names the format or variant, such as "HEIC" or "12-bit JPEG".
    pub(super) fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(Code::Unsupported, format!("{what} is not supported"))
    }

    pub(super) fn truncated(bytes: usize) -> Self {
        Self::new(
            Code::Truncated,
            format!("the picture is incomplete: its data ends early in a file of {bytes} bytes"),
        )
    }

    /// `what` is the part at fault, such as "JPEG" or "PNG".
    pub(super) fn corrupt(what: impl fmt::Display) -> Self {
        Self::new(Code::Corrupt, format!("the {what} data is damaged"))
    }

    pub(super) fn too_many_pixels(width: u32, height: u32, limit: u64) -> Self {
        Self::new(
            Code::TooLarge,
            format!("the picture is {width} x {height} pixels, the limit is {limit} pixels"),
        )
    }

    pub(super) fn too_much_memory(needed: u64, limit: u64) -> Self {
        Self::new(
            Code::TooLarge,
            format!("file and decoding need {needed} bytes, the limit is {limit} bytes"),
        )
    }

    /// A decoder wanted more than the header justified.
    pub(super) fn exceeds_header(decode_bytes: u64) -> Self {
        Self::new(
            Code::TooLarge,
            format!("decoding needs more than the {decode_bytes} bytes that the header implies"),
        )
    }

    pub(super) fn internal() -> Self {
        Self::new(Code::Internal, "the decoder failed on this picture")
    }
}
