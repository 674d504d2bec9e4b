//! From the network as YOLOv8 describes it to the few kinds of work that kernels do.
//!
//! Nothing here depends on the picture's size or the instruction set. What disappears:
//! - `Slice`: a convolution whose result is cut writes its parts to tensors of their own;
//! - `Concat`: a convolution reads a list of tensors;
//! - `Add`: becomes the `residual` of the convolution before it;
//! - `Upsample2`: since W · cat(up(a), b) = up(Wₐ · a) + W_b · b for a 1 × 1 kernel, Wₐ · a is
//!   computed at half the resolution and is what the sums of W_b · b begin with. The upsampled
//!   tensor never exists, and a quarter of its work is left.

use std::collections::BTreeSet;

use super::super::api::EngineError;
use crate::kernels::Tier;
use crate::kernels::task::{Activation, Element};
use crate::yolo::{Act, Graph, Op as Node, Value};

/// Names a [`Tensor`]: its index.
pub(super) type Id = usize;

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The picture's values 0..=255, three to a pixel.
    Picture,
    /// Results of convolutions, for convolutions.
    Activation,
    /// The head's numbers, in single precision.
    Logits,
    /// What sums begin with, in single precision: each pixel twice in its row, and each row stands
    /// for two.
    Sums,
}

/// Up to 32 channels that are neighbours in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plane {
    /// Its first channel within the tensor.
    pub(super) first: usize,
    /// Channels there is room for: 3, 16 or 32.
    pub(super) lanes: usize,
    /// Channels there are. The rest is zero.
    pub(super) used: usize,
}

/// What is computed and kept.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) kind: Kind,
    pub(super) channels: usize,
    /// Pixels of the picture per pixel, on each axis.
    pub(super) stride: usize,
    pub(super) planes: Vec<Plane>,
}

/// A part of a convolution's input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term {
    pub(super) tensor: Id,
    /// The input channel, as the weights count them, of its first channel.
    pub(super) first: usize,
}

/// A part of a convolution's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) tensor: Id,
    /// The output channel, as the weights count them, of its first channel.
    pub(super) first: usize,
    /// Added to the result.
    pub(super) residual: Option<Id>,
}

/// Elements that are summed one after another: one tap of a plane, or a kernel row of taps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) tensor: Id,
    /// Index into the tensor's planes.
    pub(super) plane: usize,
    /// Input channel, as the weights count them, of the plane's first.
    pub(super) first: usize,
    /// Where the run begins, in pixels relative to the output pixel's place.
    pub(super) dy: isize,
    pub(super) dx: isize,
    /// Elements: a tap's, or those of all taps of a kernel row.
    pub(super) count: usize,
}

/// A convolution with everything that is done along with it.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    /// The node of the graph whose weights it takes.
    pub(super) node: Value,
    /// As in the checkpoint; `… (low)` for the part of one that is done before upsampling.
    pub(super) name: String,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) act: Activation,
    pub(super) terms: Vec<Term>,
    pub(super) parts: Vec<Part>,
    /// Its sums begin here instead of with the bias.
    pub(super) init: Option<Id>,
    pub(super) steps: Vec<Step>,
    /// By Winograd's scheme: `steps` has one entry for each plane.
    pub(super) winograd: bool,
}

/// A piece of work.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The picture's bytes to elements.
    Convert {
        to: Id,
    },
    Conv(Conv),
    /// 5 × 5 maximum, stride 1.
    Pool {
        from: Id,
        to: Id,
    },
    /// Notes the cells of a level in which some class passes the threshold.
    Scan {
        level: usize,
    },
}

/// One scale of the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// The ops (from the first to one past the last) that only its boxes need.
    pub(super) branch: (usize, usize),
    pub(super) stride: usize,
    pub(super) boxes: Id,
    pub(super) scores: Id,
    /// What the head reads, if a single tensor; for comparisons.
    pub(super) features: Id,
}

/// The network as work to be done in this order.
#[derive(Clone, Debug)]
pub(super) struct Net {
    pub(super) element: Element,
    /// For kernels that work on tiles: K-steps are whole lines of 32 elements.
    pub(super) tiled: bool,
    pub(super) tensors: Vec<Tensor>,
    pub(super) ops: Vec<Op>,
    pub(super) levels: Vec<Level>,
    pub(super) classes: usize,
    pub(super) reg_max: usize,
}

impl Op {
    /// The tensors it reads.
    pub(super) fn reads(&self, net: &Net) -> Vec<Id> {
        match self {
            Op::Convert { .. } => Vec::new(),
            Op::Conv(conv) => {
                let terms = conv.terms.iter().map(|term| term.tensor);
                let residuals = conv.parts.iter().filter_map(|part| part.residual);
                terms.chain(residuals).chain(conv.init).collect()
            }
            Op::Pool { from, .. } => vec![*from],
            Op::Scan { level } => vec![net.levels[*level].scores],
        }
    }

