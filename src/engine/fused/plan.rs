//! One plan per input size: where everything lies, and in which order it is done.
//!
//! Pure arithmetic. The plan does not know which instructions will execute it; whatever schedule
//! it chooses, results are the same bits, and tests hold it to that.
//!
//! **Planes.** A row of a plane has one pixel more than the picture: the zero on its right is also
//! the zero on the left of the next row. One zero row lies above the first and below the last. So
//! a 3 × 3 tap is another offset, nothing else, and nobody tests for borders.
//!
//! **Strips.** The tensors at the finer scales are many times larger than the second-level cache.
//! So the ops there run depth first: a strip of rows goes through all of them before the next
//! strip begins, and each tensor only keeps the rows that somebody still needs. What is kept moves
//! up before the next rows are written ([`Step::Shift`]); how many rows that takes, a simulation of
//! the schedule tells.
//!
//! **Arena.** All tensors share one block of memory: those that are never alive at the same time
//! take the same place.

use super::lower::{Id, Kind, Level, Net, Op};
use crate::kernels::ALIGN;
use crate::kernels::task::{Conv, Winograd};

/// How work is cut into strips. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strips {
    /// Ops that read tensors of at most this stride run in strips, but for networks whose strips are
    /// too large for the cache there.
    pub up_to_stride: usize,
    /// Bytes that the tensors inside of a group of such ops should take together.
    pub cache: usize,
    /// Rows of the picture in a strip, instead of as many as fit the cache.
    pub rows: Option<usize>,
}

impl Default for Strips {
    fn default() -> Self {
        Strips { up_to_stride: 8, cache: 5 << 18, rows: None }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Pixels.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Bytes of an element.
    pub(super) size: usize,
    /// Pixels from row to row.
    pub(super) pitch: usize,
    /// Rows there is room for.
    pub(super) rows: usize,
    /// For each plane the byte of the pixel at x = 0 of its first row.
    pub(super) planes: Vec<usize>,
    /// For each plane the bytes it takes, from the pixel before that one on.
    pub(super) spans: Vec<std::ops::Range<usize>>,
    /// Whether somebody reads elements besides those it means, which therefore must be finite.
    pub(super) clean: bool,
    /// Whether somebody reads beyond its borders, which therefore must be zero.
    pub(super) border: bool,
    /// Whether it has room for all rows at once, borders included.
    pub(super) whole: bool,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A tensor begins: zero its borders; its first row is row −1.
    Begin { tensor: Id },
    /// All rows of a tensor that is not whole are there: zero the row below.
    End { tensor: Id },
    /// Make row `to` the first of a tensor, and keep the rows from there to `end`.
    Shift { tensor: Id, to: isize, end: isize },
    /// Do rows `from..to` of an op.
    Run { op: usize, from: usize, to: usize },
    /// Do what the finds of a level need of its box branch, or all of it.
    Boxes { level: usize },
}

/// Everything that is known before a picture is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) layouts: Vec<Layout>,
    pub(super) steps: Vec<Step>,
    /// Bytes of the arena.
    pub(super) bytes: usize,
    /// Bytes that kernels want besides, for a moment.
    pub(super) scratch: usize,
}

/// Ops that are done together.
struct Group {
    first: usize,
    end: usize,
    way: Way,
}

/// How the ops of a group are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A single one on whole tensors, in parts of as many rows as [`Planner::rows_at_once`] says.
    Whole,
    /// Depth first.
    Strips,
    /// The box branch of a level: as [`super::finds`] says.
    Boxes(usize),
}

