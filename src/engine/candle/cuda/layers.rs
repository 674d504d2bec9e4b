//! From the graph to the few kinds of work that a GPU does, whatever the size of pictures and batch.
//!
//! Tensors are NHWC, their channels in groups of [`GROUP`]. A convolution by a library leaves its sums
//! in a tensor of their own; what follows it (bias, activation, residual) reads them once and writes
//! the result to each place where somebody wants it, so that nothing is left of:
//! - `Slice`: parts of a result go to different places;
//! - `Concat`: a tensor whose parts several results are written to;
//! - `Add`: the residual of the convolution before it;
//! - `Upsample2`: a place that gets each pixel four times.

use crate::engine::EngineError;
use crate::yolo::{Act, Graph, Op as Node, Value};

/// Channels that are neighbours in memory and have a thread: parts of tensors begin at multiples of
/// it and are filled up with zeros.
pub(super) const GROUP: usize = 8;

/// Places that one result may go to: as many as kernels.cu has room for.
pub(super) const PLACES: usize = 4;

/// Names a tensor: its index in [`Layers::tensors`].
pub(super) type Id = usize;

/// What is computed and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Channels there is room for, a multiple of [`GROUP`].
    pub(super) channels: usize,
    /// Pixels of the picture per pixel, on each axis.
    pub(super) stride: usize,
}

/// Channels of the network, and where they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The first of them, as weights count them.
    pub(super) first: usize,
    /// How many.
    pub(super) count: usize,
    /// The first one's place among the channels in memory.
    pub(super) at: usize,
}

/// A part of a result that goes to a part of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tensor: Id,
    /// Its first channel there.
    pub(super) first: usize,
    /// Its first channel in the result.
    pub(super) from: usize,
    /// Channels, with those that only fill up.
    pub(super) channels: usize,
    /// Each pixel becomes 2 × 2.
    pub(super) up: bool,
}

/// Where something is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) tensor: Id,
    pub(super) first: usize,
}

/// A convolution and everything up to the next one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Conv {
    /// The node of the graph whose weights it takes.
    pub(super) node: Value,
    /// As in the checkpoint.
    pub(super) name: String,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) act: Act,
    /// All of this tensor is read.
    pub(super) from: Id,
    /// Where input channels are among those of `from`, and output channels among those of the sums.
    pub(super) inputs: Vec<Segment>,
    pub(super) outputs: Vec<Segment>,
    /// Channels of the sums, a multiple of [`GROUP`].
    pub(super) channels: usize,
    /// Pixels of the picture per pixel of the result.
    pub(super) scale: usize,
    /// Added to the result.
    pub(super) residual: Option<View>,
    pub(super) places: Vec<Place>,
}

/// 5 × 5 maximum, stride 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pool {
    pub(super) from: View,
    pub(super) channels: usize,
    pub(super) scale: usize,
    pub(super) places: Vec<Place>,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Conv(Conv),
    Pool(Pool),
}

/// One scale of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) stride: usize,
    pub(super) boxes: Id,
    pub(super) scores: Id,
}

/// The network as work to be done in this order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layers {
    pub(super) tensors: Vec<Tensor>,
    /// The picture: three channels and zeros.
    pub(super) picture: Id,
    pub(super) ops: Vec<Op>,
    pub(super) levels: Vec<Level>,
    pub(super) classes: usize,
    pub(super) reg_max: usize,
}

impl Op {
    /// The tensors it reads.
    pub(super) fn reads(&self) -> Vec<Id> {
        match self {
            Op::Conv(conv) => {
                std::iter::once(conv.from).chain(conv.residual.map(|view| view.tensor)).collect()
            }
            Op::Pool(pool) => vec![pool.from.tensor],
        }
    }

    pub(super) fn places(&self) -> &[Place] {
        match self {
            Op::Conv(conv) => &conv.places,
            Op::Pool(pool) => &pool.places,
        }
    }
}

/// Some channels of a node's result, perhaps upsampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// A convolution, a pool, or the picture.
    root: Value,
    /// The first channel.
    first: usize,
    count: usize,
    up: bool,
}

/// What is known of a node that computes something.
#[derive(Clone, Debug, Default)]
struct Root {
    /// Parts of its result that somebody wants, by their first channel.
    wanted: Vec<(usize, usize)>,
    /// Where they go: the part's first channel, and the place but for `from`.
    homes: Vec<(usize, Place)>,
    /// What is added.
    residual: Option<Part>,
}

fn padded(channels: usize) -> usize {
    channels.next_multiple_of(GROUP)
}