    /// The tensors it writes.
    pub(super) fn writes(&self) -> Vec<Id> {
        match self {
            Op::Convert { to } | Op::Pool { to, .. } => vec![*to],
            Op::Conv(conv) => conv.parts.iter().map(|part| part.tensor).collect(),
            Op::Scan { .. } => Vec::new(),
        }
    }
}

/// Cuts channels into planes: 32 each, and 16 for a rest of 16 or less.
fn planes(channels: usize) -> Vec<Plane> {
    let mut planes = Vec::with_capacity(channels.div_ceil(32));
    let mut first = 0;
    while first < channels {
        let used = (channels - first).min(32);
        let lanes = if used > 16 { 32 } else { 16 };
        planes.push(Plane { first, lanes, used });
        first += used;
    }
    planes
}

/// Whose node it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    /// Everything before the head.
    Trunk,
    /// The class branch of a level.
    Scores(usize),
    /// The box branch of a level.
    Boxes(usize),
}

/// The order of work: the graph's own, but the class branch of each scale of the head directly after
/// the features it reads, while these are still in the cache; and the box branches at the end, when
/// it is known where something was found.
fn order(graph: &Graph) -> Vec<(Value, Branch)> {
    let mut branches = vec![Branch::Trunk; graph.nodes.len()];
    for (level, output) in graph.outputs.iter().enumerate() {
        for (end, branch) in
            [(output.scores, Branch::Scores(level)), (output.boxes, Branch::Boxes(level))]
        {
            let mut open = vec![end];
            while let Some(node) = open.pop() {
                if node != output.features && branches[node] == Branch::Trunk {
                    branches[node] = branch;
                    open.extend(&graph.nodes[node].inputs);
                }
            }
        }
    }
    let of = |branch: Branch| {
        let nodes = branches.iter().enumerate().filter(move |&(_, &b)| b == branch);
        nodes.map(|(node, &branch)| (node, branch))
    };
    let mut order = Vec::with_capacity(graph.nodes.len());
    for (node, branch) in of(Branch::Trunk) {
        order.push((node, branch));
        for (level, output) in graph.outputs.iter().enumerate() {
            if output.features == node {
                order.extend(of(Branch::Scores(level)));
            }
        }
    }
    order.extend((0..graph.outputs.len()).flat_map(|level| of(Branch::Boxes(level))));
    order
}

/// A tensor as a node's consumers see it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    tensor: Id,
    /// Each pixel stands for 2 × 2.
    up: bool,
}

struct Lowering<'g> {
    graph: &'g Graph,
    net: Net,
    /// By node: the tensors that are its result, in channel order.
    pieces: Vec<Vec<Piece>>,
    /// By tensor: the op that writes it.
    writer: Vec<usize>,
}

/// Lowers `graph` for kernels of this tier: for how they store elements, and their arithmetic.
///
/// # Errors
/// [`EngineError::Unsupported`] for a graph that is no YOLOv8: a slice of a sum, an upsampling that
/// does not feed a 1 × 1 convolution.
pub(super) fn lower(graph: &Graph, tier: Tier) -> Result<Net, EngineError> {
    let net = Net {
        element: tier.element(),
        tiled: tier.has_tiles(),
        tensors: Vec::new(),
        ops: Vec::new(),
        levels: Vec::new(),
        classes: graph.classes,
        reg_max: graph.reg_max,
    };
    let pieces = vec![Vec::new(); graph.nodes.len()];
    let mut this = Lowering { graph, net, pieces, writer: Vec::new() };
    let mut first = None;
    for (node, branch) in order(graph) {
        let before = this.net.ops.len();
        this.node(node)?;
        match branch {
            Branch::Trunk => {}
            Branch::Scores(level) => {
                if graph.outputs[level].scores == node {
                    this.net.ops.push(Op::Scan { level });
                }
            }
            Branch::Boxes(level) => {
                // Done in part: row by row of the same height, out of what is there as a whole.
                let plain =
                    |op: &Op| matches!(op, Op::Conv(c) if c.stride == 1 && c.init.is_none());
                if !this.net.ops[before..].iter().all(plain) {
                    return Err(this.unsupported(node));
                }
                let start = *first.get_or_insert(before);
                let output = &graph.outputs[level];
                if output.boxes == node {
                    let one = |value: Value| this.pieces[value][0].tensor;
                    let level = Level {
                        branch: (start, this.net.ops.len()),
                        stride: output.stride,
                        boxes: one(output.boxes),
                        scores: one(output.scores),
                        features: one(output.features),
                    };
                    this.net.levels.push(level);
                    first = None;
                }
            }
        }
    }
    for op in 0..this.net.ops.len() {
        if let Op::Conv(conv) = &this.net.ops[op] {
            let winograd = tier.has_winograd() && suits_winograd(&this.net, conv);
            let steps = if winograd { planes_of(&this.net, conv) } else { steps(&this.net, conv) };
            if let Op::Conv(conv) = &mut this.net.ops[op] {
                (conv.steps, conv.winograd) = (steps, winograd);
            }
        }
    }
    Ok(this.net)
}

