//! Every anchor decoded, as other programs give their output: for comparisons.
//!
//! Jobs do not need it: [`super::super::Worker::run`] decodes the few cells that pass.

use super::super::api::{EngineError, Input};
use super::exec::Wanted;
use super::lower::Level;
use super::worker::FusedWorker;
use crate::kernels::dense::{CELLS, Row};
use crate::kernels::no_hook;

/// What [`FusedWorker::dense`] works in, kept from picture to picture.
#[derive(Debug, Default)]
pub struct Dense {
    boxes: Vec<Row>,
    scores: Vec<Row>,
    /// Rows of all anchors: centre x, centre y, width, height, then the score of each class;
    /// (4 + classes, anchors).
    pub output: Vec<f32>,
}

impl FusedWorker {
    /// Runs the network and decodes all that the head says into `dense`. Allocates nothing when
    /// the last picture had the same size.
    ///
    /// # Errors
    /// As [`super::super::Worker::run`].
    pub fn dense(&mut self, input: Input<'_>, dense: &mut Dense) -> Result<(), EngineError> {
        input.check()?;
        let size = (input.width, input.height);
        let program = self.execute(size, input.into(), Wanted::All, &no_hook, &mut ())?;
        let FusedWorker { shared, scratch, .. } = self;
        let net = &shared.net;
        let cells = |level: &Level| (input.width / level.stride) * (input.height / level.stride);
        let anchors: usize = net.levels.iter().map(cells).sum();
        dense.boxes.resize(4 * net.reg_max, [0.0; CELLS]);
        dense.scores.resize(net.classes, [0.0; CELLS]);
        dense.output.resize((4 + net.classes) * anchors, 0.0);
        let mut first = 0;
        for level in &net.levels {
            let (width, height) = (input.width / level.stride, input.height / level.stride);
            let stride = level.stride as f32;
            let rows = (0..height).map(|y| y * width);
            let begins = rows.flat_map(|row| (0..width).step_by(CELLS).map(move |x| row + x));
            for begin in begins {
                let count = CELLS.min(width - begin % width);
                let (machine, arena) = ((net, &shared.kernels), &scratch.arena);
                let cells = (begin, count);
                program.columns(machine, (arena, level.boxes), cells, &mut dense.boxes);
                program.columns(machine, (arena, level.scores), cells, &mut dense.scores);
                let mut sides = [[0.0; CELLS]; 4];
                shared.kernels.decode(&mut dense.boxes, &mut dense.scores, &mut sides);
                let mut rows = [[0.0; CELLS]; 4];
                for i in 0..count {
                    let cell = begin + i;
                    let (x, y) = ((cell % width) as f32 + 0.5, (cell / width) as f32 + 0.5);
                    let [left, top, right, bottom] = sides.map(|side| side[i]);
                    rows[0][i] = (x + (right - left) / 2.0) * stride;
                    rows[1][i] = (y + (bottom - top) / 2.0) * stride;
                    rows[2][i] = (left + right) * stride;
                    rows[3][i] = (top + bottom) * stride;
                }
                for (index, row) in rows.iter().chain(&dense.scores).enumerate() {
                    let at = index * anchors + first + begin;
                    dense.output[at..at + count].copy_from_slice(&row[..count]);
                }
            }
            first += cells(level);
        }
        Ok(())
    }
}
