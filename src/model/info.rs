//! What a checkpoint says about itself, for `haul model inspect`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::yolo::{Act, Network};

/// How a tensor's elements are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// Upper half of a single.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision; only in `.pt`, read as f32.
    F64,
}

/// What is in a model file, beyond the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// `ultralytics .pt` or `haul.model/1`.
    pub format: String,
    /// Always `detect` today.
    pub task: String,
    /// Class names in class order.
    pub names: Vec<String>,
    /// Side of the square the model was trained for, in pixels.
    pub imgsz: usize,
    /// The activation of most convolutions.
    pub act: Act,
    /// Convolutions that have another one.
    pub act_overrides: BTreeMap<String, Act>,
    /// Epsilon of the batch normalisations.
    pub bn_eps: f64,
    /// Bins per side of a box.
    pub reg_max: usize,
    /// Input pixels per cell of the head's scales.
    pub strides: Vec<usize>,
    /// Learnt parameters.
    pub parameters: u64,
    /// Number of tensors by how they are stored.
    pub dtypes: BTreeMap<Dtype, usize>,
    /// Channels at strides 2, 4, 8, 16, 32.
    pub widths: Vec<usize>,
    /// Bottlenecks of layers 2, 4, 6, 8, 12, 15, 18, 21.
    pub depths: Vec<usize>,
    /// Free text from the file: license, description, version, date …
    pub metadata: BTreeMap<String, String>,
}

impl Info {
    pub(super) fn new(
        format: &str,
        network: &Network,
        imgsz: usize,
        dtypes: &BTreeMap<String, Dtype>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let convs = || network.graph.convs().filter(|conv| conv.norm);
        let silu = convs().filter(|conv| conv.act == Act::Silu).count();
        let act = if silu * 2 >= convs().count() { Act::Silu } else { Act::Identity };
        let others = convs().filter(|conv| conv.act != act);
        let mut counts = BTreeMap::new();
        for &dtype in dtypes.values() {
            *counts.entry(dtype).or_insert(0) += 1;
        }
        Self {
            format: format.into(),
            task: "detect".into(),
            names: network.labels.clone(),
            imgsz,
            act,
            act_overrides: others.map(|conv| (conv.name.clone(), conv.act)).collect(),
            bn_eps: network.bn_eps,
            reg_max: network.graph.reg_max,
            strides: network.graph.outputs.iter().map(|output| output.stride).collect(),
            parameters: network.parameters(),
            dtypes: counts,
            widths: network.graph.widths.clone(),
            depths: network.graph.depths.clone(),
            metadata,
        }
    }
}