impl Lowering<'_> {
    fn tensor(&mut self, kind: Kind, channels: usize, stride: usize) -> Id {
        let planes = match kind {
            Kind::Picture => vec![Plane { first: 0, lanes: channels, used: channels }],
            _ => planes(channels),
        };
        self.net.tensors.push(Tensor { kind, channels, stride, planes });
        self.writer.push(self.net.ops.len());
        self.net.tensors.len() - 1
    }

    fn unsupported(&self, node: Value) -> EngineError {
        let op = format!("{:?}", self.graph.nodes[node].op);
        EngineError::Unsupported { step: format!("node {node}: {op}") }
    }

    fn node(&mut self, node: Value) -> Result<(), EngineError> {
        let this = &self.graph.nodes[node];
        let (channels, stride) = (this.channels, this.stride);
        let inputs: Vec<Vec<Piece>> = this.inputs.iter().map(|&i| self.pieces[i].clone()).collect();
        self.pieces[node] = match &this.op {
            Node::Input => {
                let to = self.tensor(Kind::Picture, channels, stride);
                self.net.ops.push(Op::Convert { to });
                vec![Piece { tensor: to, up: false }]
            }
            Node::Slice { from } => {
                let (mut at, mut taken) = (0, Vec::new());
                for &piece in &inputs[0] {
                    let len = self.net.tensors[piece.tensor].channels;
                    if at >= *from && at + len <= from + channels {
                        taken.push(piece);
                    } else if at < from + channels && at + len > *from {
                        return Err(self.unsupported(node));
                    }
                    at += len;
                }
                taken
            }
            Node::Concat => inputs.concat(),
            Node::Upsample2 => {
                if inputs[0].iter().any(|piece| piece.up) {
                    return Err(self.unsupported(node));
                }
                inputs[0].iter().map(|piece| Piece { up: true, ..*piece }).collect()
            }
            Node::MaxPool5 => {
                let mut out = Vec::with_capacity(inputs[0].len());
                for piece in &inputs[0] {
                    if piece.up {
                        return Err(self.unsupported(node));
                    }
                    let channels = self.net.tensors[piece.tensor].channels;
                    let to = self.tensor(Kind::Activation, channels, stride);
                    self.net.ops.push(Op::Pool { from: piece.tensor, to });
                    out.push(Piece { tensor: to, up: false });
                }
                out
            }
            Node::Add => self.add(node, &inputs)?,
            Node::Conv(conv) => self.conv(node, conv, inputs.concat())?,
        };
        Ok(())
    }

    /// `a + conv(…)`, where nobody else reads the convolution.
    fn add(&mut self, node: Value, inputs: &[Vec<Piece>]) -> Result<Vec<Piece>, EngineError> {
        for (sum, other) in [(1, 0), (0, 1)] {
            let value = self.graph.nodes[node].inputs[sum];
            let readers = self.graph.nodes.iter().filter(|n| n.inputs.contains(&value)).count();
            let ([piece], [residual]) = (inputs[sum].as_slice(), inputs[other].as_slice()) else {
                continue;
            };
            let (at, before) = (self.writer[piece.tensor], self.writer[residual.tensor]);
            let kinds = [piece, residual].map(|p| self.net.tensors[p.tensor].kind);
            let fits = readers == 1
                && before < at
                && !piece.up
                && !residual.up
                && kinds == [Kind::Activation; 2];
            if let (true, Some(Op::Conv(conv))) = (fits, self.net.ops.get_mut(at))
                && let [part] = conv.parts.as_mut_slice()
            {
                part.residual = Some(residual.tensor);
                return Ok(vec![*piece]);
            }
        }
        Err(self.unsupported(node))
    }

    fn conv(
        &mut self,
        node: Value,
        conv: &crate::yolo::Conv,
        inputs: Vec<Piece>,
    ) -> Result<Vec<Piece>, EngineError> {
        let stride = self.graph.nodes[node].stride;
        let mut first = 0;
        let (mut low, mut terms) = (Vec::new(), Vec::new());
        for piece in &inputs {
            let term = Term { tensor: piece.tensor, first };
            if piece.up {
                low.push(term)
            } else {
                terms.push(term)
            }
            first += self.net.tensors[piece.tensor].channels;
        }
        if !low.is_empty() && (terms.is_empty() || conv.kernel != 1 || conv.stride != 1) {
            return Err(self.unsupported(node));
        }
        let mut cuts = BTreeSet::from([0, conv.cout]);
        for reader in self.graph.nodes.iter().filter(|n| n.inputs == [node]) {
            if let Node::Slice { from } = reader.op {
                cuts.extend([from, from + reader.channels]);
            }
        }
        let cuts: Vec<usize> = cuts.into_iter().collect();
        let make = |this: &mut Self, kind, scale| -> Vec<Part> {
            let part = |pair: &[usize]| Part {
                tensor: this.tensor(kind, pair[1] - pair[0], scale),
                first: pair[0],
                residual: None,
            };
            cuts.windows(2).map(part).collect()
        };
        let base = Conv {
            node,
            name: conv.name.clone(),
            kernel: conv.kernel,
            stride: conv.stride,
            act: Activation::None,
            terms,
            parts: Vec::new(),
            init: None,
            steps: Vec::new(),
            winograd: false,
        };
        let mut inits = Vec::new();
        if !low.is_empty() {
            let parts = make(self, Kind::Sums, 2 * stride);
            inits = parts.iter().map(|part| part.tensor).collect();
            let name = format!("{} (low)", conv.name);
            self.net.ops.push(Op::Conv(Conv { name, terms: low, parts, ..base.clone() }));
        }
        let is_head = self.graph.outputs.iter().any(|o| o.boxes == node || o.scores == node);
        let kind = if is_head { Kind::Logits } else { Kind::Activation };
        let act = match conv.act {
            Act::Silu => Activation::Silu,
            Act::Identity => Activation::None,
        };
        let parts = make(self, kind, stride);
        let pieces = parts.iter().map(|p| Piece { tensor: p.tensor, up: false }).collect();
        if inits.is_empty() {
            self.net.ops.push(Op::Conv(Conv { act, parts, ..base }));
        } else {
            // One op per part: each has its own sums to begin with.
            for (part, init) in parts.into_iter().zip(inits) {
                self.writer[part.tensor] = self.net.ops.len();
                let (parts, init) = (vec![part], Some(init));
                self.net.ops.push(Op::Conv(Conv { act, parts, init, ..base.clone() }));
            }
        }
        Ok(pieces)
    }
}

