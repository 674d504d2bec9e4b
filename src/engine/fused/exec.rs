//! Executes a plan, step by step.

use std::sync::Arc;

use super::super::api::Input;
use super::finds;
use super::lower::{Conv, Id, Kind, Net, Op};
use super::pack::Packed;
use super::plan::{Layout, Plan, Step};
use crate::kernels::dense::Row;
use crate::kernels::task::{Block, Conv as Task, KStep, Place, Pool, Store, Winograd};
use crate::kernels::{Hook, Kernels, Lead, Memory, Team};

/// The picture, in either form.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// As workers have it.
    Rgb(&'a [u8]),
    /// Planes R, G, B of values 0..=1, as candle's tensors have it.
    Planes(&'a [f32]),
}

impl<'a> From<Input<'a>> for Source<'a> {
    fn from(input: Input<'a>) -> Self {
        Source::Rgb(input.rgb)
    }
}

/// What is wanted of the head.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// All that it says.
    All,
    /// All that it says of cells in which some class's logit is at least this. Of other cells only
    /// scores are there.
    Finds(f32),
}

/// What a program runs with.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) net: &'a Net,
    pub(super) kernels: &'a Kernels,
    pub(super) weights: &'a [u8],
    /// For helpers of the team, if there is one.
    pub(super) hook: &'a Hook<'a>,
}

/// A plan with everything resolved that does not change from strip to strip.
pub(super) struct Program {
    pub(super) plan: Plan,
    /// By op.
    bound: Vec<Bound>,
}

/// A convolution's places, relative to row 0 of its tensors.
#[derive(Default)]
struct Bound {
    ksteps: Vec<Relative>,
    blocks: Vec<BoundBlock>,
    stride: usize,
}

/// A place in a tensor.
#[derive(Clone, Copy)]
struct Relative {
    tensor: Id,
    /// Byte of the first output row's first pixel if the tensor's first row were row 0.
    at: isize,
    /// Bytes per row of the tensor.
    line: usize,
    /// Bytes per output row and per output pixel.
    row: usize,
    px: usize,
    count: usize,
}

#[derive(Clone, Copy)]
struct BoundBlock {
    packed: Packed,
    lanes: usize,
    out: Relative,
    residual: Option<Relative>,
    init: Option<Relative>,
}

/// What one thread works in: an arena, and lists that are filled anew for each step.
pub(super) struct Scratch {
    pub(super) arena: Memory,
    /// Who may help, and whom this thread may help. A helper works in the arena of who leads, and
    /// between the stages of Winograd's scheme in its own memory.
    pub(super) team: Option<Arc<Team>>,
    /// Between the stages of Winograd's scheme.
    pub(super) transformed: Memory,
    origins: Vec<isize>,
    ksteps: Vec<KStep>,
    blocks: Vec<Block>,
    line: Vec<f32>,
    planes: Vec<(Place, usize)>,
    /// By level: the cells in which some class reaches the floor.
    pub(super) hits: Vec<Vec<u32>>,
    /// By op of a box branch: rows that are needed now, and rows that were done.
    needs: Vec<std::ops::Range<usize>>,
    done: Vec<usize>,
}

impl Scratch {
    /// For one thread, or for one of a team.
    pub(super) fn new(team: Option<Arc<Team>>) -> std::io::Result<Self> {
        Ok(Scratch {
            arena: Memory::new(1)?,
            team,
            transformed: Memory::new(1)?,
            origins: Vec::new(),
            ksteps: Vec::new(),
            blocks: Vec::new(),
            line: Vec::new(),
            planes: Vec::new(),
            hits: Vec::new(),
            needs: Vec::new(),
            done: Vec::new(),
        })
    }
}

#[cfg(test)]
impl Scratch {
    /// Fills all memory with NaN.
    pub(super) fn poison(&mut self) {
        self.arena.bytes_mut().fill(0xFF);
        self.transformed.bytes_mut().fill(0xFF);
    }
}

