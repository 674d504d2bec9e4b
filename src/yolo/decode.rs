//! From the head's raw numbers to boxes.
//!
//! A cell at column x, row y of a scale with stride s stands at ((x + 0.5)·s, (y + 0.5)·s). Its
//! box is given by the distances to the four sides, each the expectation of a softmax over
//! `reg_max` bins, in units of s. Its scores are sigmoids.
//!
//! Anchors are numbered over the scales, finest first, each row by row.

use super::math::{exp, sigmoid};

/// A box that may become a detection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Number of the cell that gave it.
    pub anchor: u32,
    /// Its best class.
    pub class: u32,
    /// The score of that class, 0..=1.
    pub score: f32,
    /// x1, y1, x2, y2 in pixels of the network's input.
    pub bbox: [f32; 4],
}

/// One scale of the head, planes of `width · height` values in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct Level<'a> {
    /// Input pixels per cell.
    pub stride: usize,
    /// Cells per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Box logits: 4 sides (left, top, right, bottom) × reg_max planes.
    pub boxes: &'a [f32],
    /// Class logits: one plane per class.
    pub scores: &'a [f32],
}

impl Level<'_> {
    fn cells(&self) -> usize {
        self.width * self.height
    }

    /// The cell of this number.
    fn cell(&self, cell: usize, first: usize) -> Cell {
        let (x, y) = (cell % self.width, cell / self.width);
        Cell { anchor: (first + cell) as u32, x, y, stride: self.stride }
    }

    fn bbox(&self, cell: usize, reg_max: usize) -> [f32; 4] {
        let cells = self.cells();
        self.cell(cell, 0).bbox(reg_max, |i| self.boxes[i * cells + cell])
    }
}

/// A cell of one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its number over all scales.
    pub anchor: u32,
    /// Its column.
    pub x: usize,
    /// Its row.
    pub y: usize,
    /// Input pixels per cell of its scale.
    pub stride: usize,
}

impl Cell {
    /// Its box, by the distances to the four sides; `logit` by side · reg_max + bin.
    fn bbox(&self, reg_max: usize, logit: impl Fn(usize) -> f32) -> [f32; 4] {
        let side = |side: usize| {
            let logit = |bin: usize| f64::from(logit(side * reg_max + bin));
            let largest = (0..reg_max).map(logit).fold(f64::NEG_INFINITY, f64::max);
            let (mut sum, mut weighted) = (0.0, 0.0);
            for bin in 0..reg_max {
                let e = exp(logit(bin) - largest);
                sum += e;
                weighted += e * bin as f64;
            }
            weighted / sum
        };
        let stride = self.stride as f64;
        let (x, y) = (self.x as f64 + 0.5, self.y as f64 + 0.5);
        [x - side(0), y - side(1), x + side(2), y + side(3)].map(|v| (v * stride) as f32)
    }

    /// What the cell says, if its best class scores more than `conf`: the rule of
    /// [`Head::candidates`] for a cell whose 4 · reg_max box logits and class logits lie together.
    #[must_use]
    pub fn candidate(&self, boxes: &[f32], scores: &[f32], conf: f32) -> Option<Candidate> {
        let (mut best, mut class) = (f32::NEG_INFINITY, 0);
        for (c, &logit) in scores.iter().enumerate() {
            if logit > best || logit.is_nan() {
                (best, class) = (logit, c as u32);
            }
        }
        self.passing(best, class, conf, || self.bbox(boxes.len() / 4, |i| boxes[i]))
    }

    fn passing(
        &self,
        best: f32,
        class: u32,
        conf: f32,
        bbox: impl FnOnce() -> [f32; 4],
    ) -> Option<Candidate> {
        let score = sigmoid(best);
        if score > conf {
            let bbox = bbox();
            if bbox.iter().all(|v| v.is_finite()) {
                return Some(Candidate { anchor: self.anchor, class, score, bbox });
            }
        }
        None
    }
}

/// The head of one picture.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// Its scales, finest first.
    pub levels: Vec<Level<'a>>,
    /// Bins per side.
    pub reg_max: usize,
    /// Number of classes.
    pub classes: usize,
}

