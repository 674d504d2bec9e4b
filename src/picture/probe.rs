//! What a file is and what decoding it will cost, from its header alone.

use super::error::PictureError;
use super::{decode, jpeg, other};

/// What a picture may cost. Whether a picture is too large depends on nothing but these numbers
/// and the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels (width x height) of a picture. Default: 100 million.
    pub max_pixels: u64,
    /// Most bytes of file plus [`Header::decode_bytes`]. Default: 512 MiB.
    pub max_memory: u64,
    /// What to do with a JPEG whose data ends early.
    pub truncated: Truncated,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 100_000_000, max_memory: 512 << 20, truncated: Truncated::Reject }
    }
}

/// Whether an incomplete JPEG is an error. Other formats are always rejected when incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncated {
    /// An incomplete JPEG is [`super::Code::Truncated`].
    #[default]
    Reject,
    /// An incomplete JPEG is decoded as far as it goes and marked [`super::Picture::truncated`].
    Accept,
}

/// The picture formats that haul reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// JPEG: baseline, extended and progressive, 8 bit, Huffman coded.
    Jpeg,
    /// PNG, and the default image of an APNG.
    Png,
    /// WebP, lossy and lossless; the first frame of an animation.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// TIFF; its first page.
    Tiff,
    /// GIF; its first frame.
    Gif,
}

impl Format {
    /// The name people use: `JPEG`, `PNG`, `WebP`, `BMP`, `TIFF` or `GIF`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Gif => "GIF",
        }
    }
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the bytes are.
    pub format: Format,
    /// Width in pixels as stored, before the orientation is applied.
    pub width: u32,
    /// Height in pixels as stored, before the orientation is applied.
    pub height: u32,
    /// EXIF orientation, 1 to 8; 1 where the file says nothing usable.
    pub orientation: u8,
    /// Upper bound in bytes of what [`decode()`] has allocated at any one time, without the file
    /// itself: the RGB output, the copy made to turn it upright, progressive coefficients, 16-bit
    /// samples and the decoder's own buffers. (A damaged lossy WebP can have 16 MiB more asked for,
    /// the largest size of a partition; nothing is written to what the file does not fill.)
    pub decode_bytes: u64,
}

/// Read the header of `bytes` and check it against `limits`, decoding nothing.
///
/// # Errors
/// Every [`super::Code`] is possible: what is not a supported picture, has no readable header, or
/// is over a limit ends here.
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, PictureError> {
    let format = sniff(bytes)?;
    let header = decode::guarded(|| match format {
        Format::Jpeg => jpeg::header(bytes),
        _ => other::header(format, bytes, limits),
    })?;
    check(&header, bytes.len(), limits)?;
    Ok(header)
}

/// Refuse what is over a limit. `file` is the file's length in bytes.
pub(super) fn check(header: &Header, file: usize, limits: &Limits) -> Result<(), PictureError> {
    check_pixels(header.width, header.height, limits)?;
    let needed = header.decode_bytes.saturating_add(file as u64);
    if needed > limits.max_memory {
        return Err(PictureError::too_much_memory(needed, limits.max_memory));
    }
    Ok(())
}

/// Refuse more pixels than the limit.
pub(super) fn check_pixels(width: u32, height: u32, limits: &Limits) -> Result<(), PictureError> {
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(PictureError::too_many_pixels(width, height, limits.max_pixels));
    }
    Ok(())
}

/// The format, by the file's first bytes.
fn sniff(bytes: &[u8]) -> Result<Format, PictureError> {
    if bytes.is_empty() {
        return Err(PictureError::empty());
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let at =
        |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|b| b.starts_with(magic));
    // One byte less than the two-byte magic of JPEG would make text of "BM" a bitmap: the header
    // length at 14 is small in every bitmap there is.
    let bitmap = starts(b"BM") && bytes.get(14..18).is_none_or(|n| n[0] >= 12 && n[1..] == [0; 3]);
    if starts(&[0xFF, 0xD8, 0xFF]) || bytes == [0xFF, 0xD8] {
        Ok(Format::Jpeg)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        Ok(Format::Png)
    } else if starts(b"RIFF") && at(8, b"WEBP") {
        Ok(Format::WebP)
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Ok(Format::Gif)
    } else if starts(b"II\x2a\0")
        || starts(b"MM\0\x2a")
        || starts(b"II\x2b\0")
        || starts(b"MM\0\x2b")
    {
        Ok(Format::Tiff)
    } else if bitmap {
        Ok(Format::Bmp)
    } else if let Some(name) = known_but_unsupported(bytes) {
        Err(PictureError::unsupported(name))
    } else {
        Err(PictureError::not_an_image(bytes.len()))
    }
}

/// The name of a picture format that haul recognises only to say that it does not read it.
fn known_but_unsupported(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if bytes.get(4..8) == Some(b"ftyp") {
        // The brands of an ISO media file: the major one, then the compatible ones.
        let length = bytes.get(..4).map_or(0, |n| u32::from_be_bytes([n[0], n[1], n[2], n[3]]));
        let end = (length as usize).clamp(12, 256).min(bytes.len());
        let has = |brand: &[u8]| bytes[8..end].chunks_exact(4).any(|b| b == brand);
        return if has(b"avif") || has(b"avis") {
            Some("AVIF")
        } else if [b"heic", b"heix", b"hevc", b"mif1", b"heim", b"heis"].iter().any(|b| has(*b)) {
            Some("HEIC")
        } else if has(b"crx ") {
            Some("Canon CR3")
        } else {
            None
        };
    }
    let table: [(&[u8], &str); 14] = [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xFF\x4F\xFF\x51", "JPEG 2000"),
        (b"\xFF\x0A", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS", "PSD"),
        (b"\0\0\x01\0", "ICO"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"DDS ", "DDS"),
        (b"qoif", "QOI"),
        (b"II\xbc\x01", "JPEG XR"),
        (b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
        (b"IIRO", "Olympus ORF"),
        (b"IIU\0", "Panasonic RW2"),
    ];
    let pnm = bytes.len() > 2
        && bytes[0] == b'P'
        && (b'1'..=b'7').contains(&bytes[1])
        && bytes[2].is_ascii_whitespace();
    table.iter().find(|(magic, _)| starts(magic)).map(|(_, name)| *name).or(pnm.then_some("PNM"))
}
