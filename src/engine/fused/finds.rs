//! Which rows of the box branch are worth computing.
//!
//! The class branch of a level says where something is found; boxes are read there and nowhere else.
//! In a photograph that is a small part of the finer levels, and the box branch is a sixth of the
//! whole network. So it comes after the scan of the scores, and of each of its convolutions only the
//! rows are done that a find depends on. Every number that is computed is computed as if all were.

use std::iter::Peekable;
use std::ops::Range;

use super::lower::{Level, Net, Op};
use crate::kernels::task::Winograd;

/// Rows that go through all convolutions of the branch before the next.
const ROWS: usize = 16;
/// Rows without a find that do not divide two runs of rows: they would be computed for their
/// neighbours' sake in any case.
const GAP: usize = 4;

/// The next run of rows, of `rows` in ascending order.
pub(super) fn next_run(rows: &mut Peekable<impl Iterator<Item = usize>>) -> Option<Range<usize>> {
    let first = rows.next()?;
    let mut end = first + 1;
    while let Some(row) = rows.next_if(|&row| row < first + ROWS && row <= end + GAP) {
        end = row + 1;
    }
    Some(first..end)
}

/// The rows of each op of the branch (of `height` in all) that rows `run` of its boxes depend on.
pub(super) fn needs(
    net: &Net,
    level: &Level,
    run: &Range<usize>,
    height: usize,
    needs: &mut Vec<Range<usize>>,
) {
    let (first, end) = level.branch;
    needs.clear();
    needs.resize(end - first, 0..0);
    for op in (first..end).rev() {
        let Op::Conv(conv) = &net.ops[op] else { continue };
        let written = |id| conv.parts.iter().any(|part| part.tensor == id);
        let mut rows = if written(level.boxes) { run.clone() } else { height..0 };
        for reader in op + 1..end {
            let Op::Conv(later) = &net.ops[reader] else { continue };
            if later.terms.iter().any(|term| written(term.tensor)) {
                let (theirs, halo) = (&needs[reader - first], later.kernel / 2);
                rows.start = rows.start.min(theirs.start.saturating_sub(halo));
                rows.end = rows.end.max((theirs.end + halo).min(height));
            }
        }
        if conv.winograd {
            // Whole tiles: a row's bits are those of its place in one.
            rows.start = rows.start / Winograd::SIDE * Winograd::SIDE;
            rows.end = rows.end.next_multiple_of(Winograd::SIDE).min(height);
        }
        needs[op - first] = rows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_short_and_cover_what_is_asked_for() {
        let runs = |rows: &[usize]| {
            let mut rows = rows.iter().copied().peekable();
            std::iter::from_fn(|| next_run(&mut rows)).collect::<Vec<_>>()
        };
        assert!(runs(&[]).is_empty());
        assert_eq!(runs(&[3, 3, 4, 30]), [3..5, 30..31]);
        assert_eq!(runs(&[0, 5, 11, 12]), [0..6, 11..13]);
        let all: Vec<usize> = (0..40).collect();
        assert_eq!(runs(&all), [0..16, 16..32, 32..40]);
    }
}
