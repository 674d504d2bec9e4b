//! Convolutions by cuDNN, or where that has nothing for them by cuBLAS; and which of its algorithms.
//!
//! The algorithm is the first that cuDNN's heuristic proposes for a shape and that gives the same bits
//! at each run. Nothing is timed: a choice by time would be another one tomorrow, and with it the bits
//! of the output.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{addr_of, null_mut};

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::cudnn::result::{self as dnn, CudnnError};
use cudarc::cudnn::sys;

use super::driver::{Gpu, Pointer};
use super::element::Element;
use crate::engine::EngineError;

/// Working memory at most for one convolution.
const WORKSPACE: usize = 256 << 20;

/// A convolution of a batch of one shape: NHWC tensors without gaps, KRSC weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) pictures: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    /// Channels of the input, and of the sums.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
}

impl Sizes {
    /// Pixels across and down of the result.
    pub(super) fn result(&self) -> (usize, usize) {
        (self.width / self.stride, self.height / self.stride)
    }
}

/// cuDNN on one GPU.
pub(super) struct Dnn {
    handle: sys::cudnnHandle_t,
    version: usize,
}

// SAFETY: cuDNN wants calls with one handle one after another, whichever thread they come from, with
// its GPU bound to that thread; a lane owns its handle, is used by one thread at a time, and binds.
unsafe impl Send for Dnn {}

impl Dnn {
    /// cuDNN, computing on the GPU's stream, or why it is not to be had: then convolutions are products
    /// of matrices.
    pub(super) fn open(gpu: &Gpu) -> Result<Result<Dnn, String>, EngineError> {
        gpu.bind()?;
        let handle = match dnn::create_handle() {
            Ok(handle) => handle,
            Err(error) if gpu.is_full() => return Err(fault(gpu, "use cuDNN", error)),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let dnn_ = Dnn { handle, version: dnn::get_version() };
        // SAFETY: the handle was just created, and the GPU's stream lives as long as the GPU, which
        // whoever has this has, too. Streams of both libraries are the same pointers.
        let set = unsafe { dnn::set_stream(handle, gpu.stream.cu_stream().cast()) };
        set.map_err(|error| fault(gpu, "use cuDNN", error))?;
        Ok(Ok(dnn_))
    }

    /// What decides its results.
    pub(super) fn kind(&self) -> String {
        format!("cudnn {} for {}", self.version, dnn::get_cudart_version())
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        // SAFETY: created by `open`, destroyed only here.
        let _ = unsafe { dnn::destroy_handle(self.handle) };
    }
}

/// A convolution that has been prepared for one shape.
pub(super) struct Convolution {
    sizes: Sizes,
    means: Means,
    /// Bytes of working memory.
    pub(super) workspace: usize,
}

enum Means {
    Dnn {
        described: Described,
        algorithm: sys::cudnnConvolutionFwdAlgo_t,
        math: u32,
    },
    /// Pictures that are unfolded at once.
    Blas {
        pictures: usize,
    },
}

// SAFETY: descriptions are plain data of cuDNN's, used by one thread at a time, as its handle is.
unsafe impl Send for Convolution {}

impl Convolution {
    /// Prepares it; as products of matrices where cuDNN is missing, or has no algorithm for it that
    /// gives the same bits each time. `plain` is with the plainest algorithm only.
    ///
    /// # Errors
    /// Where cuDNN does not take its description.
    pub(super) fn new(
        gpu: &Gpu,
        dnn: Option<&Dnn>,
        element: Element,
        sizes: Sizes,
        plain: bool,
    ) -> Result<Convolution, EngineError> {
        if let Some(dnn) = dnn {
            let failed = |error| fault(gpu, format!("describe a convolution ({sizes:?})"), error);
            let described = Described::new(element, sizes).map_err(failed)?;
            if let Some((algorithm, math, workspace)) = described.choose(dnn, element, plain) {
                let means = Means::Dnn { described, algorithm, math };
                return Ok(Convolution { sizes, means, workspace });
            }
        }
        let (width, height) = sizes.result();
        let one = match sizes.kernel == 1 && sizes.stride == 1 {
            // The tensor is the matrix.
            true => 0,
            false => width * height * sizes.kernel * sizes.kernel * sizes.inputs * element.size(),
        };
        // So many that all products are of one height: another height may be another order of sums.
        let fits = |&n: &usize| sizes.pictures.is_multiple_of(n) && n * one <= WORKSPACE;
        let pictures = (1..=sizes.pictures).rev().find(fits).unwrap_or(1);
        Ok(Convolution { sizes, means: Means::Blas { pictures }, workspace: one * pictures })
    }

