//! Bytes to f32 and back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::archive::Archive;
use super::error::Fault;
use super::info::Dtype;
use super::pickle::TensorRef;
use crate::yolo::Tensor;

impl Dtype {
    /// Bytes per element.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Widens elements stored with the low byte first.
pub(super) fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let two = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F16 => {
            // As a slice, so that the CPU is asked once whether it can do this itself.
            let halves: Vec<f16> = two().map(|&b| f16::from_le_bytes(b)).collect();
            let mut wide = vec![0.0; halves.len()];
            halves.convert_to_f32_slice(&mut wide);
            wide
        }
        Dtype::Bf16 => two().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F64 => {
            bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect()
        }
    }
}

/// The reverse; exact where the values came from `dtype` (or, for F64, are written as F32).
pub(super) fn narrow(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F32 | Dtype::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Reads a tensor of a checkpoint, in row-major order whatever its strides.
pub(super) fn load(archive: &Archive<'_>, tensor: &TensorRef) -> Result<Tensor, Fault> {
    let Some(dtype) = tensor.dtype else {
        return Err(Fault::malformed(format!("storage {} holds integers", tensor.key)));
    };
    let bytes = tensor.elements.checked_mul(dtype.size() as u64);
    let Some(bytes) = bytes else {
        return Err(Fault::malformed(format!("storage {} is too large", tensor.key)));
    };
    // The parser has checked that the tensor lies within `elements`, and the archive gives so
    // many or an error. So what is indexed below is there, and no more is allocated than read.
    let storage = archive.storage(&tensor.key, bytes)?;
    let count: usize = tensor.shape.iter().product();
    if contiguous(tensor) {
        let size = dtype.size();
        let slice = usize::try_from(tensor.offset).ok().and_then(|offset| {
            let from = offset.checked_mul(size)?;
            storage.get(from..from.checked_add(count.checked_mul(size)?)?)
        });
        let Some(slice) = slice else {
            return Err(Fault::malformed(format!("storage {} is too short", tensor.key)));
        };
        return Ok(Tensor { shape: tensor.shape.clone(), data: widen(dtype, slice) });
    }
    let storage = widen(dtype, &storage);
    let mut data = Vec::with_capacity(count);
    let mut index = vec![0usize; tensor.shape.len()];
    for _ in 0..count {
        let at = index.iter().zip(&tensor.strides).map(|(&i, &s)| i as u64 * s).sum::<u64>();
        let Some(&value) = storage.get((tensor.offset + at) as usize) else {
            return Err(Fault::malformed(format!("storage {} is too short", tensor.key)));
        };
        data.push(value);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < tensor.shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(Tensor { shape: tensor.shape.clone(), data })
}

/// Whether a tensor's elements are neighbours in row-major order, as those of all trained models are.
fn contiguous(tensor: &TensorRef) -> bool {
    let mut expected = 1;
    tensor.shape.iter().zip(&tensor.strides).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == expected;
        expected = expected.saturating_mul(extent as u64);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_survives_the_round_trip() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let all: Vec<u8> = (0..=u16::MAX)
                .filter(|&bits| {
                    f16::from_bits(bits).is_finite() && bf16::from_bits(bits).is_finite()
                })
                .flat_map(u16::to_le_bytes)
                .collect();
            assert_eq!(narrow(dtype, &widen(dtype, &all)), all);
        }
    }
}
