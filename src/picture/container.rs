//! What haul reads itself of the containers: where a decoder crate says too little, or would
//! trust too much.

use super::error::PictureError;
use super::probe::Format;

/// Width and height where they stand at a fixed place.
pub(super) fn promised_size(format: Format, bytes: &[u8]) -> Option<(u32, u32)> {
    let four = |at: usize| bytes.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
    match format {
        Format::Png => Some((u32::from_be_bytes(four(16)?), u32::from_be_bytes(four(20)?))),
        Format::Bmp if four(14)? != [12, 0, 0, 0] => {
            let (width, height) = (i32::from_le_bytes(four(18)?), i32::from_le_bytes(four(22)?));
            Some((width.unsigned_abs(), height.unsigned_abs()))
        }
        _ => None,
    }
}

/// The content of a PNG's first eXIf chunk. It may also stand behind the pixels, so a file
/// without its last chunk is incomplete: its orientation is not known.
pub(super) fn png_exif(bytes: &[u8]) -> Result<Option<&[u8]>, PictureError> {
    let walk = || {
        let (mut rest, mut exif) = (bytes.get(8..)?, None);
        loop {
            let (head, body) = rest.split_at_checked(8)?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let (body, after) = body.split_at_checked(length)?;
            rest = after.get(4..)?;
            match &head[4..] {
                b"eXIf" if exif.is_none() => exif = Some(body),
                b"IEND" => return Some(exif),
                _ => {}
            }
        }
    };
    walk().ok_or_else(|| PictureError::truncated(bytes.len()))
}

/// Check that a WebP is as long as it says, and that its first bitstream is no larger than its
/// canvas: the crate compares the two only after it has allocated the bitstream's planes.
pub(super) fn check_webp(bytes: &[u8], canvas: (u32, u32)) -> Result<(), PictureError> {
    let number = |at: usize| {
        bytes.get(at..at + 4).map_or(0, |n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]))
    };
    if u64::from(number(4)) + 8 > bytes.len() as u64 {
        return Err(PictureError::truncated(bytes.len()));
    }
    let mut at = 12;
    while let Some(kind) = bytes.get(at..at + 4) {
        let body = at + 8;
        let size = match kind {
            // Sides of 14 bits, behind a frame tag and a start code, or behind a signature.
            b"VP8 " => Some((number(body + 6) & 0x3FFF, (number(body + 6) >> 16) & 0x3FFF)),
            b"VP8L" => {
                Some(((number(body + 1) & 0x3FFF) + 1, ((number(body + 1) >> 14) & 0x3FFF) + 1))
            }
            _ => None,
        };
        if let Some((width, height)) = size {
            let fits = width <= canvas.0 && height <= canvas.1;
            return if fits { Ok(()) } else { Err(PictureError::corrupt("WebP")) };
        }
        let length = number(at + 4) as usize;
        // A frame of an animation: its chunks follow 16 bytes of its own.
        at = body + if kind == b"ANMF" { 16 } else { length.saturating_add(length & 1) };
    }
    Ok(())
}

/// The content of a WebP's first EXIF chunk, if all of it is there.
///
/// Not by the crate, which allocates whatever length the chunk claims (up to 4 GiB) before it
/// looks for the bytes.
pub(super) fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    let word =
        |at: usize| bytes.get(at..at + 4).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]));
    // Only the extended form has chunks besides the picture.
    if bytes.get(12..16)? != b"VP8X" {
        return None;
    }
    let end = (word(4)? as usize).saturating_add(8).min(bytes.len());
    let mut at = 12usize;
    while at < end {
        let length = word(at.checked_add(4)?)? as usize;
        let body = at + 8..(at + 8).checked_add(length)?;
        if &bytes[at..at + 4] == b"EXIF" {
            return bytes.get(body);
        }
        at = body.end.checked_add(length & 1)?;
    }
    None
}

/// Bytes that the crate takes for each number in a list of a TIFF's directory: as it reads it, and
/// as it keeps it.
const TIFF_VALUE: u64 = 48;

/// What the lists in a TIFF's first directory take once they are read, in bytes. Each must lie in
/// the file: the crate makes room for as many numbers as a list claims, up to 256 MiB, and looks
/// for them afterwards.
pub(super) fn tiff_lists(bytes: &[u8]) -> Result<u64, PictureError> {
    /// Those that the crate reads. Others may be wrong; it does not look at them.
    const READ: [u64; 21] = [
        256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338,
        339, 347, 530,
    ];
    let high_first = bytes.starts_with(b"MM");
    let number = |at: u64, width: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let raw = bytes.get(at..at.checked_add(width)?)?.iter();
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if high_first { raw.fold(0, add) } else { raw.rev().fold(0, add) })
    };
    // Widths of a count of entries and of an offset, and the bytes of an entry.
    let big = number(2, 2) == Some(43);
    let (counted, offset, entry) = if big { (8, 8, 20) } else { (2, 4, 12) };
    let first = number(if big { 8 } else { 4 }, offset);
    let mut at = first.and_then(|first| first.checked_add(counted as u64));
    let mut left = first.and_then(|first| number(first, counted)).unwrap_or(0);
    let length = bytes.len() as u64;
    let mut values = 0u64;
    // A directory that is cut short is for the crate to refuse.
    while let Some(here) = at.filter(|_| left > 0)
        && let (Some(tag), Some(kind)) = (number(here, 2), number(here.saturating_add(2), 2))
        && let Some(count) = number(here + 4, offset)
    {
        let width = match kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            _ => 8,
        };
        let size = count.saturating_mul(width);
        if READ.contains(&tag) && size > offset as u64 {
            let start = number(here + 4 + offset as u64, offset).unwrap_or(u64::MAX);
            if start.saturating_add(size) > length {
                return Err(PictureError::truncated(bytes.len()));
            }
            values = values.saturating_add(count);
        }
        left -= 1;
        at = here.checked_add(entry);
    }
    // Strips of a few bytes each are the most that a picture can need.
    let most = 65_536 + length / 16;
    if values > most {
        return Err(PictureError::exceeds_header(TIFF_VALUE * most));
    }
    Ok(TIFF_VALUE * values)
}

/// Check that no JPEG inside a TIFF is larger than a strip or tile of the picture may be: the
/// crate decodes whatever size it says. `pixels` are the picture's.
pub(super) fn check_tiff(bytes: &[u8], pixels: u64) -> Result<(), PictureError> {
    /// A tile may be larger than the picture.
    const TILE: u64 = 1 << 18;
    for frame in bytes.windows(10) {
        let [0xFF, 0xC0..=0xC2, 0, 11 | 17 | 20, 8, h1, h0, w1, w0, 1 | 3 | 4] = *frame else {
            continue;
        };
        let height = u64::from(u16::from_be_bytes([h1, h0]));
        let width = u64::from(u16::from_be_bytes([w1, w0]));
        if width * height > pixels.max(TILE) {
            return Err(PictureError::corrupt("TIFF"));
        }
    }
    Ok(())
}

/// What shows where a GIF's first frame is transparent or does not reach: the background colour,
/// as in cv2; black without a global colour table.
pub(super) fn gif_background(bytes: &[u8]) -> [u8; 3] {
    let colour = || {
        let (flags, index) = (*bytes.get(10)?, usize::from(*bytes.get(11)?));
        let at = 13 + 3 * index;
        let inside = flags & 0x80 != 0 && index < 2 << (flags & 7);
        bytes.get(at..at + 3).filter(|_| inside).map(|c| [c[0], c[1], c[2]])
    };
    colour().unwrap_or_default()
}
