//! The decoder's run, strict first.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::super::decode::zeros;
use super::super::error::PictureError;
use super::super::probe::{Header, Truncated};
use super::colour;
use super::head::{Colour, Head};
use super::walk::walk;

/// Writes the picture's RGB as stored, not yet upright, into `rgb`, and says whether it is
/// incomplete. `file` is memory for the file written anew.
pub(in super::super) fn pixels(
    bytes: &[u8],
    header: &Header,
    truncated: Truncated,
    file: &mut Vec<u8>,
    rgb: &mut Vec<u8>,
) -> Result<bool, PictureError> {
    let head = Head::read(bytes)?;
    if (head.width, head.height) != (header.width, header.height) {
        return Err(PictureError::internal());
    }
    let mut walk = walk(bytes, &head, file)?;
    if walk.complete {
        if run(walk.poisoned(), &head, true, rgb) {
            return Ok(false);
        }
        // Either the data is damaged or it ends early in front of an EOI. Without the poison the
        // decoder fails on the first only.
        if !run(walk.plain(), &head, true, rgb) {
            return Err(PictureError::corrupt("JPEG"));
        }
        return match truncated {
            Truncated::Accept => Ok(true),
            Truncated::Reject => Err(PictureError::truncated(bytes.len())),
        };
    }
    if truncated == Truncated::Accept && run(walk.plain(), &head, false, rgb) {
        return Ok(true);
    }
    Err(PictureError::truncated(bytes.len()))
}

/// Decode what [`walk`] wrote. `false`: the decoder found fault with it.
fn run(bytes: &[u8], head: &Head, strict: bool, samples: &mut Vec<u8>) -> bool {
    let space = match head.colour {
        Colour::Cmyk => ColorSpace::CMYK,
        Colour::Ycck => ColorSpace::YCCK,
        Colour::Gray | Colour::YCbCr | Colour::Rgb => ColorSpace::RGB,
    };
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(strict)
        .jpeg_set_max_scans(usize::MAX) // counted by `walk`
        .jpeg_set_out_colorspace(space);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    if decoder.decode_headers().is_err() {
        return false;
    }
    let Some(size) = decoder.output_buffer_size() else { return false };
    zeros(samples, size);
    if decoder.decode_into(samples).is_err() {
        return false;
    }
    match head.colour {
        Colour::Cmyk => colour::cmyk_to_rgb(samples),
        Colour::Ycck => {
            colour::ycck_to_cmyk(samples);
            colour::cmyk_to_rgb(samples);
        }
        Colour::Gray | Colour::YCbCr | Colour::Rgb => {}
    }
    true
}
