//! Weights prepared, graph interpreted.

use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::super::api::{Engine, EngineError, Worker};
use super::super::fold::fold;
use super::super::head::{RawHead, RawLevel};
use super::{class, memory, worker};
use crate::yolo::{Act, Conv, Graph, Network, Op};

/// The reference executor.
pub struct Candle {
    plan: Arc<Plan>,
}

/// What workers share.
pub(super) struct Plan {
    pub(super) graph: Graph,
    last_uses: Vec<usize>,
    /// By node: kernel (cout, cin, k, k) and bias (1, cout, 1, 1) of the convolutions.
    weights: Vec<Option<(Tensor, Tensor)>>,
}

impl Candle {
    /// Folds the normalisation into the convolutions of `network`.
    ///
    /// # Errors
    /// [`EngineError`] names the convolution at fault.
    pub fn new(network: &Network) -> Result<Self, EngineError> {
        let mut weights = Vec::with_capacity(network.graph.nodes.len());
        for node in &network.graph.nodes {
            weights.push(match &node.op {
                Op::Conv(conv) => Some(tensors(network, conv)?),
                _ => None,
            });
        }
        let graph = network.graph.clone();
        Ok(Self { plan: Arc::new(Plan { last_uses: graph.last_uses(), graph, weights }) })
    }

    /// The numeric class of this executor on this machine.
    #[must_use]
    pub fn class() -> &'static str {
        class::name()
    }

    /// Runs the network on planes R, G, B of values 0..=1, each `height` rows of `width`.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a wrong size; [`EngineError::Execute`] names a failed step.
    pub fn head(
        &self,
        planes: Vec<f32>,
        width: usize,
        height: usize,
    ) -> Result<RawHead, EngineError> {
        self.plan.head(planes, width, height)
    }
}

impl Engine for Candle {
    fn numeric_class(&self) -> &str {
        class::name()
    }

    fn weight_bytes(&self) -> u64 {
        let tensors = self.plan.weights.iter().flatten();
        tensors.map(|(kernel, bias)| 4 * (kernel.elem_count() + bias.elem_count()) as u64).sum()
    }

    fn scratch_bytes(&self, width: usize, height: usize) -> u64 {
        memory::peak(&self.plan.graph, width, height)
    }

    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        Ok(Box::new(worker::CandleWorker { plan: Arc::clone(&self.plan) }))
    }
}

impl Plan {
    pub(super) fn head(
        &self,
        planes: Vec<f32>,
        width: usize,
        height: usize,
    ) -> Result<RawHead, EngineError> {
        if width == 0 || height == 0 || !width.is_multiple_of(32) || !height.is_multiple_of(32) {
            return Err(EngineError::Input { width, height, bytes: planes.len() });
        }
        let execute = |step: String| {
            move |e: candle_core::Error| EngineError::Execute { step, source: Box::new(e) }
        };
        let picture = Tensor::from_vec(planes, (1, 3, height, width), &Device::Cpu)
            .map_err(execute("input".into()))?;

        let nodes = &self.graph.nodes;
        let mut values: Vec<Option<Tensor>> = vec![None; nodes.len()];
        values[0] = Some(picture);
        let mut features = Vec::with_capacity(self.graph.outputs.len());
        for (index, node) in nodes.iter().enumerate().skip(1) {
            let inputs: Vec<&Tensor> =
                node.inputs.iter().filter_map(|&value| values[value].as_ref()).collect();
            let result = match self.weights[index].as_ref() {
                Some(weights) => convolve(&node.op, inputs[0], weights),
                None => step(&node.op, &inputs, node.channels),
            };
            let result = result.map_err(|e| execute(describe(&node.op, index))(e))?;
            if self.graph.outputs.iter().any(|output| output.features == index) {
                features.push(result.clone());
            }
            values[index] = Some(result);
            for &input in &node.inputs {
                if self.last_uses[input] == index {
                    values[input] = None;
                }
            }
        }

        let mut levels = Vec::with_capacity(self.graph.outputs.len());
        for (output, features) in self.graph.outputs.iter().zip(features) {
            let take = |value: usize| -> CandleResult<Vec<f32>> {
                match &values[value] {
                    Some(tensor) => tensor.flatten_all()?.to_vec1(),
                    None => candle_core::bail!("output {value} was dropped. This is a bug."),
                }
            };
            levels.push(RawLevel {
                stride: output.stride,
                width: width / output.stride,
                height: height / output.stride,
                boxes: take(output.boxes).map_err(execute("head".into()))?,
                scores: take(output.scores).map_err(execute("head".into()))?,
                features: features
                    .flatten_all()
                    .and_then(|t| t.to_vec1())
                    .map_err(execute("head".into()))?,
            });
        }
        Ok(RawHead { levels, reg_max: self.graph.reg_max, classes: self.graph.classes })
    }
}

fn describe(op: &Op, index: usize) -> String {
    match op {
        Op::Conv(conv) => conv.name.clone(),
        other => format!("step {index} {other:?}"),
    }
}

fn convolve(op: &Op, x: &Tensor, (kernel, bias): &(Tensor, Tensor)) -> CandleResult<Tensor> {
    let Op::Conv(conv) = op else {
        candle_core::bail!("weights at a step that is no convolution. This is a bug.")
    };
    let y = x.conv2d(kernel, conv.kernel / 2, conv.stride, 1, 1)?.broadcast_add(bias)?;
    match conv.act {
        Act::Silu => y.silu(),
        Act::Identity => Ok(y),
    }
}

fn step(op: &Op, inputs: &[&Tensor], channels: usize) -> CandleResult<Tensor> {
    match op {
        Op::Slice { from } => inputs[0].narrow(1, *from, channels),
        Op::Add => inputs[0] + inputs[1],
        Op::Concat => Tensor::cat(inputs, 1),
        Op::Upsample2 => {
            let (_, _, height, width) = inputs[0].dims4()?;
            inputs[0].upsample_nearest2d(2 * height, 2 * width)
        }
        // Repeating the border is as good as padding with -infinity: a window that reaches
        // beyond the border always holds the border's own pixel. Zeros would be wrong, since
        // SiLU's outputs are below zero, too.
        Op::MaxPool5 => {
            inputs[0].pad_with_same(2, 2, 2)?.pad_with_same(3, 2, 2)?.max_pool2d_with_stride(5, 1)
        }
        Op::Input | Op::Conv(_) => candle_core::bail!("{op:?} out of place. This is a bug."),
    }
}

/// Kernel and bias of a convolution as candle's tensors.
fn tensors(network: &Network, conv: &Conv) -> Result<(Tensor, Tensor), EngineError> {
    let (kernel, bias) = fold(network, conv)?;
    let shape = (conv.cout, conv.cin, conv.kernel, conv.kernel);
    let kernel = Tensor::from_vec(kernel, shape, &Device::Cpu);
    let bias = Tensor::from_vec(bias, (1, conv.cout, 1, 1), &Device::Cpu);
    match (kernel, bias) {
        (Ok(kernel), Ok(bias)) => {
            debug_assert_eq!(kernel.dtype(), DType::F32);
            Ok((kernel, bias))
        }
        (Err(e), _) | (_, Err(e)) => {
            Err(EngineError::Prepare { step: conv.name.clone(), source: Box::new(e) })
        }
    }
}
