//! PNG, WebP, BMP, TIFF and GIF, through the `image` crate.

use std::io::{Cursor, ErrorKind};

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder};
use image::codecs::webp::WebPDecoder;
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
    let mut decoder = open(format, bytes, overhead).map_err(|e| fault(&e, format, bytes, overhead))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(PictureError::corrupt(format.as_str()));
    }
    check_pixels(width, height, limits)?;
    let orientation = orientation(format, decoder.as_mut(), bytes);
    let pixels = u64::from(width) * u64::from(height);
    let sample = u64::from(decoder.color_type().bytes_per_pixel());
    // The samples the crate hands out, the RGB made of them, and the crate's own copies:
    // WebP keeps planes or a frame of RGBA plus an index map, TIFF a second buffer (four samples
    // of up to two bytes for CMYK), GIF the frame before it is put on its canvas.
    let own = match format {
        Format::Png | Format::Bmp => u64::from(width) * 64,
        Format::WebP => 10 * pixels,
        Format::Tiff => 2 * pixels * sample.max(4),
        Format::Gif => 5 * pixels,
        Format::Jpeg => 0,
    };
    let upright = if orientation == 1 { 0 } else { 3 * pixels };
    let rgb = if sample == 3 { 0 } else { 3 * pixels };
    let decode_bytes = pixels * sample + own + rgb.max(upright) + overhead;
    Ok(Header { format, width, height, orientation, decode_bytes })
}

/// The picture's RGB as stored, not yet upright.
pub(super) fn pixels(bytes: &[u8], header: &Header) -> Result<Vec<u8>, PictureError> {
    let fault = |e: ImageError| fault(&e, header.format, bytes, header.decode_bytes);
    let mut decoder = open(header.format, bytes, header.decode_bytes).map_err(fault)?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(header.decode_bytes);
    decoder.set_limits(limits).map_err(fault)?;
    let colour = decoder.color_type();
    let mut samples = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX)];
    decoder.read_image_boxed(&mut samples).map_err(fault)?;
    let rgb = into_rgb(samples, colour)
        .ok_or_else(|| PictureError::unsupported(format_args!("this {}", header.format.as_str())))?;
    Ok(rgb)
}

fn open<'a>(
    format: Format,
    bytes: &'a [u8],
    max_alloc: u64,
) -> ImageResult<Box<dyn ImageDecoder + 'a>> {
    let reader = Cursor::new(bytes);
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
fn orientation(format: Format, decoder: &mut dyn ImageDecoder, _bytes: &[u8]) -> u8 {
    match format {
        Format::Png | Format::WebP => {
            let exif = decoder.exif_metadata().ok().flatten();
            exif.and_then(|block| orient::from_exif(&block)).unwrap_or(1)
        }
        Format::Tiff => decoder.orientation().map_or(1, |o| o.to_exif()),
        Format::Bmp | Format::Gif | Format::Jpeg => 1,
    }
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

/// A library's error as ours; none of its words are kept.
fn fault(error: &ImageError, format: Format, bytes: &[u8], allowed: u64) -> PictureError {
    match error {
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => {
            PictureError::truncated(bytes.len())
        }
        ImageError::Unsupported(_) => {
            PictureError::unsupported(format_args!("this kind of {}", format.as_str()))
        }
        ImageError::Limits(_) => PictureError::exceeds_header(allowed),
        _ => PictureError::corrupt(format.as_str()),
    }
}