/// Plans the network for a picture of this size (multiples of 32).
pub(super) fn plan(net: &Net, width: usize, height: usize, mut strips: Strips) -> Plan {
    let mut planner = Planner::new(net, width, height);
    let mut groups = groups_of(net, strips.up_to_stride);
    while strips.rows.is_none()
        && strips.up_to_stride > Planner::ALWAYS
        && !planner.small_strips_fit(&groups, strips.cache)
    {
        strips.up_to_stride /= 2;
        groups = groups_of(net, strips.up_to_stride);
    }
    for group in &groups {
        match group.way {
            Way::Strips => planner.strips(group, strips),
            Way::Whole => planner.whole(group.first),
            Way::Boxes(level) => planner.boxes(group, level),
        }
    }
    planner.place(&groups);
    let Planner { layouts, steps, mut bytes, .. } = planner;
    if net.tiled {
        // The last tile of the last tensor: stride 2, 32 channels.
        bytes += Conv::TILE_OVERRUN * 2 * 32 * net.element.bytes();
    }
    let scratch = net.ops.iter().filter_map(|op| match op {
        Op::Conv(conv) if conv.winograd => {
            Some(4 * Winograd::scratch(conv.steps.iter().map(|step| step.count).sum()))
        }
        _ => None,
    });
    let scratch = scratch.max().unwrap_or(0);
    Plan { width, height, layouts, steps, bytes, scratch }
}

/// Runs of neighbouring ops that read nothing coarser than `up_to_stride`, box branches, and single ops.
fn groups_of(net: &Net, up_to_stride: usize) -> Vec<Group> {
    let fine = |op: &Op| {
        let coarsest = op.reads(net).into_iter().map(|id| match net.tensors[id].kind {
            // Only what is read at its own resolution counts.
            Kind::Sums => 1,
            _ => net.tensors[id].stride,
        });
        !matches!(op, Op::Pool { .. }) && coarsest.max().unwrap_or(1) <= up_to_stride
    };
    let boxes = |op: usize| {
        let of = |level: &Level| (level.branch.0..level.branch.1).contains(&op);
        net.levels.iter().position(of)
    };
    let mut groups: Vec<Group> = Vec::new();
    for (index, op) in net.ops.iter().enumerate() {
        let way = match boxes(index) {
            Some(level) => Way::Boxes(level),
            None if fine(op) => Way::Strips,
            None => Way::Whole,
        };
        match groups.last_mut() {
            Some(last) if way != Way::Whole && way == last.way => last.end = index + 1,
            _ => groups.push(Group { first: index, end: index + 1, way }),
        }
    }
    groups
}

struct Planner<'n> {
    net: &'n Net,
    layouts: Vec<Layout>,
    /// By tensor: the op that writes it.
    writer: Vec<usize>,
    steps: Vec<Step>,
    bytes: usize,
}

/// How far a group of ops is.
struct Progress {
    /// Rows done, by op of the group.
    done: Vec<usize>,
    /// First row in memory, by tensor.
    origin: Vec<isize>,
    /// Rows needed in memory at once, by tensor.
    room: Vec<usize>,
    steps: Vec<Step>,
}

impl<'n> Planner<'n> {
    /// Rows of the picture in a strip at least, however large its tensors are: in smaller ones weights
    /// are read too often, and too many rows are moved.
    const LEAST_ROWS: usize = 32;

    /// The stride up to which strips are made even if they do not fit the cache. (Beyond it, whole
    /// tensors are small, and a convolution as a whole is better than one in strips that do not fit.)
    const ALWAYS: usize = 4;

    /// Bytes that a convolution which is not in strips reads at once.
    const READ: usize = 3 << 18;

    fn new(net: &'n Net, width: usize, height: usize) -> Self {
        let mut layouts = Vec::with_capacity(net.tensors.len());
        for tensor in &net.tensors {
            let (mut w, h) = (width / tensor.stride, height / tensor.stride);
            let mut size = net.element.bytes();
            match tensor.kind {
                Kind::Sums => (w, size) = (2 * w, 4),
                Kind::Logits => size = 4,
                Kind::Picture | Kind::Activation => {}
            }
            layouts.push(Layout {
                width: w,
                height: h,
                size,
                pitch: w + 1,
                rows: h + 2,
                planes: Vec::new(),
                spans: Vec::new(),
                clean: false,
                border: false,
                whole: true,
            });
        }
        for op in &net.ops {
            if let Op::Conv(conv) = op {
                for term in conv.terms.iter().filter(|_| conv.kernel > 1) {
                    layouts[term.tensor].border = true;
                }
                // A line of 32 elements is more than one of these pixels.
                for term in conv.terms.iter().filter(|_| net.tiled) {
                    let narrow = net.tensors[term.tensor].planes.iter().any(|p| p.lanes < 32);
                    layouts[term.tensor].clean |= narrow;
                }
            }
        }
        let mut writer = vec![0; net.tensors.len()];
        for (index, op) in net.ops.iter().enumerate() {
            for id in op.writes() {
                writer[id] = index;
            }
        }
        Planner { net, layouts, writer, steps: Vec::new(), bytes: 0 }
    }

