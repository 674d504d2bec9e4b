//! What numbers a GPU computes with.

use cudarc::{cublas::sys as blas, cudnn::sys as dnn};
use half::{bf16, f16};

use crate::engine::Precision;

/// What tensors and weights are made of. Sums are in single precision, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// Of what is asked for: half precision, unless something else is.
    pub(super) fn of(precision: Precision) -> Element {
        match precision {
            Precision::Auto | Precision::F16 => Element::F16,
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        }
    }

    /// As in names of kernels and classes.
    pub(super) fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
        }
    }

    /// Bytes.
    pub(super) fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// Numbers as a GPU has them in memory.
    pub(super) fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    /// Whether none of these numbers, as a GPU has them, is infinite or no number.
    pub(super) fn finite(self, bytes: &[u8]) -> bool {
        // The exponent is not all ones.
        let (size, mask) = match self {
            Element::F32 => (4, 0x7f80),
            Element::F16 => (2, 0x7c00),
            Element::Bf16 => (2, 0x7f80),
        };
        let upper = |number: &[u8]| u16::from_le_bytes([number[size - 2], number[size - 1]]);
        bytes.chunks_exact(size).all(|number| upper(number) & mask != mask)
    }

    /// cuDNN's name of it.
    pub(super) fn dnn(self) -> dnn::cudnnDataType_t {
        match self {
            Element::F32 => dnn::cudnnDataType_t::CUDNN_DATA_FLOAT,
            Element::F16 => dnn::cudnnDataType_t::CUDNN_DATA_HALF,
            Element::Bf16 => dnn::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        }
    }

    /// cuBLAS's name of it.
    pub(super) fn blas(self) -> blas::cudaDataType {
        match self {
            Element::F32 => blas::cudaDataType::CUDA_R_32F,
            Element::F16 => blas::cudaDataType::CUDA_R_16F,
            Element::Bf16 => blas::cudaDataType::CUDA_R_16BF,
        }
    }
}