/// Told of every step after it was done; for the profile.
pub(super) trait Observer {
    fn done(&mut self, step: &Step);
}

impl Observer for () {
    fn done(&mut self, _: &Step) {}
}

impl Program {
    pub(super) fn new(net: &Net, plan: Plan, packed: &[Vec<Packed>]) -> Self {
        let bound = net
            .ops
            .iter()
            .zip(packed)
            .map(|(op, packed)| match op {
                Op::Conv(conv) => bind(net, &plan, conv, packed),
                _ => Bound::default(),
            })
            .collect();
        Program { plan, bound }
    }

    /// Runs the network on `source`, as far as it is needed for what is wanted.
    pub(super) fn run(
        &self,
        machine: Machine<'_>,
        source: Source<'_>,
        wanted: Wanted,
        scratch: &mut Scratch,
        observer: &mut impl Observer,
    ) -> std::io::Result<()> {
        let Machine { net, kernels, hook, .. } = machine;
        if scratch.arena.len() < self.plan.bytes {
            scratch.arena = Memory::new(self.plan.bytes)?;
        }
        if scratch.transformed.len() < self.plan.scratch {
            scratch.transformed = Memory::new(self.plan.scratch)?;
        }
        let team = scratch.team.clone();
        let mut lead = team.as_ref().and_then(|team| team.lead(hook));
        scratch.origins.clear();
        scratch.origins.resize(net.tensors.len(), -1);
        scratch.hits.resize(net.levels.len(), Vec::new());
        scratch.hits.iter_mut().for_each(Vec::clear);
        let floor = match wanted {
            Wanted::All => f32::INFINITY,
            Wanted::Finds(floor) => floor,
        };
        for step in &self.plan.steps {
            match *step {
                Step::Begin { tensor } => self.begin(net, tensor, &mut scratch.arena),
                Step::End { tensor } => self.end(net, tensor, scratch),
                Step::Shift { tensor, to, end } => self.shift(net, tensor, to, end, scratch),
                Step::Run { op, from, to } => match &net.ops[op] {
                    Op::Convert { to: tensor } => {
                        self.convert(*tensor, kernels, source, from..to, scratch);
                    }
                    Op::Conv(conv) => {
                        self.conv(machine, conv, op, from..to, &mut lead, scratch);
                    }
                    Op::Pool { from: input, to: output } => {
                        self.pool(net, kernels, (*input, *output), from..to, scratch);
                    }
                    Op::Scan { level } => {
                        self.scan(net, kernels, *level, from..to, floor, scratch);
                    }
                },
                Step::Boxes { level } => {
                    // A list of its own: the rest of the memory is written meanwhile.
                    let hits = std::mem::take(&mut scratch.hits[level]);
                    let Layout { width, height, .. } = self.plan.layouts[net.levels[level].boxes];
                    let machine = (machine, &mut lead);
                    match wanted {
                        Wanted::All => self.boxes(machine, level, 0..height, scratch, observer),
                        Wanted::Finds(_) => {
                            let rows = hits.iter().map(|&cell| cell as usize / width);
                            self.boxes(machine, level, rows, scratch, observer);
                        }
                    }
                    scratch.hits[level] = hits;
                }
            }
            observer.done(step);
        }
        Ok(())
    }

    /// Makes these rows (in ascending order) of a level's boxes, and of what they are made of.
    fn boxes(
        &self,
        (machine, lead): (Machine<'_>, &mut Option<Lead<'_>>),
        level: usize,
        rows: impl Iterator<Item = usize>,
        scratch: &mut Scratch,
        observer: &mut impl Observer,
    ) {
        let net = machine.net;
        let level = &net.levels[level];
        let height = self.plan.layouts[level.boxes].height;
        let (first, end) = level.branch;
        scratch.done.clear();
        scratch.done.resize(end - first, 0);
        let mut rows = rows.peekable();
        while let Some(run) = finds::next_run(&mut rows) {
            finds::needs(net, level, &run, height, &mut scratch.needs);
            for op in first..end {
                let Op::Conv(conv) = &net.ops[op] else { continue };
                // Runs ascend, so what an earlier one needed beyond this one's beginning is there up
                // to where it ended.
                let (needed, done) = (&scratch.needs[op - first], &mut scratch.done[op - first]);
                let (from, to) = (needed.start.max(*done), needed.end);
                if from < to {
                    *done = to;
                    self.conv(machine, conv, op, from..to, lead, scratch);
                    observer.done(&Step::Run { op, from, to });
                }
            }
        }
    }