    /// Rows that an op makes in all.
    fn rows(&self, op: usize) -> usize {
        match &self.net.ops[op] {
            Op::Convert { to } | Op::Pool { to, .. } => self.layouts[*to].height,
            Op::Conv(conv) => self.layouts[conv.parts[0].tensor].height,
            Op::Scan { level } => self.layouts[self.net.levels[*level].scores].height,
        }
    }

    fn begin(&self, op: usize, steps: &mut Vec<Step>) {
        for tensor in self.net.ops[op].writes() {
            if self.layouts[tensor].border || self.layouts[tensor].clean {
                steps.push(Step::Begin { tensor });
            }
        }
    }

    fn whole(&mut self, op: usize) {
        let mut steps = std::mem::take(&mut self.steps);
        self.begin(op, &mut steps);
        let rows = self.rows(op);
        let each = self.rows_at_once(op);
        for from in (0..rows).step_by(each) {
            steps.push(Step::Run { op, from, to: rows.min(from + each) });
        }
        self.steps = steps;
    }

    /// How many rows of a convolution to do at once, so that what it reads for them stays in the
    /// second-level cache until all its blocks of outputs have read it.
    fn rows_at_once(&self, op: usize) -> usize {
        let rows = self.rows(op);
        let Op::Conv(conv) = &self.net.ops[op] else { return rows.max(1) };
        let bytes = |tensor: Id| {
            let layout = &self.layouts[tensor];
            self.tensor_bytes(tensor, layout.height)
        };
        let read: usize = conv.terms.iter().map(|term| bytes(term.tensor)).sum();
        let parts = read.div_ceil(Self::READ);
        let each = rows.div_ceil(parts.max(1)).max(1);
        if conv.winograd { each.next_multiple_of(Winograd::SIDE) } else { each }
    }

    /// The box branch: tensors that are whole, of which some rows are made.
    fn boxes(&mut self, group: &Group, level: usize) {
        let mut steps = std::mem::take(&mut self.steps);
        (group.first..group.end).for_each(|op| self.begin(op, &mut steps));
        steps.push(Step::Boxes { level });
        self.steps = steps;
    }

    /// How many rows an op could have made when its inputs have as many as `made` says, and it is
    /// not to be further than `pace`.
    fn possible(&self, op: usize, pace: usize, made: impl Fn(Id) -> usize) -> usize {
        let all = self.rows(op);
        let after = |tensor: Id, kernel: usize, stride: usize| {
            let there = made(tensor);
            if there == self.layouts[tensor].height {
                all
            } else {
                // Row y reads up to row y · stride + kernel / 2.
                (there + stride).saturating_sub(kernel / 2 + 1) / stride
            }
        };
        let rows = match &self.net.ops[op] {
            Op::Convert { .. } => all,
            Op::Conv(conv) => {
                let terms = conv.terms.iter().map(|t| after(t.tensor, conv.kernel, conv.stride));
                let residuals = conv.parts.iter().filter_map(|part| part.residual);
                let sums = conv.init.map(|id| 2 * made(id));
                terms.chain(residuals.map(&made)).chain(sums).min().unwrap_or(all)
            }
            Op::Pool { from, .. } => after(*from, 5, 1),
            Op::Scan { level } => made(self.net.levels[*level].scores),
        };
        let rows = rows.min(pace);
        match &self.net.ops[op] {
            // Whole tiles.
            Op::Conv(conv) if conv.winograd && rows < all => rows / Winograd::SIDE * Winograd::SIDE,
            _ => rows.min(all),
        }
    }

