//! PNG, WebP, BMP, TIFF and GIF, through the `image` crate.

use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use image::codecs::webp::WebPDecoder;
use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder};
use image::error::ImageError;
use image::{ColorType, ImageDecoder, ImageResult};

use super::error::PictureError;
use super::orient;
use super::probe::{Format, Header, Limits, check_pixels};

/// What a decoder may keep besides pixels: window, tables, a colour profile.
const OVERHEAD: u64 = 2 << 20;

/// The header of a file of a format other than JPEG.
pub(super) fn header(
    format: Format,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Header, PictureError> {
    // Before the crate sees it: a header can promise sizes that overflow arithmetic there.
    if let Some((width, height)) = promised_size(format, bytes) {
        check_pixels(width, height, limits)?;
    }
    let overhead = OVERHEAD + bytes.len() as u64;
    let ended = Cell::new(false);
    let mut decoder = open(format, bytes, overhead, &ended)
        .map_err(|e| fault(&e, format, bytes, overhead, ended.get()))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(PictureError::corrupt(format.as_str()));
    }
    check_pixels(width, height, limits)?;
    let orientation = orientation(format, decoder.as_mut(), bytes)?;
    let decode_bytes = decode_bytes(format, width, height, decoder.color_type(), orientation);
    let decode_bytes = decode_bytes.saturating_add(overhead);
    Ok(Header { format, width, height, orientation, decode_bytes })
}

/// Upper bound of what decoding and turning upright allocates for pixels, in bytes.
fn decode_bytes(format: Format, width: u32, height: u32, colour: ColorType, turn: u8) -> u64 {
    let pixels = u64::from(width) * u64::from(height);
    let sample = u64::from(colour.bytes_per_pixel());
    // The crates' own copies. WebP: planes, and for alpha a frame of RGBA and an index map. TIFF:
    // a second buffer (four samples of up to two bytes for CMYK) and a strip. GIF: the frame
    // before it is put on its canvas, as indices and as RGBA.
    let own = match format {
        Format::Png | Format::Bmp | Format::Jpeg => u64::from(width) * 64,
        Format::WebP => 7 * pixels,
        Format::Tiff => 2 * pixels * sample.max(4),
        Format::Gif => 5 * pixels,
    };
    // The decoder is gone before RGB is made of its samples, and these before that is turned.
    let rgb = if sample == 3 { 0 } else { 3 * pixels };
    let turned = if turn == 1 { 0 } else { 6 * pixels };
    (sample * pixels + own.max(rgb)).max(turned)
}

/// The picture's RGB as stored, not yet upright.
pub(super) fn pixels(bytes: &[u8], header: &Header) -> Result<Vec<u8>, PictureError> {
    let ended = Cell::new(false);
    let fault = |e| fault(&e, header.format, bytes, header.decode_bytes, ended.get());
    let mut decoder = open(header.format, bytes, header.decode_bytes, &ended).map_err(fault)?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(header.decode_bytes);
    decoder.set_limits(limits).map_err(fault)?;
    let colour = decoder.color_type();
    let mut samples = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX)];
    decoder.read_image_boxed(&mut samples).map_err(fault)?;
    if header.format == Format::Gif {
        let background = gif_background(bytes);
        for pixel in samples.chunks_exact_mut(4).filter(|pixel| pixel[3] == 0) {
            pixel[..3].copy_from_slice(&background);
        }
    }
    let rgb = into_rgb(samples, colour).ok_or_else(|| {
        PictureError::unsupported(format_args!("this {}", header.format.as_str()))
    })?;
    Ok(rgb)
}

fn open<'a>(
    format: Format,
    bytes: &'a [u8],
    max_alloc: u64,
    ended: &'a Cell<bool>,
) -> ImageResult<Box<dyn ImageDecoder + 'a>> {
    let reader = Watched { cursor: Cursor::new(bytes), ended };
    Ok(match format {
        Format::Png => {
            let mut limits = image::Limits::no_limits();
            limits.max_alloc = Some(max_alloc);
            Box::new(PngDecoder::with_limits(reader, limits)?)
        }
        Format::WebP => Box::new(WebPDecoder::new(reader)?),
        Format::Bmp => Box::new(BmpDecoder::new(reader)?),
        Format::Tiff => Box::new(TiffDecoder::new(reader)?),
        Format::Gif | Format::Jpeg => Box::new(GifDecoder::new(reader)?),
    })
}

