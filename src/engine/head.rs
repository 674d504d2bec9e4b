//! What a network says about one picture, before it is decoded.

use crate::yolo::{Head, Level};

/// The head's outputs for one picture.
#[derive(Clone, Debug)]
pub struct RawHead {
    /// Its scales, finest first.
    pub levels: Vec<RawLevel>,
    pub(super) reg_max: usize,
    pub(super) classes: usize,
}

/// One scale of a [`RawHead`]: planes in row-major order.
#[derive(Clone, Debug)]
pub struct RawLevel {
    /// Input pixels per cell.
    pub stride: usize,
    /// Cells per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Box logits, (4 · reg_max, height, width).
    pub boxes: Vec<f32>,
    /// Class logits, (classes, height, width).
    pub scores: Vec<f32>,
    /// What the head read, (channels, height, width).
    pub features: Vec<f32>,
}

impl RawLevel {
    fn view(&self) -> Level<'_> {
        let RawLevel { stride, width, height, .. } = *self;
        Level { stride, width, height, boxes: &self.boxes, scores: &self.scores }
    }
}

impl RawHead {
    /// The same for the decoder.
    #[must_use]
    pub fn view(&self) -> Head<'_> {
        let levels = self.levels.iter().map(RawLevel::view).collect();
        Head { levels, reg_max: self.reg_max, classes: self.classes }
    }
}