/// Lowers `graph`.
///
/// # Errors
/// [`EngineError::Unsupported`] for a graph that is no YOLOv8: a sum of two values that others want
/// too, a concat of concats, something upsampled twice.
pub(super) fn lower(graph: &Graph) -> Result<Layers, EngineError> {
    let mut lowering = Lowering {
        graph,
        tensors: Vec::new(),
        roots: vec![Root::default(); graph.nodes.len()],
        read: vec![None; graph.nodes.len()],
    };
    lowering.residuals()?;
    for (value, node) in graph.nodes.iter().enumerate() {
        if let Node::Conv(_) = node.op {
            lowering.read[value] = Some(lowering.input(node.inputs[0])?);
        }
    }
    for output in &graph.outputs {
        for value in [output.boxes, output.scores] {
            lowering.own(value)?;
        }
    }
    lowering.finish()
}

struct Lowering<'g> {
    graph: &'g Graph,
    tensors: Vec<Tensor>,
    roots: Vec<Root>,
    /// By convolution: what it reads, and how that is divided.
    read: Vec<Option<(Id, Vec<Segment>)>>,
}

impl Lowering<'_> {
    fn unsupported(&self, value: Value) -> EngineError {
        let node = &self.graph.nodes[value];
        EngineError::Unsupported { step: format!("step {value} ({:?}) on a GPU", node.op) }
    }

    /// Which convolution each sum belongs to.
    fn residuals(&mut self) -> Result<(), EngineError> {
        let nodes = &self.graph.nodes;
        let uses = |value: Value| {
            let inputs = nodes.iter().flat_map(|node| &node.inputs);
            inputs.filter(|&&input| input == value).count()
        };
        for (value, node) in nodes.iter().enumerate() {
            if node.op != Node::Add {
                continue;
            }
            // The later of the two: the other is there before it is computed.
            let mut inputs = node.inputs.clone();
            inputs.sort_unstable();
            let [before, conv] = inputs[..] else { return Err(self.unsupported(value)) };
            if !matches!(nodes[conv].op, Node::Conv(_)) || uses(conv) != 1 {
                return Err(self.unsupported(value));
            }
            let part = self.part(before)?;
            if part.up {
                return Err(self.unsupported(value));
            }
            self.roots[conv].residual = Some(part);
        }
        Ok(())
    }

    /// What a value is a part of.
    fn part(&self, value: Value) -> Result<Part, EngineError> {
        let node = &self.graph.nodes[value];
        let count = node.channels;
        match node.op {
            Node::Input | Node::Conv(_) | Node::MaxPool5 => {
                Ok(Part { root: value, first: 0, count, up: false })
            }
            Node::Add => {
                let conv = node.inputs.iter().max().copied().unwrap_or(value);
                Ok(Part { root: conv, first: 0, count, up: false })
            }
            Node::Slice { from } => {
                let whole = self.part(node.inputs[0])?;
                Ok(Part { first: whole.first + from, count, ..whole })
            }
            Node::Upsample2 => match self.part(node.inputs[0])? {
                part if !part.up => Ok(Part { up: true, ..part }),
                _ => Err(self.unsupported(value)),
            },
            Node::Concat => Err(self.unsupported(value)),
        }
    }

    fn tensor(&mut self, channels: usize, stride: usize) -> Id {
        self.tensors.push(Tensor { channels, stride });
        self.tensors.len() - 1
    }

    /// Has a part of a result go to channel `first` of a tensor.
    fn settle(&mut self, part: Part, tensor: Id, first: usize) {
        let Part { root, first: from, count, up } = part;
        let root = &mut self.roots[root];
        if !root.wanted.contains(&(from, count)) {
            root.wanted.push((from, count));
        }
        root.homes.push((from, Place { tensor, first, from, channels: padded(count), up }));
    }

    /// A tensor with this part alone, if there is none yet.
    fn alone(&mut self, part: Part, stride: usize) -> Id {
        let there = self.roots[part.root].homes.iter().find(|(from, home)| {
            *from == part.first
                && home.up == part.up
                && home.first == 0
                && self.tensors[home.tensor].channels == padded(part.count)
        });
        if let Some((_, home)) = there {
            return home.tensor;
        }
        let tensor = self.tensor(padded(part.count), stride);
        self.settle(part, tensor, 0);
        tensor
    }

    /// The tensor of a value that is wanted as it is.
    fn own(&mut self, value: Value) -> Result<Id, EngineError> {
        let part = self.part(value)?;
        Ok(self.alone(part, self.graph.nodes[value].stride))
    }

    /// The tensor that a convolution reads, and where the channels are.
    fn input(&mut self, value: Value) -> Result<(Id, Vec<Segment>), EngineError> {
        let node = &self.graph.nodes[value];
        if node.op != Node::Concat {
            let segment = Segment { first: 0, count: node.channels, at: 0 };
            return Ok((self.own(value)?, vec![segment]));
        }
        let parts: Vec<Part> =
            node.inputs.iter().map(|&input| self.part(input)).collect::<Result<_, _>>()?;
        let channels = parts.iter().map(|part| padded(part.count)).sum();
        let tensor = self.tensor(channels, node.stride);
        let (mut segments, mut first, mut at) = (Vec::with_capacity(parts.len()), 0, 0);
        for part in parts {
            self.settle(part, tensor, at);
            segments.push(Segment { first, count: part.count, at });
            first += part.count;
            at += padded(part.count);
        }
        Ok((tensor, segments))
    }

    /// Where a part can be read by whoever takes it out of a larger tensor.
    fn view(&mut self, part: Part, stride: usize) -> View {
        let homes = &self.roots[part.root].homes;
        match homes.iter().find(|(from, home)| *from == part.first && !home.up) {
            Some((_, home)) => View { tensor: home.tensor, first: home.first },
            None => View { tensor: self.alone(part, stride), first: 0 },
        }
    }

    fn finish(mut self) -> Result<Layers, EngineError> {
        let graph = self.graph;
        let picture = self.own(0)?;
        // Views may add homes, so all of them come before the first root is laid out.
        let mut views = vec![None; graph.nodes.len()];
        for (value, node) in graph.nodes.iter().enumerate() {
            let part = match node.op {
                Node::MaxPool5 => Some(self.part(node.inputs[0])?),
                Node::Conv(_) => self.roots[value].residual,
                _ => None,
            };
            if let Some(part) = part {
                views[value] = Some(self.view(part, graph.nodes[part.root].stride));
            }
        }
        let mut ops = Vec::new();
        for (value, node) in graph.nodes.iter().enumerate() {
            match &node.op {
                Node::Conv(conv) => {
                    let (outputs, channels) = self.laid_out(value)?;
                    let Some((from, inputs)) = self.read[value].take() else {
                        return Err(self.unsupported(value));
                    };
                    ops.push(Op::Conv(Conv {
                        node: value,
                        name: conv.name.clone(),
                        kernel: conv.kernel,
                        stride: conv.stride,
                        act: conv.act,
                        from,
                        inputs,
                        channels,
                        scale: node.stride,
                        residual: views[value],
                        places: self.places(value, &outputs)?,
                        outputs,
                    }));
                }
                Node::MaxPool5 => {
                    let (outputs, channels) = self.laid_out(value)?;
                    let Some(from) = views[value] else { return Err(self.unsupported(value)) };
                    let places = self.places(value, &outputs)?;
                    ops.push(Op::Pool(Pool { from, channels, scale: node.stride, places }));
                }
                _ => {}
            }
        }
        let mut levels = Vec::with_capacity(graph.outputs.len());
        for output in &graph.outputs {
            let (boxes, scores) = (self.own(output.boxes)?, self.own(output.scores)?);
            levels.push(Level { stride: output.stride, boxes, scores });
        }
        let Graph { classes, reg_max, .. } = *graph;
        Ok(Layers { tensors: self.tensors, picture, ops, levels, classes, reg_max })
    }

    /// How the channels of a result lie among its sums: each part that somebody wants begins a group.
    fn laid_out(&self, value: Value) -> Result<(Vec<Segment>, usize), EngineError> {
        let mut wanted = self.roots[value].wanted.clone();
        wanted.sort_unstable();
        let (mut segments, mut next, mut at) = (Vec::new(), 0, 0);
        for (first, count) in wanted {
            if first != next {
                return Err(self.unsupported(value));
            }
            segments.push(Segment { first, count, at });
            next = first + count;
            at += padded(count);
        }
        // A sum has the whole result as its residual has it, in one piece.
        let whole = self.roots[value].residual.is_none() || segments.len() == 1;
        match next == self.graph.nodes[value].channels && whole {
            true => Ok((segments, at)),
            false => Err(self.unsupported(value)),
        }
    }

    fn places(&self, value: Value, outputs: &[Segment]) -> Result<Vec<Place>, EngineError> {
        let homes = &self.roots[value].homes;
        let from = |first: usize| outputs.iter().find(|segment| segment.first == first);
        let place =
            |(first, home): &(usize, Place)| Some(Place { from: from(*first)?.at, ..*home });
        let places: Option<Vec<Place>> = homes.iter().map(place).collect();
        places.filter(|places| places.len() <= PLACES).ok_or_else(|| self.unsupported(value))
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
