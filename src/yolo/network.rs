//! A network ready to execute: wiring, weights, labels.

use std::collections::BTreeMap;

use thiserror::Error;

use super::graph::{Act, Graph};
use super::wiring::{WiringError, yolov8};

/// A dense tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its extents; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// Tensors by their state-dict name.
pub type Weights = BTreeMap<String, Tensor>;

/// Why a set of tensors is no usable network.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NetworkError {
    /// The wiring does not fit.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// A tensor that YOLOv8 detect has no place for.
    #[error("tensor `{name}` has no place in YOLOv8 detect (another architecture or task?)")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A tensor holds NaN or infinity, or a negative variance.
    #[error("tensor `{name}` holds {what} (did the training diverge?)")]
    Value {
        /// Its name.
        name: String,
        /// What was found.
        what: &'static str,
    },
    /// Class names and class count disagree.
    #[error("the head has {classes} classes but there are {labels} class names")]
    Labels {
        /// By the head's shape.
        classes: usize,
        /// By the list of names.
        labels: usize,
    },
    /// The epsilon of the batch normalisation is no small positive number.
    #[error("batch normalisation epsilon is {0}, expected a positive number below 1")]
    Epsilon(f64),
}

/// The projection of the box distribution: always 0, 1, 2 …, stored in checkpoints all the same.
const DFL: &str = "model.22.dfl.conv.weight";

/// A checked network. Its weights fit its graph and are finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The wiring.
    pub graph: Graph,
    /// Every tensor of the graph, and nothing else (but perhaps the DFL projection).
    pub weights: Weights,
    /// Class names, as many as the head has classes.
    pub labels: Vec<String>,
    /// Epsilon of every batch normalisation.
    pub bn_eps: f64,
}

impl Network {
    /// Wires `weights` up and checks all of them.
    ///
    /// # Errors
    /// [`NetworkError`] names the tensor at fault.
    pub fn new(
        weights: Weights,
        labels: Vec<String>,
        bn_eps: f64,
        act_of: impl Fn(&str) -> Act,
    ) -> Result<Self, NetworkError> {
        let graph = yolov8(|name| weights.get(name).map(|t| t.shape.as_slice()), act_of)?;
        if labels.len() != graph.classes {
            return Err(NetworkError::Labels { classes: graph.classes, labels: labels.len() });
        }
        if !(bn_eps > 0.0 && bn_eps < 1.0) {
            return Err(NetworkError::Epsilon(bn_eps));
        }
        let mut known = std::collections::BTreeSet::from([DFL.to_string()]);
        for conv in graph.convs() {
            known.insert(conv.weight());
            let vectors: &[&str] = match conv.norm {
                true => &["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"],
                false => &["bias"],
            };
            known.extend(vectors.iter().map(|vector| format!("{}.{vector}", conv.name)));
        }
        for (name, tensor) in &weights {
            let value = |what| NetworkError::Value { name: name.clone(), what };
            if !known.contains(name) {
                return Err(NetworkError::Unknown { name: name.clone() });
            }
            if tensor.data.len() != tensor.shape.iter().product::<usize>() {
                return Err(value("another number of elements than its shape"));
            }
            if !tensor.data.iter().all(|x| x.is_finite()) {
                return Err(value("NaN or infinity"));
            }
            if name.ends_with(".bn.running_var") && tensor.data.iter().any(|&x| x < 0.0) {
                return Err(value("a negative variance"));
            }
        }
        if let Some(dfl) = weights.get(DFL) {
            let expected = (0..graph.reg_max).map(|i| i as f32);
            if !dfl.data.iter().copied().eq(expected) {
                return Err(NetworkError::Value {
                    name: DFL.into(),
                    what: "something else than 0, 1, 2 …, so boxes would be decoded wrongly",
                });
            }
        }
        Ok(Self { graph, weights, labels, bn_eps })
    }

    /// Number of learnt parameters: weights, biases and scales, without running statistics.
    pub fn parameters(&self) -> u64 {
        let learnt = |name: &str| !name.contains(".running_");
        self.weights.iter().filter(|(n, _)| learnt(n)).map(|(_, t)| t.data.len() as u64).sum()
    }
}