    /// Where row `row`, pixel 0 of a plane lies.
    fn row(&self, tensor: Id, plane: usize, lanes: usize, row: isize, origin: isize) -> usize {
        let layout = &self.plan.layouts[tensor];
        let bytes = (row - origin) * (layout.pitch * lanes * layout.size) as isize;
        layout.planes[plane].wrapping_add_signed(bytes)
    }

    fn begin(&self, net: &Net, tensor: Id, arena: &mut Memory) {
        let layout = &self.plan.layouts[tensor];
        if layout.clean {
            for span in &layout.spans {
                arena.bytes_mut()[span.clone()].fill(0);
            }
            return;
        }
        for (index, plane) in net.tensors[tensor].planes.iter().enumerate() {
            let pixel = plane.lanes * layout.size;
            let line = layout.pitch * pixel;
            let start = layout.planes[index];
            let bytes = arena.bytes_mut();
            // The pixel before the first row, and the row above.
            bytes[start - pixel..start + line].fill(0);
            for row in 1..layout.rows {
                let at = start + row * line + layout.width * pixel;
                bytes[at..at + pixel].fill(0);
            }
            if layout.whole {
                let below = start + (layout.height + 1) * line;
                bytes[below..below + line].fill(0);
            }
        }
    }

    fn end(&self, net: &Net, tensor: Id, scratch: &mut Scratch) {
        let layout = &self.plan.layouts[tensor];
        let origin = scratch.origins[tensor];
        for (index, plane) in net.tensors[tensor].planes.iter().enumerate() {
            let at = self.row(tensor, index, plane.lanes, layout.height as isize, origin);
            let line = layout.pitch * plane.lanes * layout.size;
            scratch.arena.bytes_mut()[at..at + line].fill(0);
        }
    }

    fn shift(&self, net: &Net, tensor: Id, to: isize, end: isize, scratch: &mut Scratch) {
        let layout = &self.plan.layouts[tensor];
        let origin = std::mem::replace(&mut scratch.origins[tensor], to);
        for (index, plane) in net.tensors[tensor].planes.iter().enumerate() {
            let pixel = plane.lanes * layout.size;
            let from = self.row(tensor, index, plane.lanes, to, origin);
            let len = (end - to) as usize * layout.pitch * pixel;
            scratch.arena.bytes_mut().copy_within(from..from + len, layout.planes[index]);
        }
    }

    fn convert(
        &self,
        tensor: Id,
        kernels: &Kernels,
        source: Source<'_>,
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Plan { width, height, .. } = self.plan;
        for row in rows {
            let at = self.row(tensor, 0, 3, row as isize, scratch.origins[tensor]);
            match source {
                Source::Rgb(rgb) => {
                    let line = &rgb[row * width * 3..(row + 1) * width * 3];
                    kernels.convert(&mut scratch.arena, at, line);
                }
                Source::Planes(planes) => {
                    scratch.line.clear();
                    for x in 0..width {
                        for channel in planes.chunks_exact(width * height) {
                            scratch.line.push(channel[row * width + x] * 255.0);
                        }
                    }
                    kernels.store(&mut scratch.arena, at, &scratch.line);
                }
            }
        }
    }

