//! EXIF orientation: finding it and turning pixels upright.

use image::metadata::Orientation;

use super::decode::empty;

/// The orientation, 1 to 8, in an EXIF block; with or without the `Exif\0\0` that JPEG puts
/// before it. `None` where it says nothing usable.
pub(super) fn from_exif(block: &[u8]) -> Option<u8> {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    Orientation::from_exif_chunk(tiff).map(Orientation::to_exif)
}

/// Write RGB pixels upright into `out`. Returns the upright width and height.
pub(super) fn upright(
    rgb: &[u8],
    width: u32,
    height: u32,
    orientation: u8,
    out: &mut Vec<u8>,
) -> (u32, u32) {
    let (w, h) = (width as usize, height as usize);
    // Where the upright picture's first pixel lies in the stored one, and how far (in pixels) one
    // step to the right and one step down in the upright picture moves there.
    let last = (w * h).saturating_sub(1) as isize;
    let (column, row) = (1, w as isize);
    let (start, right, down) = match orientation {
        2 => (row - 1, -column, row),
        3 => (last, -column, -row),
        4 => (last - (row - 1), column, -row),
        5 => (0, row, column),
        6 => (last - (row - 1), -row, column),
        7 => (last, -row, -column),
        8 => (row - 1, row, -column),
        _ => (0, column, row),
    };
    let (width, height) = if orientation >= 5 { (height, width) } else { (width, height) };
    empty(out, rgb.len());
    for y in 0..height as isize {
        let mut at = start + y * down;
        for _ in 0..width {
            let i = at as usize * 3;
            out.extend_from_slice(&rgb[i..i + 3]);
            at += right;
        }
    }
    (width, height)
}
