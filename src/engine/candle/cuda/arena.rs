//! Where tensors lie in a GPU's memory: one arena, in which what nobody reads any more makes room.

use super::layers::{Id, Layers, Op};

/// Tensors begin at multiples of this many bytes, as whatever `cudaMalloc` gives does.
const LINE: usize = 256;

/// Places of the tensors of one shape of batch, in bytes from the arena's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arena {
    /// By tensor.
    pub(super) tensors: Vec<usize>,
    /// By op: where its sums are, if it has any.
    pub(super) sums: Vec<Option<usize>>,
    /// The whole.
    pub(super) bytes: usize,
}

/// A shape of batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Pictures, with those that only fill it up.
    pub(super) pictures: usize,
    /// Pixels per row, a multiple of 32.
    pub(super) width: usize,
    /// Rows, a multiple of 32.
    pub(super) height: usize,
}

impl Shape {
    /// Pixels of all pictures at this scale.
    pub(super) fn pixels(&self, scale: usize) -> usize {
        self.pictures * (self.width / scale) * (self.height / scale)
    }
}

/// The ops, as indices, during which a tensor is alive; the head's stay to the end.
pub(super) fn life(layers: &Layers, tensor: Id) -> (usize, usize) {
    let writes = |op: &Op| op.places().iter().any(|place| place.tensor == tensor);
    let reads = |op: &Op| op.reads().contains(&tensor);
    let kept = layers.levels.iter().any(|level| level.boxes == tensor || level.scores == tensor);
    // The picture is there before the first op.
    let first = match tensor == layers.picture {
        true => 0,
        false => layers.ops.iter().position(writes).unwrap_or(0),
    };
    let last = match kept {
        true => layers.ops.len(),
        false => layers.ops.iter().rposition(|op| reads(op) || writes(op)).unwrap_or(first),
    };
    (first, last)
}

impl Arena {
    /// Places for elements of `size` bytes.
    pub(super) fn new(layers: &Layers, shape: Shape, size: usize) -> Arena {
        let bytes = |channels: usize, scale: usize| {
            (shape.pixels(scale) * channels * size).next_multiple_of(LINE)
        };
        let lives: Vec<_> = (0..layers.tensors.len()).map(|id| life(layers, id)).collect();
        let mut arena =
            Arena { tensors: vec![0; lives.len()], sums: vec![None; layers.ops.len()], bytes: 0 };
        // What is alive: place, length, last op.
        let mut alive: Vec<(usize, usize, usize)> = Vec::new();
        for (index, op) in layers.ops.iter().enumerate() {
            alive.retain(|&(_, _, last)| last >= index);
            for (id, &(first, last)) in lives.iter().enumerate() {
                if first == index {
                    let tensor = layers.tensors[id];
                    let length = bytes(tensor.channels, tensor.stride);
                    arena.tensors[id] = arena.take(&mut alive, length, last);
                }
            }
            if let Op::Conv(conv) = op {
                let length = bytes(conv.channels, conv.scale);
                arena.sums[index] = Some(arena.take(&mut alive, length, index));
            }
        }
        arena
    }

    /// The smallest gap that is long enough, or the end.
    fn take(
        &mut self,
        alive: &mut Vec<(usize, usize, usize)>,
        length: usize,
        last: usize,
    ) -> usize {
        alive.sort_unstable();
        let (mut end, mut best) = (0, None);
        for &(at, taken, _) in alive.iter() {
            let gap = at - end;
            if gap >= length && best.is_none_or(|(_, smallest)| gap < smallest) {
                best = Some((end, gap));
            }
            end = at + taken;
        }
        let at = best.map_or(end, |(at, _)| at);
        alive.push((at, length, last));
        self.bytes = self.bytes.max(at + length);
        at
    }
}
