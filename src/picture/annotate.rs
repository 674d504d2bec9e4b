//! Drawing boxes and labels.
use super::{Picture, PictureError};
/// One detection to draw.
#[derive(Debug, Clone, Copy)]
pub struct Mark<'a> {
    /// x1, y1, x2, y2 in pixels of the picture.
    pub bbox: [f32; 4],
    /// Class number: chooses the colour.
    pub class: u32,
    /// Class name.
    pub label: &'a str,
    /// Score, 0 to 1.
    pub score: f32,
}
/// to come
pub fn annotate(_picture: &Picture, _marks: &[Mark]) -> Result<Vec<u8>, PictureError> {
    Err(PictureError::internal())
}
