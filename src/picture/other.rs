//! PNG, WebP, BMP, TIFF and GIF, through the `image` crate.

use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use image::codecs::webp::WebPDecoder;
use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder};
use image::error::ImageError;
use image::{ColorType, ImageDecoder, ImageResult};

use super::container;
use super::decode::{empty, zeros};
use super::error::PictureError;
use super::orient;
use super::probe::{Format, Header, Limits, check_pixels};

/// What a decoder may keep besides pixels: window, tables, a colour profile, chunks of the file,
/// and a few rows of the widest samples.
fn overhead(bytes: &[u8], width: u32) -> u64 {
    (2 << 20) + bytes.len() as u64 + 64 * u64::from(width)
}

/// The header of a file of a format other than JPEG.
pub(super) fn header(
    format: Format,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Header, PictureError> {
    // Before the crate sees it: a header can promise sizes that overflow arithmetic there.
    let promised = container::promised_size(format, bytes);
    if let Some((width, height)) = promised {
        check_pixels(width, height, limits)?;
    }
    let overhead = overhead(bytes, promised.map_or(0, |(width, _)| width));
    let lists = if format == Format::Tiff { container::tiff_lists(bytes)? } else { 0 };
    let ended = Cell::new(false);
    let mut decoder = open(format, bytes, overhead, &ended)
        .map_err(|e| fault(&e, format, bytes, overhead, ended.get()))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(PictureError::corrupt(format.as_str()));
    }
    check_pixels(width, height, limits)?;
    match format {
        Format::WebP => container::check_webp(bytes, (width, height))?,
        Format::Tiff => container::check_tiff(bytes, u64::from(width) * u64::from(height))?,
        _ => {}
    }
    let orientation = orientation(format, decoder.as_mut(), bytes)?;
    let decode_bytes = decode_bytes(format, width, height, decoder.color_type(), orientation);
    let decode_bytes = decode_bytes.saturating_add(overhead).saturating_add(lists);
    Ok(Header { format, width, height, orientation, decode_bytes })
}

/// Upper bound of what decoding and turning upright allocates for pixels, in bytes.
fn decode_bytes(format: Format, width: u32, height: u32, colour: ColorType, turn: u8) -> u64 {
    let pixels = u64::from(width) * u64::from(height);
    let sample = u64::from(colour.bytes_per_pixel());
    // The crates' own copies of pixels. WebP: planes, and for alpha a frame of RGBA and an index map. TIFF:
    // a second buffer (four samples of up to two bytes for CMYK) and a strip. GIF: the frame
    // before it is put on its canvas, as indices and as RGBA.
    let own = match format {
        Format::Png | Format::Bmp | Format::Jpeg => 0,
        Format::WebP => 7 * pixels,
        Format::Tiff => 2 * pixels * sample.max(4),
        Format::Gif => 5 * pixels,
    };
    // The decoder is gone before RGB is made of its samples, and these before that is turned.
    let rgb = if sample == 3 { 0 } else { 3 * pixels };
    let turned = if turn == 1 { 0 } else { 6 * pixels };
    (sample * pixels + own.max(rgb)).max(turned)
}

/// Writes the picture's RGB as stored, not yet upright, into `rgb`.
pub(super) fn pixels(bytes: &[u8], header: &Header, rgb: &mut Vec<u8>) -> Result<(), PictureError> {
    let ended = Cell::new(false);
    let fault = |e| fault(&e, header.format, bytes, header.decode_bytes, ended.get());
    let overhead = overhead(bytes, header.width);
    let mut decoder = open(header.format, bytes, overhead, &ended).map_err(fault)?;
    let mut limits = image::Limits::no_limits();
    // A GIF's frame may be larger than its canvas, and takes a fifth byte for each pixel (its
    // indices) that the crate does not count; the canvas is ours, and is there already.
    limits.max_alloc = Some(match header.format {
        Format::Gif => header.decode_bytes.saturating_sub(decoder.total_bytes()) / 5 * 4,
        _ => header.decode_bytes,
    });
    decoder.set_limits(limits).map_err(fault)?;
    let colour = decoder.color_type();
    // Gray becomes three bytes of one where it stands.
    let total = decoder.total_bytes();
    let room = total.max(3 * u64::from(header.width) * u64::from(header.height));
    empty(rgb, usize::try_from(room).unwrap_or(usize::MAX));
    zeros(rgb, usize::try_from(total).unwrap_or(usize::MAX));
    decoder.read_image_boxed(rgb).map_err(fault)?;
    if header.format == Format::Gif {
        let background = container::gif_background(bytes);
        for pixel in rgb.chunks_exact_mut(4).filter(|pixel| pixel[3] == 0) {
            pixel[..3].copy_from_slice(&background);
        }
    }
    match to_rgb(rgb, colour) {
        true => Ok(()),
        false => Err(PictureError::unsupported(format_args!("this {}", header.format.as_str()))),
    }
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

/// EXIF orientation as cv2 reads it.
fn orientation(
    format: Format,
    decoder: &mut dyn ImageDecoder,
    bytes: &[u8],
) -> Result<u8, PictureError> {
    Ok(match format {
        Format::Png => container::png_exif(bytes)?.and_then(orient::from_exif).unwrap_or(1),
        Format::WebP => container::webp_exif(bytes).and_then(orient::from_exif).unwrap_or(1),
        Format::Tiff => decoder.orientation().map_or(1, |o| o.to_exif()),
        Format::Bmp | Format::Gif | Format::Jpeg => 1,
    })
}

/// Alpha dropped, gray replicated, 16 bit cut to the high byte, all in place. `false`: a kind cv2
/// has no 8-bit meaning for (floating point).
fn to_rgb(samples: &mut Vec<u8>, colour: ColorType) -> bool {
    let wide = colour.bytes_per_pixel() / colour.channel_count() == 2;
    let channels = usize::from(colour.channel_count());
    if wide {
        // Samples are in the machine's own order.
        let count = samples.len() / 2;
        for i in 0..count {
            samples[i] = (u16::from_ne_bytes([samples[2 * i], samples[2 * i + 1]]) >> 8) as u8;
        }
        samples.truncate(count);
    } else if usize::from(colour.bytes_per_pixel()) != channels {
        return false;
    }
    let count = samples.len() / channels;
    match channels {
        1 | 2 => {
            samples.resize(3 * count, 0);
            // From the end, so that what is written was read.
            for i in (0..count).rev() {
                let gray = samples[channels * i];
                samples[3 * i..3 * i + 3].fill(gray);
            }
        }
        3 => {}
        4 => {
            for i in 0..count {
                samples.copy_within(4 * i..4 * i + 3, 3 * i);
            }
            samples.truncate(3 * count);
        }
        _ => return false,
    }
    true
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