    fn conv(
        &self,
        Machine { net, kernels, weights, .. }: Machine<'_>,
        conv: &Conv,
        op: usize,
        rows: std::ops::Range<usize>,
        lead: &mut Option<Lead<'_>>,
        scratch: &mut Scratch,
    ) {
        let Scratch { arena, transformed, origins, ksteps, blocks, .. } = scratch;
        let bound = &self.bound[op];
        let place = |relative: &Relative, row: usize| {
            let rows = row as isize - origins[relative.tensor];
            let at = (relative.at + rows * relative.line as isize) as usize;
            Place { at, row: relative.row, px: relative.px }
        };
        ksteps.clear();
        ksteps.extend(bound.ksteps.iter().map(|relative| KStep {
            from: place(relative, rows.start * bound.stride),
            count: relative.count,
        }));
        blocks.clear();
        blocks.extend(bound.blocks.iter().map(|block| Block {
            weights: block.packed.weights,
            bias: block.packed.bias,
            lanes: block.lanes,
            out: place(&block.out, rows.start),
            residual: block.residual.as_ref().map(|r| place(r, rows.start)),
            init: block.init.as_ref().map(|r| place(r, rows.start / 2)),
        }));
        if conv.winograd {
            let width = self.plan.layouts[conv.parts[0].tensor].width;
            let (rows, act) = (rows.len(), conv.act);
            let task = Winograd { planes: ksteps, blocks, rows, width, act };
            match lead {
                None => kernels.winograd(arena, weights, transformed, &task),
                Some(lead) => kernels.winograd_team(lead, arena, weights, transformed, &task),
            }
            return;
        }
        let out = conv.parts[0].tensor;
        let (store, width) = match net.tensors[out].kind {
            Kind::Sums => (Store::F32Twice, self.plan.layouts[out].width / 2),
            Kind::Logits => (Store::F32, self.plan.layouts[out].width),
            _ => (Store::Element, self.plan.layouts[out].width),
        };
        let task = Task {
            ksteps,
            blocks,
            rows: rows.len(),
            width,
            odd: rows.start % 2 == 1,
            act: conv.act,
            store,
        };
        match lead {
            None => kernels.conv(arena, weights, &task),
            Some(lead) => kernels.conv_team(lead, arena, weights, transformed, &task),
        }
    }

    fn pool(
        &self,
        net: &Net,
        kernels: &Kernels,
        (input, output): (Id, Id),
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let layout = &self.plan.layouts[input];
        for (index, plane) in net.tensors[input].planes.iter().enumerate() {
            let pixel = plane.lanes * layout.size;
            let line = layout.pitch * pixel;
            let at = |tensor: Id, row: usize| Place {
                at: self.row(tensor, index, plane.lanes, row as isize, scratch.origins[tensor]),
                row: line,
                px: pixel,
            };
            let task = Pool {
                from: at(input, 0),
                out: at(output, rows.start),
                first: rows.start,
                rows: rows.len(),
                height: layout.height,
                width: layout.width,
                lanes: plane.lanes,
            };
            kernels.pool(&mut scratch.arena, &task, &mut scratch.line);
        }
    }

    fn scan(
        &self,
        net: &Net,
        kernels: &Kernels,
        level: usize,
        rows: std::ops::Range<usize>,
        floor: f32,
        scratch: &mut Scratch,
    ) {
        let scores = net.levels[level].scores;
        let layout = &self.plan.layouts[scores];
        for row in rows {
            scratch.planes.clear();
            for (index, plane) in net.tensors[scores].planes.iter().enumerate() {
                let origin = scratch.origins[scores];
                let at = self.row(scores, index, plane.lanes, row as isize, origin);
                let place = Place { at, row: 0, px: plane.lanes * 4 };
                scratch.planes.push((place, plane.lanes));
            }
            let cells = (row * layout.width, layout.width);
            kernels.scan(&scratch.arena, &scratch.planes, cells, floor, &mut scratch.hits[level]);
        }
    }