/// Width and height where they stand at a fixed place.
fn promised_size(format: Format, bytes: &[u8]) -> Option<(u32, u32)> {
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

/// EXIF orientation as cv2 reads it.
fn orientation(
    format: Format,
    decoder: &mut dyn ImageDecoder,
    bytes: &[u8],
) -> Result<u8, PictureError> {
    Ok(match format {
        Format::Png => png_exif(bytes)?.and_then(orient::from_exif).unwrap_or(1),
        Format::WebP => {
            // As in PNG, it may stand behind the pixels.
            let riff = bytes.get(4..8).map_or(0, |n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]));
            if u64::from(riff) + 8 > bytes.len() as u64 {
                return Err(PictureError::truncated(bytes.len()));
            }
            let exif = decoder.exif_metadata().ok().flatten();
            exif.and_then(|block| orient::from_exif(&block)).unwrap_or(1)
        }
        Format::Tiff => decoder.orientation().map_or(1, |o| o.to_exif()),
        Format::Bmp | Format::Gif | Format::Jpeg => 1,
    })
}

/// The content of a PNG's first eXIf chunk. It may also stand behind the pixels, so a file
/// without its last chunk is incomplete: its orientation is not known.
fn png_exif(bytes: &[u8]) -> Result<Option<&[u8]>, PictureError> {
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

/// What shows where a GIF's first frame is transparent or does not reach: the background colour,
/// as in cv2; black without a global colour table.
fn gif_background(bytes: &[u8]) -> [u8; 3] {
    let colour = || {
        let (flags, index) = (*bytes.get(10)?, usize::from(*bytes.get(11)?));
        let at = 13 + 3 * index;
        let inside = flags & 0x80 != 0 && index < 2 << (flags & 7);
        bytes.get(at..at + 3).filter(|_| inside).map(|c| [c[0], c[1], c[2]])
    };
    colour().unwrap_or_default()
}

/// Alpha dropped, gray replicated, 16 bit cut to the high byte. `None`: a kind cv2 has no
/// 8-bit meaning for (floating point).
fn into_rgb(mut samples: Vec<u8>, colour: ColorType) -> Option<Vec<u8>> {
    let wide = colour.bytes_per_pixel() / colour.channel_count() == 2;
    let channels = usize::from(colour.channel_count());
    if wide {
        // Samples are in the machine's own order; the picture shrinks in place.
        let count = samples.len() / 2;
        for i in 0..count {
            samples[i] = (u16::from_ne_bytes([samples[2 * i], samples[2 * i + 1]]) >> 8) as u8;
        }
        samples.truncate(count);
    } else if usize::from(colour.bytes_per_pixel()) != channels {
        return None;
    }
    match channels {
        1 | 2 => {
            let mut rgb = Vec::with_capacity(samples.len() / channels * 3);
            for pixel in samples.chunks_exact(channels) {
                rgb.extend_from_slice(&[pixel[0]; 3]);
            }
            Some(rgb)
        }
        3 => Some(samples),
        4 => {
            let count = samples.len() / 4;
            for i in 0..count {
                samples.copy_within(4 * i..4 * i + 3, 3 * i);
            }
            samples.truncate(3 * count);
            samples.shrink_to_fit();
            Some(samples)
        }
        _ => None,
    }
}

/// The file, noting whether anybody wanted to read past its end: what tells an incomplete file
/// from a damaged one, since the crates' errors do not.
struct Watched<'a> {
    cursor: Cursor<&'a [u8]>,
    ended: &'a Cell<bool>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.cursor.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        Ok(read)
    }
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let buffer = self.cursor.fill_buf()?;
        if buffer.is_empty() {
            self.ended.set(true);
        }
        Ok(buffer)
    }

    fn consume(&mut self, amount: usize) {
        self.cursor.consume(amount);
    }
}

impl Seek for Watched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.cursor.seek(to)
    }
}

/// A library's error as ours; none of its words are kept.
fn fault(
    error: &ImageError,
    format: Format,
    bytes: &[u8],
    allowed: u64,
    ended: bool,
) -> PictureError {
    match error {
        ImageError::Unsupported(_) => {
            PictureError::unsupported(format_args!("this kind of {}", format.as_str()))
        }
        ImageError::Limits(_) => PictureError::exceeds_header(allowed),
        _ if ended => PictureError::truncated(bytes.len()),
        _ => PictureError::corrupt(format.as_str()),
    }
}
