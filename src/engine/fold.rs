//! Normalisation folded into the convolution before it.

use super::api::EngineError;
use crate::yolo::{Conv, Network};

/// Kernel (cout, cin, k, k) and bias (cout) of a convolution, its normalisation folded in:
/// w' = w · γ / √(σ² + ε), b' = β − μ · γ / √(σ² + ε), in f64 and rounded once.
///
/// # Errors
/// [`EngineError`] where a tensor is missing or the result is not finite.
pub(super) fn fold(network: &Network, conv: &Conv) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
    let tensor = |name: &str| match network.weights.get(name) {
        Some(tensor) => Ok(tensor.data.as_slice()),
        None => Err(EngineError::Prepare {
            step: conv.name.clone(),
            source: format!("tensor `{name}` is missing").into(),
        }),
    };
    let part = |part: &str| tensor(&format!("{}.{part}", conv.name));

    let mut kernel = tensor(&conv.weight())?.to_vec();
    let bias = if conv.norm {
        let (gamma, beta) = (part("bn.weight")?, part("bn.bias")?);
        let (mean, var) = (part("bn.running_mean")?, part("bn.running_var")?);
        let fan = kernel.len() / conv.cout;
        let mut bias = Vec::with_capacity(conv.cout);
        for (c, row) in kernel.chunks_exact_mut(fan).enumerate() {
            let scale = f64::from(gamma[c]) / (f64::from(var[c]) + network.bn_eps).sqrt();
            for w in row {
                *w = (f64::from(*w) * scale) as f32;
            }
            bias.push((f64::from(beta[c]) - f64::from(mean[c]) * scale) as f32);
        }
        bias
    } else {
        part("bias")?.to_vec()
    };
    if !kernel.iter().chain(&bias).all(|x| x.is_finite()) {
        return Err(EngineError::NotFinite { step: conv.name.clone() });
    }
    Ok((kernel, bias))
}
