//! EXIF orientation: finding it and turning pixels upright.

use image::metadata::Orientation;

use super::decode::sized;

/// The orientation, 1 to 8, in an EXIF block; with or without the `Exif\0\0` that JPEG puts
/// before it. `None` where it says nothing usable.
pub(super) fn from_exif(block: &[u8]) -> Option<u8> {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    Orientation::from_exif_chunk(tiff).map(Orientation::to_exif)
}

/// Sides in pixels of the squares in which pixels are moved: where rows become columns, all lines
/// of a square stay in the cache until they are used up.
const TILE: usize = 32;

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
    sized(out, rgb.len());
    let line = width as usize * 3;
    let across = if orientation >= 5 { TILE } else { width as usize };
    for (band, lines) in out.chunks_mut((TILE * line).max(1)).enumerate() {
        for left in (0..width as usize).step_by(across) {
            for (y, line) in lines.chunks_exact_mut(line).enumerate() {
                let y = (band * TILE + y) as isize;
                let mut at = start + y * down + left as isize * right;
                let part = line.len().min((left + across) * 3);
                for to in line[left * 3..part].chunks_exact_mut(3) {
                    let i = at as usize * 3;
                    to.copy_from_slice(&rgb[i..i + 3]);
                    at += right;
                }
            }
        }
    }
    (width, height)
}
