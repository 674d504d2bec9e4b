//! Plays a plan on an arena of labels instead of numbers.
//!
//! Every pixel that an op writes is labelled with whose it is; every pixel that an op reads must
//! carry the label that the network asks for. Two tensors that take each other's place too early,
//! a row that was dropped while still needed, a border that is not zero: all show as a wrong label.
//! What a step means is taken from its description, what an op needs from the definition of a
//! convolution; the executor's own tables of offsets are not used.

use super::super::lower::{Id, Kind, Net, Op};
use super::super::plan::{Plan, Step};

/// A pixel of a border.
const ZERO: u64 = 1;

fn label(tensor: Id, plane: usize, row: isize, x: isize) -> u64 {
    (tensor as u64 + 1) << 48 | (plane as u64) << 40 | (row as u64) << 20 | x as u64
}

pub(super) struct Shadow<'a> {
    net: &'a Net,
    plan: &'a Plan,
    /// One label for two bytes.
    labels: Vec<u64>,
    /// By tensor: the row that lies first.
    first: Vec<isize>,
    /// By op: rows done.
    done: Vec<usize>,
    /// By tensor: the first and the last step that touch it.
    pub(super) life: Vec<Option<(usize, usize)>>,
}

impl<'a> Shadow<'a> {
    /// Plays the whole plan; panics where it is wrong.
    pub(super) fn play(net: &'a Net, plan: &'a Plan) -> Self {
        let mut this = Shadow {
            net,
            plan,
            labels: vec![0; plan.bytes.div_ceil(2)],
            first: vec![-1; net.tensors.len()],
            done: vec![0; net.ops.len()],
            life: vec![None; net.tensors.len()],
        };
        for (now, step) in plan.steps.iter().enumerate() {
            match *step {
                Step::Begin { tensor } => this.begin(now, tensor),
                Step::End { tensor } => {
                    this.line(now, tensor, plan.layouts[tensor].height as isize)
                }
                Step::Shift { tensor, to, end } => this.shift(now, tensor, to, end),
                Step::Run { op, from, to } => {
                    assert_eq!(this.done[op], from, "{step:?} is out of order");
                    assert!(from < to, "{step:?} does nothing");
                    this.done[op] = to;
                    (from..to).for_each(|row| this.write(now, op, row));
                    // Reading comes second: what an op writes must not lie on what it reads.
                    (from..to).for_each(|row| this.read(now, op, row));
                }
                Step::Boxes { level } => {
                    // All rows of all its ops; that fewer do no harm is for those who execute it.
                    let (first, end) = net.levels[level].branch;
                    for op in first..end {
                        this.done[op] = this.rows(op);
                        (0..this.rows(op)).for_each(|row| this.write(now, op, row));
                    }
                    for op in first..end {
                        (0..this.rows(op)).for_each(|row| this.read(now, op, row));
                    }
                }
            }
        }
        for (op, &done) in this.done.iter().enumerate() {
            assert_eq!(done, this.rows(op), "op {op} was not done wholly");
        }
        // What is read after the last step.
        for level in &net.levels {
            for tensor in [level.boxes, level.scores, level.features] {
                assert_eq!(this.first[tensor], -1, "tensor {tensor} was moved");
                (0..this.height(tensor)).for_each(|row| {
                    this.expect_row(plan.steps.len(), tensor, row as isize);
                });
            }
        }
        this
    }

    fn height(&self, tensor: Id) -> usize {
        self.plan.height / self.net.tensors[tensor].stride
    }

    fn rows(&self, op: usize) -> usize {
        match &self.net.ops[op] {
            Op::Scan { level } => self.height(self.net.levels[*level].scores),
            other => self.height(other.writes()[0]),
        }
    }

    fn planes(&self, tensor: Id) -> usize {
        self.net.tensors[tensor].planes.len()
    }

    /// Bytes per pixel of a plane.
    fn pixel(&self, tensor: Id, plane: usize) -> usize {
        let tensor = &self.net.tensors[tensor];
        let size = match tensor.kind {
            Kind::Sums | Kind::Logits => 4,
            Kind::Picture | Kind::Activation => self.net.element.bytes(),
        };
        tensor.planes[plane].lanes * size
    }

    /// The labels of a pixel.
    fn at(&self, tensor: Id, plane: usize, row: isize, x: isize) -> std::ops::Range<usize> {
        let layout = &self.plan.layouts[tensor];
        let slot = row - self.first[tensor];
        assert!(
            (0..layout.rows as isize).contains(&slot),
            "row {row} of tensor {tensor} is not in memory: {layout:?} from {}",
            self.first[tensor]
        );
        let pixel = self.pixel(tensor, plane);
        let byte =
            layout.planes[plane] as isize + (slot * layout.pitch as isize + x) * pixel as isize;
        assert!(
            byte >= 0 && byte as usize + pixel <= self.plan.bytes,
            "{byte} is not in the arena"
        );
        byte as usize / 2..(byte as usize + pixel) / 2
    }

    fn touch(&mut self, now: usize, tensor: Id) {
        let life = self.life[tensor].get_or_insert((now, now));
        life.1 = now;
    }