/// The K-steps of a convolution: plane by plane, within it kernel row by kernel row, within that
/// tap by tap. Taps of a row whose pixels are full are one run in memory.
fn steps(net: &Net, conv: &Conv) -> Vec<Step> {
    let pad = (conv.kernel / 2) as isize;
    // What is read besides meets weights of zero.
    let whole = |count: usize| match net.element {
        Element::F32 => count,
        Element::Bf16 => count.next_multiple_of(if net.tiled { 32 } else { 2 }),
    };
    let mut steps = Vec::new();
    for term in &conv.terms {
        for (plane, p) in net.tensors[term.tensor].planes.iter().enumerate() {
            for ky in 0..conv.kernel {
                let step = Step {
                    tensor: term.tensor,
                    plane,
                    first: term.first + p.first,
                    dy: ky as isize - pad,
                    dx: -pad,
                    count: whole(conv.kernel * p.lanes),
                };
                if p.used == p.lanes || net.tiled {
                    steps.push(step);
                    continue;
                }
                for kx in 0..conv.kernel {
                    steps.push(Step { dx: kx as isize - pad, count: whole(p.used), ..step });
                }
            }
        }
    }
    steps
}

/// Whether a convolution is done by Winograd's scheme, where the kernels have it. A rule of the
/// shape alone, since it decides the bits.
fn suits_winograd(net: &Net, conv: &Conv) -> bool {
    let activations = |id: Id| net.tensors[id].kind == Kind::Activation;
    conv.kernel == 3
        && conv.stride == 1
        && conv.init.is_none()
        && conv.terms.iter().all(|term| activations(term.tensor))
        && conv.parts.iter().all(|part| activations(part.tensor))
}

/// One step for each plane of the input, at its tap above and left.
fn planes_of(net: &Net, conv: &Conv) -> Vec<Step> {
    let mut steps = Vec::new();
    for term in &conv.terms {
        for (plane, p) in net.tensors[term.tensor].planes.iter().enumerate() {
            let first = term.first + p.first;
            steps.push(Step { tensor: term.tensor, plane, first, dy: -1, dx: -1, count: p.lanes });
        }
    }
    steps
}