impl Head<'_> {
    /// Fills `out` (cleared first) with the anchors whose best class scores more than `conf`, in
    /// anchor order.
    ///
    /// The best class is the one of the highest logit, the first of equals. Nothing that is NaN
    /// passes: no cell with a score that is NaN, no box with a coordinate that is not finite.
    pub fn candidates(&self, conf: f32, out: &mut Vec<Candidate>) {
        out.clear();
        let reject = logit_floor(conf);
        let mut first = 0;
        let (mut best, mut class) = (Vec::new(), Vec::new());
        for level in &self.levels {
            let cells = level.cells();
            best.clear();
            best.resize(cells, f32::NEG_INFINITY);
            class.clear();
            class.resize(cells, 0u32);
            // Class by class, so that memory is read in order.
            for (c, plane) in level.scores.chunks_exact(cells.max(1)).enumerate() {
                for ((best, class), &logit) in best.iter_mut().zip(&mut class).zip(plane) {
                    // A NaN stays, so that a cell with one is out.
                    if logit > *best || logit.is_nan() {
                        *best = logit;
                        *class = c as u32;
                    }
                }
            }
            for cell in 0..cells {
                // Most cells end here, without an exponential.
                if best[cell] < reject {
                    continue;
                }
                let bbox = || level.bbox(cell, self.reg_max);
                out.extend(level.cell(cell, first).passing(best[cell], class[cell], conf, bbox));
            }
            first += cells;
        }
    }

    /// Everything decoded, for comparison with other implementations: rows of all anchors, first
    /// centre x, centre y, width, height, then the score of each class; (4 + classes, anchors).
    pub fn dense(&self) -> Vec<f32> {
        let anchors: usize = self.levels.iter().map(Level::cells).sum();
        let mut out = vec![0.0; (4 + self.classes) * anchors];
        let mut first = 0;
        for level in &self.levels {
            let cells = level.cells();
            for cell in 0..cells {
                let [x1, y1, x2, y2] = level.bbox(cell, self.reg_max);
                let rows = [(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1];
                for (row, value) in rows.into_iter().enumerate() {
                    out[row * anchors + first + cell] = value;
                }
                for c in 0..self.classes {
                    out[(4 + c) * anchors + first + cell] = sigmoid(level.scores[c * cells + cell]);
                }
            }
            first += cells;
        }
        out
    }
}

/// A logit below which no score can exceed `conf`; a little low, the exact test comes after.
#[must_use]
pub fn logit_floor(conf: f32) -> f32 {
    let conf = f64::from(conf);
    if conf > 0.0 && conf < 1.0 {
        // The slack is far more than the rounding of a sigmoid between f64 and f32, which near 1
        // covers 2^-24 / (1 - conf) in logits: so none is taken where that is not small.
        if conf > 0.999 { 6.0 } else { ((conf / (1.0 - conf)).ln() - 0.01) as f32 }
    } else {
        f32::NEG_INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level<'a>(boxes: &'a [f32], scores: &'a [f32]) -> Level<'a> {
        Level { stride: 8, width: 2, height: 1, boxes, scores }
    }

    #[test]
    fn a_sharp_distribution_gives_its_bin() {
        // Two bins: the first cell says 0 on every side, the second 1.
        let boxes = [90.0, -90.0, -90.0, 90.0].repeat(4);
        let scores = [1.0, -1.0, 2.0, 3.0];
        let head = Head { levels: vec![level(&boxes, &scores)], reg_max: 2, classes: 2 };
        let mut out = vec![Candidate { anchor: 9, class: 9, score: 0.0, bbox: [0.0; 4] }];
        head.candidates(0.25, &mut out);
        assert_eq!(out.len(), 2);
        assert_eq!((out[0].anchor, out[0].class, out[0].bbox), (0, 1, [4.0, 4.0, 4.0, 4.0]));
        assert_eq!((out[1].anchor, out[1].class, out[1].bbox), (1, 1, [4.0, -4.0, 20.0, 12.0]));
        assert_eq!(out[1].score, sigmoid(3.0));
    }

    #[test]
    fn nan_and_infinity_never_pass() {
        let bad = [f32::NAN, f32::INFINITY];
        for value in bad {
            let mut boxes = vec![0.0f32; 16];
            boxes[0] = value;
            let scores = [5.0, f32::NAN, 4.0, 6.0];
            let head = Head { levels: vec![level(&boxes, &scores)], reg_max: 2, classes: 2 };
            let mut out = Vec::new();
            for conf in [-1.0, 0.0, 0.5, f32::NAN] {
                head.candidates(conf, &mut out);
                assert!(out.is_empty(), "{value} {conf} {out:?}");
            }
        }
    }

    #[test]
    fn the_floor_loses_nobody() {
        for conf in [0.0, 1e-7, 0.001, 0.25, 0.5, 0.7, 0.99, 0.9995, 0.999_999, 1.0] {
            let floor = logit_floor(conf);
            let mut logit = -20.0f32;
            while logit < 20.0 {
                assert!(sigmoid(logit) <= conf || logit >= floor, "{conf} {logit}");
                logit += 0.003;
            }
        }
    }

    #[test]
    fn sparse_and_dense_agree() {
        let boxes: Vec<f32> = (0..16).map(|i| (i as f32 * 0.7).sin()).collect();
        let scores: Vec<f32> = (0..6).map(|i| (i as f32 * 1.3).cos()).collect();
        let head = Head { levels: vec![level(&boxes, &scores)], reg_max: 2, classes: 3 };
        let dense = head.dense();
        let mut out = Vec::new();
        head.candidates(0.0, &mut out);
        assert_eq!(out.len(), 2);
        for c in out {
            let at = |row: usize| dense[row * 2 + c.anchor as usize];
            assert_eq!(c.score, at(4 + c.class as usize));
            assert!((c.bbox[2] - c.bbox[0] - at(2)).abs() < 1e-6);
            assert!(((c.bbox[1] + c.bbox[3]) / 2.0 - at(1)).abs() < 1e-6);
        }
    }
}