    /// The first row of `tensor` that an op needs for its row `next` and later ones.
    fn needs(&self, op: usize, tensor: Id, next: usize) -> Option<isize> {
        let next = next as isize;
        match &self.net.ops[op] {
            Op::Convert { .. } => None,
            Op::Conv(conv) => {
                let halo = (conv.kernel / 2) as isize;
                let terms = conv.terms.iter().filter(|term| term.tensor == tensor);
                let terms = terms.map(|_| next * conv.stride as isize - halo);
                let residual =
                    conv.parts.iter().any(|p| p.residual == Some(tensor)).then_some(next);
                let sums = (conv.init == Some(tensor)).then_some(next / 2);
                terms.chain(residual).chain(sums).min()
            }
            Op::Pool { from, .. } => (*from == tensor).then_some(next - 2),
            Op::Scan { level } => (self.net.levels[*level].scores == tensor).then_some(next),
        }
    }

    /// By tensor: whether nobody but a group has to do with it.
    fn inside(&self, group: &Group) -> Vec<bool> {
        (0..self.net.tensors.len())
            .map(|id| {
                let ops = |range: std::ops::Range<usize>| self.net.ops[range].iter();
                let written = (group.first..group.end).contains(&self.writer[id]);
                let outside = ops(0..group.first).chain(ops(group.end..self.net.ops.len()));
                // The head's numbers are read once more after the scan, cell by cell.
                let kept = self.net.tensors[id].kind == Kind::Logits
                    || self.net.levels.iter().any(|level| level.features == id);
                written && !kept && !outside.into_iter().any(|op| op.reads(self.net).contains(&id))
            })
            .collect()
    }

    /// Bytes that the tensors inside of a group take.
    fn room(&self, inside: &[bool], progress: &Progress) -> usize {
        let inside = (0..inside.len()).filter(|&id| inside[id]);
        inside.map(|id| self.tensor_bytes(id, progress.room[id])).sum()
    }

    /// Whether strips of the fewest rows stay in the cache.
    fn small_strips_fit(&self, groups: &[Group], cache: usize) -> bool {
        groups.iter().filter(|group| group.way == Way::Strips).all(|group| {
            let inside = self.inside(group);
            let progress = self.simulate(group, &inside, Self::LEAST_ROWS);
            self.room(&inside, &progress) <= cache
        })
    }

    /// Plans a group depth first.
    fn strips(&mut self, group: &Group, strips: Strips) {
        let height = self.layouts[0].height;
        let inside = self.inside(group);
        // The largest strip that fits the cache, else a small one.
        let smallest = self.net.ops[group.first..group.end]
            .iter()
            .flat_map(Op::writes)
            .map(|id| self.net.tensors[id].stride)
            .max()
            .unwrap_or(1)
            .max(Self::LEAST_ROWS);
        let mut rows = strips.rows.unwrap_or(height).max(1);
        let progress = loop {
            let progress = self.simulate(group, &inside, rows);
            let bytes = self.room(&inside, &progress);
            if strips.rows.is_some() || bytes <= strips.cache || rows <= smallest {
                break progress;
            }
            rows = (rows / 2).next_multiple_of(smallest);
        };
        for id in (0..inside.len()).filter(|&id| inside[id]) {
            let layout = &mut self.layouts[id];
            layout.rows = progress.room[id];
            layout.whole = false;
        }
        self.steps.extend(progress.steps);
    }

    fn simulate(&self, group: &Group, inside: &[bool], rows: usize) -> Progress {
        let height = self.layouts[0].height;
        let mut progress = Progress {
            done: vec![0; group.end - group.first],
            origin: vec![-1; inside.len()],
            room: vec![0; inside.len()],
            steps: Vec::new(),
        };
        for op in group.first..group.end {
            self.begin(op, &mut progress.steps);
        }
        let mut limit = rows;
        loop {
            let mut moved = false;
            for op in group.first..group.end {
                let made = |tensor: Id| {
                    let writer = self.writer[tensor];
                    match writer.checked_sub(group.first).and_then(|w| progress.done.get(w)) {
                        Some(&done) => done,
                        None => self.layouts[tensor].height,
                    }
                };
                // What reads only from outside the group sets the pace.
                let all = self.rows(op);
                let pace = (limit * all / height).min(all);
                let (from, to) = (progress.done[op - group.first], self.possible(op, pace, made));
                if to <= from {
                    continue;
                }
                moved = true;
                for id in self.net.ops[op].writes() {
                    if inside[id] {
                        self.make_room(group, id, (from, to, all), &mut progress);
                    }
                }
                progress.steps.push(Step::Run { op, from, to });
                progress.done[op - group.first] = to;
                for tensor in self.net.ops[op].writes() {
                    if to == all && inside[tensor] && self.layouts[tensor].border {
                        progress.steps.push(Step::End { tensor });
                    }
                }
            }
            if limit >= height && !moved {
                return progress;
            }
            limit += rows;
        }
    }