    fn mark(&mut self, tensor: Id, plane: usize, row: isize, x: isize, label: u64) {
        let at = self.at(tensor, plane, row, x);
        self.labels[at].fill(label);
    }

    fn begin(&mut self, now: usize, tensor: Id) {
        self.touch(now, tensor);
        assert_eq!(self.first[tensor], -1);
        let layout = &self.plan.layouts[tensor];
        let width = layout.width as isize;
        for plane in 0..self.planes(tensor) {
            (-1..=width).for_each(|x| self.mark(tensor, plane, -1, x, ZERO));
            for slot in 1..layout.rows as isize {
                self.mark(tensor, plane, slot - 1, width, ZERO);
            }
        }
        if layout.whole {
            self.line(now, tensor, layout.height as isize);
        }
    }

    /// A row of zeros.
    fn line(&mut self, now: usize, tensor: Id, row: isize) {
        self.touch(now, tensor);
        for plane in 0..self.planes(tensor) {
            for x in 0..self.plan.layouts[tensor].pitch as isize {
                self.mark(tensor, plane, row, x, ZERO);
            }
        }
    }

    fn shift(&mut self, now: usize, tensor: Id, to: isize, end: isize) {
        self.touch(now, tensor);
        assert!(to > self.first[tensor] && to <= end, "a shift of {tensor} to {to}..{end}");
        let pitch = self.plan.layouts[tensor].pitch as isize;
        for plane in 0..self.planes(tensor) {
            if to == end {
                continue;
            }
            let start = self.at(tensor, plane, to, 0).start;
            let stop = self.at(tensor, plane, end - 1, pitch - 1).end;
            let target = self.at(tensor, plane, self.first[tensor], 0).start;
            self.labels.copy_within(start..stop, target);
        }
        self.first[tensor] = to;
    }

    fn write(&mut self, now: usize, op: usize, row: usize) {
        for tensor in self.net.ops[op].writes() {
            self.touch(now, tensor);
            for plane in 0..self.planes(tensor) {
                for x in 0..self.plan.layouts[tensor].width as isize {
                    let label = label(tensor, plane, row as isize, x);
                    self.mark(tensor, plane, row as isize, x, label);
                }
            }
        }
    }

    /// A pixel is there; outside of the tensor it is zero.
    fn expect(&self, tensor: Id, plane: usize, row: isize, x: isize) {
        let (width, height) = (self.plan.layouts[tensor].width, self.height(tensor));
        let inside = (0..width as isize).contains(&x) && (0..height as isize).contains(&row);
        let expected = if inside { label(tensor, plane, row, x) } else { ZERO };
        let found = &self.labels[self.at(tensor, plane, row, x)];
        assert!(
            found.iter().all(|&label| label == expected),
            "tensor {tensor}, plane {plane}, row {row}, x {x}: {:#x} instead of {expected:#x}",
            found[0]
        );
    }

    fn expect_row(&mut self, now: usize, tensor: Id, row: isize) {
        self.touch(now, tensor);
        for plane in 0..self.planes(tensor) {
            for x in 0..self.plan.layouts[tensor].width as isize {
                self.expect(tensor, plane, row, x);
            }
        }
    }

    fn read(&mut self, now: usize, op: usize, row: usize) {
        let row = row as isize;
        let net = self.net;
        match &net.ops[op] {
            Op::Convert { .. } => {}
            Op::Conv(conv) => {
                let out = conv.parts[0].tensor;
                // Sums hold each pixel twice.
                let width = (self.plan.width / net.tensors[out].stride) as isize;
                let (stride, pad) = (conv.stride as isize, (conv.kernel / 2) as isize);
                for term in &conv.terms {
                    self.touch(now, term.tensor);
                    for plane in 0..self.planes(term.tensor) {
                        for (dy, x) in (-pad..=pad).flat_map(|dy| (0..width).map(move |x| (dy, x)))
                        {
                            for dx in -pad..=pad {
                                let (y, x) = (row * stride + dy, x * stride + dx);
                                self.expect(term.tensor, plane, y, x);
                            }
                        }
                    }
                }
                for residual in conv.parts.iter().filter_map(|part| part.residual) {
                    self.expect_row(now, residual, row);
                }
                if let Some(init) = conv.init {
                    self.expect_row(now, init, row / 2);
                }
            }
            Op::Pool { from, .. } => {
                let last = self.height(*from) as isize - 1;
                for y in (row - 2).max(0)..=(row + 2).min(last) {
                    self.expect_row(now, *from, y);
                }
            }
            Op::Scan { level } => self.expect_row(now, net.levels[*level].scores, row),
        }
    }

    /// The bytes of a tensor's planes, its border included.
    pub(super) fn extents(&self, tensor: Id) -> Vec<(usize, usize)> {
        let layout = &self.plan.layouts[tensor];
        (0..self.planes(tensor))
            .map(|plane| {
                let pixel = self.pixel(tensor, plane);
                let before = if layout.border { pixel } else { 0 };
                let start = layout.planes[plane];
                (start - before, start + layout.rows * layout.pitch * pixel)
            })
            .collect()
    }
}
