//! The network on one GPU, independent of the size of pictures: its weights, its kernels, cuDNN.

use super::convolution::Dnn;
use super::driver::{DeviceMemory, Gpu, Kernel, Pointer};
use super::element::Element;
use super::layers::{Layers, Op};
use super::weights::pack;
use crate::engine::EngineError;
use crate::engine::fold::fold;
use crate::yolo::{Network, Op as Node};

/// What all GPUs are given: the lowered network and its weights, packed.
pub(super) struct Prepared {
    pub(super) layers: Layers,
    pub(super) element: Element,
    /// By op: kernel as elements, and bias in single precision.
    weights: Vec<Option<(Vec<u8>, Vec<u8>)>>,
}

impl Prepared {
    /// Folds normalisation in and packs.
    ///
    /// # Errors
    /// [`EngineError`] names the convolution at fault.
    pub(super) fn new(network: &Network, element: Element) -> Result<Prepared, EngineError> {
        let layers = super::layers::lower(&network.graph)?;
        let mut weights = Vec::with_capacity(layers.ops.len());
        for op in &layers.ops {
            let packed = match op {
                Op::Pool(_) => None,
                Op::Conv(conv) => {
                    let Node::Conv(node) = &network.graph.nodes[conv.node].op else {
                        return Err(EngineError::Unsupported { step: conv.name.clone() });
                    };
                    let (kernel, bias) = fold(network, node)?;
                    let inputs = layers.tensors[conv.from].channels;
                    let (kernel, bias) = pack(conv, inputs, &kernel, &bias);
                    let kernel = element.bytes(&kernel);
                    if !element.finite(&kernel) {
                        return Err(EngineError::Prepare {
                            step: conv.name.clone(),
                            source: "its weights are too large for f16 (use --precision bf16)"
                                .into(),
                        });
                    }
                    Some((kernel, Element::F32.bytes(&bias)))
                }
            };
            weights.push(packed);
        }
        Ok(Prepared { layers, element, weights })
    }

    /// Bytes of all weights.
    pub(super) fn bytes(&self) -> usize {
        self.weights.iter().flatten().map(|(kernel, bias)| kernel.len() + bias.len()).sum()
    }
}

/// The same on a GPU.
pub(super) struct OnGpu {
    /// Before the GPU: it ends with a look at the GPU's stream.
    pub(super) dnn: Result<Dnn, String>,
    pub(super) gpu: Gpu,
    pub(super) kernels: Kernels,
    /// By op: kernel and bias.
    weights: Vec<Option<(DeviceMemory, DeviceMemory)>>,
}

/// Our kernels for one kind of element.
pub(super) struct Kernels {
    pub(super) prepare: Kernel,
    pub(super) finish: Kernel,
    pub(super) pool: Kernel,
    pub(super) decode: Kernel,
    pub(super) unfold: Kernel,
}

impl OnGpu {
    /// Copies the weights to GPU `number`.
    ///
    /// # Errors
    /// Where the GPU cannot be opened, or has no memory for them.
    pub(super) fn new(prepared: &Prepared, number: usize) -> Result<OnGpu, EngineError> {
        let gpu = Gpu::open(number)?;
        let dnn = Dnn::open(&gpu)?;
        let kernel = |name: &str| gpu.kernel(&format!("{name}_{}", prepared.element.name()));
        let kernels = Kernels {
            prepare: kernel("prepare")?,
            finish: kernel("finish")?,
            pool: kernel("pool")?,
            decode: kernel("decode")?,
            unfold: kernel("unfold")?,
        };
        let copy = |bytes: &[u8]| {
            let memory = gpu.memory(bytes.len(), "weights")?;
            gpu.fill(bytes, &memory, 0)?;
            Ok(memory)
        };
        let mut weights = Vec::with_capacity(prepared.weights.len());
        for packed in &prepared.weights {
            weights.push(match packed {
                Some((kernel, bias)) => Some((copy(kernel)?, copy(bias)?)),
                None => None,
            });
        }
        Ok(OnGpu { dnn, gpu, kernels, weights })
    }

    /// Kernel and bias of the convolution that is op `index`.
    pub(super) fn weights(&self, index: usize) -> Result<[Pointer; 2], EngineError> {
        match self.weights.get(index).and_then(Option::as_ref) {
            Some((kernel, bias)) => Ok([kernel.pointer(), bias.pointer()]),
            None => Err(EngineError::Unsupported { step: format!("weights of op {index}") }),
        }
    }
}