    /// Drops the rows of a tensor that nobody needs any more, before rows `from..to` come.
    fn make_room(
        &self,
        group: &Group,
        tensor: Id,
        (from, to, all): (usize, usize, usize),
        progress: &mut Progress,
    ) {
        let readers = (group.first..group.end).filter_map(|op| {
            let next = progress.done[op - group.first];
            if next == self.rows(op) { None } else { self.needs(op, tensor, next) }
        });
        let needed = readers.min().unwrap_or(from as isize).min(from as isize).max(-1);
        if needed > progress.origin[tensor] {
            let end = from as isize;
            progress.steps.push(Step::Shift { tensor, to: needed, end });
            progress.origin[tensor] = needed;
        }
        let below = isize::from(to == all);
        let room = (to as isize + below - progress.origin[tensor]) as usize;
        progress.room[tensor] = progress.room[tensor].max(room);
    }

    /// Bytes of one plane: a pixel before the first, the rows, and one line more than even, so
    /// that planes do not begin 4 KB apart.
    fn plane_bytes(&self, tensor: Id, lanes: usize, rows: usize) -> (usize, usize) {
        let layout = &self.layouts[tensor];
        let before = (lanes * layout.size).next_multiple_of(ALIGN);
        let lines = (before + (rows * layout.pitch + 1) * lanes * layout.size).div_ceil(ALIGN);
        let lines = lines + 2 * usize::from(layout.clean);
        (before, (lines | 1) * ALIGN)
    }

    fn tensor_bytes(&self, tensor: Id, rows: usize) -> usize {
        let planes = self.net.tensors[tensor].planes.iter();
        planes.map(|plane| self.plane_bytes(tensor, plane.lanes, rows).1).sum()
    }

    /// Gives every tensor its place: the largest first, each the lowest that is free for as long
    /// as it lives.
    fn place(&mut self, groups: &[Group]) {
        let group_of = |op: usize| groups.iter().position(|g| (g.first..g.end).contains(&op));
        let count = self.net.tensors.len();
        let mut life = vec![(usize::MAX, 0); count];
        for (index, op) in self.net.ops.iter().enumerate() {
            let now = group_of(index).unwrap_or(0);
            for id in op.reads(self.net).into_iter().chain(op.writes()) {
                life[id] = (life[id].0.min(now), life[id].1.max(now));
            }
        }
        for level in &self.net.levels {
            for id in [level.boxes, level.scores, level.features] {
                life[id].1 = groups.len();
            }
        }
        let mut bytes: Vec<usize> = Vec::with_capacity(count);
        for id in 0..count {
            bytes.push(self.tensor_bytes(id, self.layouts[id].rows));
        }
        let mut by_size: Vec<Id> = (0..count).collect();
        by_size.sort_by_key(|&id| (std::cmp::Reverse(bytes[id]), id));
        let mut placed: Vec<(usize, Id)> = Vec::with_capacity(count);
        for id in by_size {
            let mut at = 0;
            // Those in its way, from below.
            for &(start, other) in &placed {
                let apart = life[other].1 < life[id].0 || life[id].1 < life[other].0;
                if !apart && start < at + bytes[id] && at < start + bytes[other] {
                    at = start + bytes[other];
                }
            }
            placed.push((at, id));
            placed.sort_unstable();
            self.bytes = self.bytes.max(at + bytes[id]);
            let mut plane_at = at;
            for plane in &self.net.tensors[id].planes {
                let (before, size) = self.plane_bytes(id, plane.lanes, self.layouts[id].rows);
                self.layouts[id].planes.push(plane_at + before);
                self.layouts[id].spans.push(plane_at..plane_at + size);
                plane_at += size;
            }
        }
    }
}
