//! The network as a list of primitive steps. An executor needs nothing else.

/// Names a node of a [`Graph`], and thereby the tensor it produces: its index in `nodes`.
pub type Value = usize;

/// What follows a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Nothing.
    Identity,
    /// x · sigmoid(x).
    Silu,
}

/// A square convolution, padded by `kernel / 2`, without dilation or groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Prefix of its tensors in the state dict. With `norm` they are `{name}.conv.weight` and
    /// `{name}.bn.*`, without `{name}.weight` and `{name}.bias`.
    pub name: String,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Side of the kernel: 1 or 3.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Whether batch normalisation follows (else a bias is added).
    pub norm: bool,
    /// What follows.
    pub act: Act,
}

impl Conv {
    /// Name of the weight tensor, shape (cout, cin, kernel, kernel).
    pub fn weight(&self) -> String {
        if self.norm {
            format!("{}.conv.weight", self.name)
        } else {
            format!("{}.weight", self.name)
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The picture: 3 channels, RGB, 0..=1.
    Input,
    /// Convolution, normalisation or bias, activation.
    Conv(Conv),
    /// The channels `from..from + channels` of the input.
    Slice {
        /// First channel taken.
        from: usize,
    },
    /// Sum of two inputs of one shape.
    Add,
    /// The inputs' channels one after another.
    Concat,
    /// Each pixel becomes 2 × 2 equal ones.
    Upsample2,
    /// Maximum over 5 × 5 pixels, stride 1; what lies outside the picture does not take part.
    MaxPool5,
}

/// A step with its inputs and the size of what it produces.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What to do.
    pub op: Op,
    /// With which earlier values.
    pub inputs: Vec<Value>,
    /// Channels of the result.
    pub channels: usize,
    /// Pixels of the picture per pixel of the result, on each axis.
    pub stride: usize,
}

/// Where one scale of the head leaves its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Pixels of the picture per cell, on each axis.
    pub stride: usize,
    /// The features the head reads.
    pub features: Value,
    /// Logits of the box distribution, 4 · reg_max channels.
    pub boxes: Value,
    /// Logits of the classes, nc channels.
    pub scores: Value,
}

/// The network in execution order: a node's inputs precede it.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// All steps; the first is [`Op::Input`].
    pub nodes: Vec<Node>,
    /// The scales of the head, finest first.
    pub outputs: Vec<Output>,
    /// Number of classes.
    pub classes: usize,
    /// Bins per side of a box.
    pub reg_max: usize,
    /// Channels at strides 2, 4, 8, 16, 32 of the backbone.
    pub widths: Vec<usize>,
    /// Bottlenecks of the C2f blocks in layers 2, 4, 6, 8, 12, 15, 18, 21.
    pub depths: Vec<usize>,
}

impl Graph {
    /// The convolutions, in execution order.
    pub fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::Conv(conv) => Some(conv),
            _ => None,
        })
    }

    /// For each value the last node that reads it; `usize::MAX` for outputs, which stay.
    pub fn last_uses(&self) -> Vec<usize> {
        let mut last: Vec<usize> = (0..self.nodes.len()).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                last[input] = index;
            }
        }
        for output in &self.outputs {
            for value in [output.boxes, output.scores] {
                last[value] = usize::MAX;
            }
        }
        last
    }

    /// Cells of the head over all scales for a picture of this size (multiples of 32).
    pub fn anchors(&self, width: usize, height: usize) -> usize {
        self.outputs.iter().map(|o| (width / o.stride) * (height / o.stride)).sum()
    }
}