    /// What decides its results, for the numeric class.
    pub(super) fn kind(&self) -> String {
        match &self.means {
            Means::Dnn { algorithm, math, .. } => format!("{}.{math}", *algorithm as u32),
            Means::Blas { pictures } => format!("x{pictures}"),
        }
    }

    /// Pictures to unfold at once, where it is a product of matrices.
    pub(super) fn unfolded(&self) -> Option<usize> {
        match self.means {
            Means::Blas { pictures } => Some(pictures),
            Means::Dnn { .. } => None,
        }
    }

    /// Launches it by cuDNN.
    ///
    /// # Safety
    /// `input`, `weights`, `sums` and `workspace` are tensors of the sizes that this was prepared for,
    /// on the GPU of `dnn`, which is bound to this thread, and stay until its stream has come past this.
    pub(super) unsafe fn launch(
        &self,
        gpu: &Gpu,
        dnn: &Dnn,
        [input, weights, sums, workspace]: [Pointer; 4],
    ) -> Result<(), EngineError> {
        let Means::Dnn { described, algorithm, .. } = &self.means else {
            return Err(EngineError::Unsupported { step: "a convolution by cuDNN".into() });
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: descriptions and handle live; alpha and beta are floats for all of our types, and
        // are read before this returns; the rest is the caller's promise.
        let launched = unsafe {
            dnn::convolution_forward(
                dnn.handle,
                addr_of!(one).cast(),
                described.input,
                pointer(input),
                described.weights,
                pointer(weights),
                described.convolution,
                *algorithm,
                pointer(workspace).cast_mut(),
                self.workspace,
                addr_of!(zero).cast(),
                described.sums,
                pointer(sums).cast_mut(),
            )
        };
        launched
            .map_err(|error| fault(gpu, format!("launch a convolution ({:?})", self.sizes), error))
    }
}

/// Launches sums = matrix · weightsᵀ by cuBLAS: `rows` × `depth`, `columns` × `depth`, row by row.
///
/// # Safety
/// The three are of these sizes and of `element`s, on this GPU, which is bound to this thread, and stay
/// until its stream has come past this.
pub(super) unsafe fn product(
    gpu: &Gpu,
    element: Element,
    [rows, columns, depth]: [usize; 3],
    [matrix, weights, sums]: [Pointer; 3],
) -> Result<(), EngineError> {
    let (one, zero) = (1.0f32, 0.0f32);
    let int = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
    let compute = match element {
        // Nothing of less than single precision on the way.
        Element::F32 => blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC,
        Element::F16 | Element::Bf16 => blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    // cuBLAS counts by columns, so it sees all three transposed: sumsᵀ = weights · matrixᵀ.
    // SAFETY: the handle is candle's, of this GPU and its stream; alpha and beta are floats as the type
    // of computing says, and are read before this returns; the rest is the caller's promise.
    let launched = unsafe {
        blas::gemm_ex(
            gpu.blas(),
            blas_sys::cublasOperation_t::CUBLAS_OP_T,
            blas_sys::cublasOperation_t::CUBLAS_OP_N,
            int(columns),
            int(rows),
            int(depth),
            addr_of!(one).cast(),
            pointer(weights),
            element.blas(),
            int(depth),
            pointer(matrix),
            element.blas(),
            int(depth),
            addr_of!(zero).cast(),
            pointer(sums).cast_mut(),
            element.blas(),
            int(columns),
            compute,
            blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
        )
    };
    launched.map_err(|error| {
        let full = error.0 == blas_sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
        gpu.failed("launch a product of matrices", full, Box::new(error))
    })
}

fn pointer(pointer: Pointer) -> *const c_void {
    // Of a GPU's memory: nothing here looks at what is there.
    std::ptr::without_provenance(usize::try_from(pointer).unwrap_or(0))
}

fn fault(gpu: &Gpu, step: impl Into<String>, error: CudnnError) -> EngineError {
    let full = matches!(
        error.0,
        sys::cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED
            | sys::cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    );
    gpu.failed(step, full, Box::new(error))
}

/// cuDNN's descriptions of a convolution; null where it was not made yet.
struct Described {
    input: sys::cudnnTensorDescriptor_t,
    sums: sys::cudnnTensorDescriptor_t,
    weights: sys::cudnnFilterDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
}

impl Described {
    fn new(element: Element, sizes: Sizes) -> Result<Described, CudnnError> {
        let int = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
        let Sizes { pictures, width, height, inputs, outputs, kernel, stride } = sizes;
        let (across, down) = sizes.result();
        let nhwc = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let kind = element.dnn();
        let mut made = Described {
            input: null_mut(),
            sums: null_mut(),
            weights: null_mut(),
            convolution: null_mut(),
        };
        made.input = dnn::create_tensor_descriptor()?;
        made.sums = dnn::create_tensor_descriptor()?;
        made.weights = dnn::create_filter_descriptor()?;
        made.convolution = dnn::create_convolution_descriptor()?;
        let input = [pictures, inputs, height, width].map(int);
        let sums = [pictures, outputs, down, across].map(int);
        let weights = [outputs, inputs, kernel, kernel].map(int);
        let (pad, stride) = (int(kernel / 2), int(stride));
        let math = match element {
            // Nothing of less than single precision on the way, as TF32 is.
            Element::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            Element::F16 | Element::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        // SAFETY: all four were just created and are set once.
        unsafe {
            dnn::set_tensor4d_descriptor(made.input, nhwc, kind, input)?;
            dnn::set_tensor4d_descriptor(made.sums, nhwc, kind, sums)?;
            dnn::set_filter4d_descriptor(made.weights, kind, nhwc, weights)?;
            dnn::set_convolution2d_descriptor(
                made.convolution,
                pad,
                pad,
                stride,
                stride,
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )?;
            dnn::set_convolution_math_type(made.convolution, math)?;
        }
        Ok(made)
    }

    /// The algorithm, the kind of arithmetic that it goes with, and its working memory in bytes.
    /// Whatever cuDNN says of a shape that it cannot do, it proposes nothing.
    fn choose(
        &self,
        dnn: &Dnn,
        element: Element,
        plain: bool,
    ) -> Option<(sys::cudnnConvolutionFwdAlgo_t, u32, usize)> {
        // Each algorithm may come once for each kind of arithmetic.
        const MOST: usize = 24;
        let mut found: [MaybeUninit<sys::cudnnConvolutionFwdAlgoPerf_t>; MOST] =
            [const { MaybeUninit::zeroed() }; MOST];
        let mut count: c_int = 0;
        // SAFETY: handle and descriptions live; there is room for as many as are asked for.
        let proposed = unsafe {
            dnn::get_convolution_forward_algorithm(
                dnn.handle,
                self.input,
                self.weights,
                self.convolution,
                self.sums,
                MOST as c_int,
                &raw mut count,
                found.as_mut_ptr().cast(),
            )
        };
        proposed.ok()?;
        let filled = usize::try_from(count).unwrap_or(0).min(MOST);
        found[..filled].iter().find_map(|one| self.take(dnn, element, plain, one.as_ptr()))
    }

    /// One that was proposed, if it will do; the description is then set for it.
    fn take(
        &self,
        dnn: &Dnn,
        element: Element,
        plain: bool,
        one: *const sys::cudnnConvolutionFwdAlgoPerf_t,
    ) -> Option<(sys::cudnnConvolutionFwdAlgo_t, u32, usize)> {
        // A library that is newer than the bindings may have states that they have no name for, and
        // such a value must not be looked at by its type.
        // SAFETY: `choose` has it in its list; it was zero before cuDNN filled it, and all of it are
        // plain numbers.
        let (algorithm, state, same_bits, math) = unsafe {
            (
                addr_of!((*one).algo).cast::<u32>().read(),
                addr_of!((*one).status).cast::<u32>().read(),
                addr_of!((*one).determinism).cast::<u32>().read(),
                addr_of!((*one).mathType).cast::<u32>().read(),
            )
        };
        let algorithm = ALGORITHMS.into_iter().find(|&known| known as u32 == algorithm)?;
        let deterministic = sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC as u32;
        let plainest = sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM;
        if state != 0 || same_bits != deterministic || (plain && algorithm != plainest) {
            return None;
        }
        let math = Self::arithmetic(element, math)?;
        // SAFETY: the description lives, and nothing uses it at this moment.
        unsafe { dnn::set_convolution_math_type(self.convolution, math) }.ok()?;
        // SAFETY: handle and descriptions live.
        let memory = unsafe {
            dnn::get_convolution_forward_workspace_size(
                dnn.handle,
                self.input,
                self.weights,
                self.convolution,
                self.sums,
                algorithm,
            )
        };
        let memory = memory.ok().filter(|&memory| memory <= WORKSPACE)?;
        Some((algorithm, math as u32, memory))
    }

    /// The kind of arithmetic for an algorithm that was proposed with that, if it is what we compute
    /// in: never with conversions to what has fewer digits.
    fn arithmetic(element: Element, math: u32) -> Option<sys::cudnnMathType_t> {
        use sys::cudnnMathType_t::{CUDNN_DEFAULT_MATH, CUDNN_FMA_MATH, CUDNN_TENSOR_OP_MATH};
        let known = [CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_FMA_MATH];
        let proposed = known.into_iter().find(|&kind| kind as u32 == math)?;
        match (element, proposed) {
            // By default single precision may be TF32, which has the digits of f16.
            (Element::F32, CUDNN_DEFAULT_MATH | CUDNN_FMA_MATH) => Some(CUDNN_FMA_MATH),
            (Element::F32, _) => None,
            (Element::F16 | Element::Bf16, proposed) => Some(proposed),
        }
    }
}

/// All that there are.
const ALGORITHMS: [sys::cudnnConvolutionFwdAlgo_t; 8] = {
    use sys::cudnnConvolutionFwdAlgo_t::{
        CUDNN_CONVOLUTION_FWD_ALGO_DIRECT, CUDNN_CONVOLUTION_FWD_ALGO_FFT,
        CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING, CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
        CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM, CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
        CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD, CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
    };
    [
        CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
        CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
        CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
        CUDNN_CONVOLUTION_FWD_ALGO_DIRECT,
        CUDNN_CONVOLUTION_FWD_ALGO_FFT,
        CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING,
        CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD,
        CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
    ]
};

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each was created by `new` or is null, and is destroyed only here.
        unsafe {
            if !self.input.is_null() {
                let _ = dnn::destroy_tensor_descriptor(self.input);
            }
            if !self.sums.is_null() {
                let _ = dnn::destroy_tensor_descriptor(self.sums);
            }
            if !self.weights.is_null() {
                let _ = dnn::destroy_filter_descriptor(self.weights);
            }
            if !self.convolution.is_null() {
                let _ = dnn::destroy_convolution_descriptor(self.convolution);
            }
        }
    }
}
