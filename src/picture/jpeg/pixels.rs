//! The decoder's run, strict first.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::super::error::PictureError;
use super::super::probe::{Header, Truncated};
use super::colour;
use super::head::{Colour, Head};
use super::walk::walk;

/// The picture's RGB as stored, not yet upright, and whether it is incomplete.
pub(in super::super) fn pixels(
    bytes: &[u8],
    header: &Header,
    truncated: Truncated,
) -> Result<(Vec<u8>, bool), PictureError> {
    let head = Head::read(bytes)?;
    if (head.width, head.height) != (header.width, header.height) {
        return Err(PictureError::internal());
    }
    let mut walk = walk(bytes, &head)?;
    if walk.complete {
        if let Some(rgb) = run(walk.poisoned(), &head, true) {
            return Ok((rgb, false));
        }
        // Either the data is damaged or it ends early in front of an EOI. Without the poison the
        // decoder fails on the first only.
        let Some(rgb) = run(walk.plain(), &head, true) else {
            return Err(PictureError::corrupt("JPEG"));
        };
        return match truncated {
            Truncated::Accept => Ok((rgb, true)),
            Truncated::Reject => Err(PictureError::truncated(bytes.len())),
        };
    }
    if truncated == Truncated::Accept
        && let Some(rgb) = run(walk.plain(), &head, false)
    {
        return Ok((rgb, true));
    }
    Err(PictureError::truncated(bytes.len()))
}

/// Decode what [`walk`] wrote. `None`: the decoder found fault with it.
fn run(bytes: &[u8], head: &Head, strict: bool) -> Option<Vec<u8>> {
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
    let samples = JpegDecoder::new_with_options(ZCursor::new(bytes), options).decode().ok()?;
    Some(match head.colour {
        Colour::Cmyk => colour::cmyk_to_rgb(samples),
        Colour::Ycck => colour::cmyk_to_rgb(colour::ycck_to_cmyk(samples)),
        Colour::Gray | Colour::YCbCr | Colour::Rgb => samples,
    })
}