    /// Copies one pixel's channels of a whole f32 tensor to `out`.
    pub(super) fn cell(&self, net: &Net, arena: &Memory, tensor: Id, cell: usize, out: &mut [f32]) {
        let layout = &self.plan.layouts[tensor];
        let (x, y) = (cell % layout.width, cell / layout.width);
        for (index, plane) in net.tensors[tensor].planes.iter().enumerate() {
            let at = self.row(tensor, index, plane.lanes, y as isize, -1) + x * plane.lanes * 4;
            out[plane.first..plane.first + plane.used]
                .copy_from_slice(&arena.floats()[at / 4..][..plane.used]);
        }
    }

    /// The channels of `count` neighbours in a row of a whole f32 tensor, from `cell` on: a row of
    /// them for each channel.
    pub(super) fn columns(
        &self,
        (net, kernels): (&Net, &Kernels),
        (arena, tensor): (&Memory, Id),
        (cell, count): (usize, usize),
        out: &mut [Row],
    ) {
        let layout = &self.plan.layouts[tensor];
        let (x, y) = (cell % layout.width, cell / layout.width);
        for (index, plane) in net.tensors[tensor].planes.iter().enumerate() {
            let px = 4 * plane.lanes;
            let at = self.row(tensor, index, plane.lanes, y as isize, -1) + x * px;
            let out = &mut out[plane.first..plane.first + plane.used];
            kernels.columns(arena, &Place { at, row: 0, px }, count, out);
        }
    }

    /// A whole tensor as planes of rows: (channels, height, width).
    pub(super) fn tensor(&self, net: &Net, arena: &Memory, tensor: Id) -> Vec<f32> {
        let layout = &self.plan.layouts[tensor];
        let Layout { width, height, size, .. } = *layout;
        let mut out = vec![0.0; net.tensors[tensor].channels * width * height];
        for (index, plane) in net.tensors[tensor].planes.iter().enumerate() {
            for y in 0..height {
                let row = self.row(tensor, index, plane.lanes, y as isize, -1);
                for x in 0..width {
                    for c in 0..plane.used {
                        let at = row + (x * plane.lanes + c) * size;
                        let value = match size {
                            2 => f32::from_bits(u32::from(arena.halves()[at / 2]) << 16),
                            _ => arena.floats()[at / 4],
                        };
                        out[((plane.first + c) * height + y) * width + x] = value;
                    }
                }
            }
        }
        out
    }
}

/// Resolves a convolution's places.
fn bind(net: &Net, plan: &Plan, conv: &Conv, packed: &[Packed]) -> Bound {
    let relative = |tensor: Id, plane: usize, (dy, dx): (isize, isize), stride: usize, count| {
        let layout = &plan.layouts[tensor];
        let px = net.tensors[tensor].planes[plane].lanes * layout.size;
        let line = layout.pitch * px;
        let at = layout.planes[plane] as isize + dy * line as isize + dx * px as isize;
        Relative { tensor, at, line, row: stride * line, px: stride * px, count }
    };
    let ksteps = conv
        .steps
        .iter()
        .map(|step| relative(step.tensor, step.plane, (step.dy, step.dx), conv.stride, step.count));
    let mut blocks = Vec::with_capacity(packed.len());
    let planes = conv.parts.iter().flat_map(|part| {
        let planes = net.tensors[part.tensor].planes.iter().enumerate();
        planes.map(move |(index, plane)| (part, index, plane.lanes))
    });
    for ((part, index, lanes), packed) in planes.zip(packed) {
        let mut out = relative(part.tensor, index, (0, 0), 1, 0);
        if net.tensors[part.tensor].kind == Kind::Sums {
            out.px *= 2;
        }
        blocks.push(BoundBlock {
            packed: *packed,
            lanes,
            out,
            residual: part.residual.map(|id| relative(id, index, (0, 0), 1, 0)),
            init: conv.init.map(|id| relative(id, index, (0, 0), 1, 0)),
        });
    }
    Bound { ksteps: ksteps.collect(), blocks, stride: conv.stride }
}
