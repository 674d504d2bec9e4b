//! The driver's calls that candle does not pass on: memory, copies beside computing, launches.
//!
//! Pointers of a device are plain numbers: nothing in the types says how long what they point to
//! lives. Who launches work keeps the memory it names until the stream has come past it;
//! [`super::lane`] does, by owning all of it.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::CudaDevice;
use cudarc::cublas::sys::cublasHandle_t;
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUevent_flags};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaStream, DriverError, result, sys,
};

use crate::engine::{EngineError, Gpu as Description, HostMemory};

/// Threads of a block.
const BLOCK: u32 = 256;

/// Pinned memory that all devices may read.
const PORTABLE: u32 = 1;

/// Memory that is left to libraries, for what they load and set up when they are first used, and for
/// the working memory of shapes that come later; or a sixteenth of a GPU that has little.
const HEADROOM: usize = 512 << 20;

/// Our kernels, as build.rs left them.
pub(super) const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// A place in a GPU's memory.
pub(super) type Pointer = u64;

/// A GPU, opened.
#[derive(Clone)]
pub(super) struct Gpu {
    number: usize,
    name: String,
    device: CudaDevice,
    context: Arc<CudaContext>,
    /// Where candle computes.
    pub(super) stream: Arc<CudaStream>,
}

impl Gpu {
    /// Opens GPU `number`.
    ///
    /// # Errors
    /// [`EngineError::Device`] where it cannot be used, [`EngineError::OutOfMemory`].
    pub(super) fn open(number: usize) -> Result<Gpu, EngineError> {
        let refused =
            |reason: String| EngineError::Device { device: format!("cuda:{number}"), reason };
        super::probe::count().map_err(refused)?;
        let full = |error: &dyn std::error::Error| EngineError::OutOfMemory {
            device: format!("cuda:{number}"),
            needs: format!("it cannot be opened: {error}"),
        };
        // First alone: what libraries say of a GPU that is full is anything.
        let context = CudaContext::new(number).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => full(&error),
            _ => refused(format!("it cannot be opened: {error}")),
        })?;
        let device =
            CudaDevice::new_with_stream(number).map_err(|error| match is_full(&context) {
                true => full(&error),
                false => refused(format!("candle cannot open it: {}", first_line(&error))),
            })?;
        let stream = device.cuda_stream();
        let context = stream.context().clone();
        let name = context.name().unwrap_or_else(|_| "a GPU".into());
        let gpu = Gpu { number, name, device, context, stream };
        let (major, minor) = gpu.context.compute_capability().map_err(|e| gpu.fault("open", e))?;
        let needed: i32 = env!("HAUL_CUDA_CAPABILITY").parse().unwrap_or(80);
        if 10 * major + minor < needed {
            return Err(refused(format!(
                "{} has compute capability {major}.{minor}, and this haul was built for {}.{} and \
                 newer (CUDA_COMPUTE_CAP; docs/cuda.md)",
                gpu.name,
                needed / 10,
                needed % 10
            )));
        }
        Ok(gpu)
    }

    /// Its number and name, for people.
    pub(super) fn label(&self) -> String {
        format!("cuda:{} ({})", self.number, self.name)
    }

    /// What decides its results besides libraries.
    pub(super) fn kind(&self) -> String {
        let number = |attribute| self.context.attribute(attribute).unwrap_or(0);
        let (major, minor) = self.context.compute_capability().unwrap_or((0, 0));
        let processors = number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        format!("{} {major}.{minor} {processors}", self.name)
    }

    /// candle's handle of cuBLAS, which computes on candle's stream.
    pub(super) fn blas(&self) -> cublasHandle_t {
        *self.device.cublas_handle().handle()
    }

    /// Has cuBLAS add up in single precision throughout, and work in this memory of ours, so that it
    /// chooses the same whether launches are recorded or not.
    pub(super) fn set_up_blas(&self, workspace: &DeviceMemory) -> Result<(), EngineError> {
        use cudarc::cublas::sys::{
            cublasMath_t, cublasSetMathMode, cublasSetWorkspace_v2, cublasStatus_t,
        };
        self.bind()?;
        let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        let pointer =
            std::ptr::without_provenance_mut(usize::try_from(workspace.pointer).unwrap_or(0));
        // SAFETY: the handle is candle's and lives as long as its device; the memory is the lane's,
        // which has the only handle of this device and keeps it as long.
        let said = unsafe {
            match cublasSetMathMode(self.blas(), mode) {
                cublasStatus_t::CUBLAS_STATUS_SUCCESS => {
                    cublasSetWorkspace_v2(self.blas(), pointer, workspace.bytes)
                }
                failed => failed,
            }
        };
        match said {
            cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
            failed => Err(self.failed("set up cuBLAS", false, format!("{failed:?}").into())),
        }
    }

    /// The version of cuBLAS.
    pub(super) fn blas_version(&self) -> i32 {
        let mut version = 0;
        // SAFETY: the handle is candle's and lives as long as its device; the number is written to.
        let _ = unsafe { cudarc::cublas::sys::cublasGetVersion_v2(self.blas(), &raw mut version) };
        version
    }

    /// Makes it the calling thread's.
    pub(super) fn bind(&self) -> Result<(), EngineError> {
        self.context.bind_to_thread().map_err(|error| self.fault("take the GPU", error))
    }

    /// A stream beside candle's.
    pub(super) fn new_stream(&self) -> Result<Arc<CudaStream>, EngineError> {
        self.context.new_stream().map_err(|error| self.fault("make a stream", error))
    }

    /// An event that streams wait for.
    pub(super) fn event(&self) -> Result<CudaEvent, EngineError> {
        self.context.new_event(None).map_err(|error| self.fault("make an event", error))
    }

    /// An event that this machine waits for, without keeping a core busy.
    pub(super) fn sleeper(&self) -> Result<CudaEvent, EngineError> {
        let flag = CUevent_flags::CU_EVENT_BLOCKING_SYNC;
        self.context.new_event(Some(flag)).map_err(|error| self.fault("make an event", error))
    }

    /// One of our kernels.
    pub(super) fn kernel(&self, name: &str) -> Result<Kernel, EngineError> {
        let found = self.device.get_or_load_custom_func(name, "haul", PTX);
        let function = found.map_err(|error| match self.is_full() {
            true => self.failed(format!("load the kernel {name}"), true, error.into()),
            // A driver that is older than the compiler.
            false => EngineError::Device {
                device: format!("cuda:{}", self.number),
                reason: format!("its driver does not take haul's kernels: {}", first_line(&error)),
            },
        })?;
        Ok(Kernel { function: function.into_cuda_function(), name: name.to_owned() })
    }

    /// An error of the driver's, while doing `step`.
    pub(super) fn fault(&self, step: impl Into<String>, error: DriverError) -> EngineError {
        let full = error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        self.failed(step, full, Box::new(error))
    }

    /// An error of any library's, while doing `step`. Libraries have many words for memory that they
    /// could not take, and where there is hardly any that is what ails them.
    pub(super) fn failed(
        &self,
        step: impl Into<String>,
        full: bool,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> EngineError {
        let step = step.into();
        match full || is_full(&self.context) {
            true => EngineError::OutOfMemory { device: self.label(), needs: step },
            false => EngineError::Execute { step: format!("{step} on {}", self.label()), source },
        }
    }

    /// Whether there is hardly any memory left.
    pub(super) fn is_full(&self) -> bool {
        is_full(&self.context)
    }

    /// Waits until the stream has done everything.
    pub(super) fn wait(&self, stream: &CudaStream) -> Result<(), EngineError> {
        stream.synchronize().map_err(|error| self.fault("wait for the GPU", error))
    }

    /// Memory of this GPU with anything in it.
    pub(super) fn memory(&self, bytes: usize, what: &str) -> Result<DeviceMemory, EngineError> {
        self.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: the context is bound. The memory is given back once, by `Drop`, in that context.
        let pointer = unsafe { result::malloc_sync(bytes) }.map_err(|error| {
            self.fault(format!("{} MiB for {what}", bytes.div_ceil(1 << 20)), error)
        })?;
        Ok(DeviceMemory { pointer, bytes, context: self.context.clone() })
    }

    /// Memory of this machine from which all GPUs copy without a detour.
    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned, EngineError> {
        self.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: the context is bound. The memory is given back once, by `Drop`, in that context.
        let pointer = unsafe { result::malloc_host(bytes, PORTABLE) }
            .map_err(|error| self.fault(format!("pin {bytes} bytes of memory"), error))?
            .cast::<u8>();
        // SAFETY: that many bytes have just been allocated there, and nobody else knows of them.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Pinned { pointer, bytes, context: self.context.clone() })
    }

    /// Copies `from` to `at` bytes after the beginning of `to`, and waits for that.
    pub(super) fn fill(
        &self,
        from: &[u8],
        to: &DeviceMemory,
        at: usize,
    ) -> Result<(), EngineError> {
        self.bind()?;
        // Not the driver's own waiting copy: that returns when it has read ordinary memory, and not
        // when it has written the GPU's.
        // SAFETY: the stream is waited for before this returns, whatever happened.
        let copied = unsafe { self.upload(from, to, at, &self.stream) };
        self.wait(&self.stream)?;
        copied
    }

    /// Copies what is `at` bytes after the beginning of `from`, and waits for that. What computes it
    /// must be over.
    pub(super) fn read(
        &self,
        from: &DeviceMemory,
        at: usize,
        to: &mut [u8],
    ) -> Result<(), EngineError> {
        from.check(at, to.len());
        self.bind()?;
        // SAFETY: the range was just checked against the allocation, and the copy is over on return.
        let copied = unsafe { result::memcpy_dtoh_sync(to, from.pointer + at as u64) };
        copied.map_err(|error| self.fault("copy from the GPU", error))
    }

    /// Copies `from`, later, to `at` bytes after the beginning of `to`.
    ///
    /// # Safety
    /// `from` stays where and as it is, and `to` is not dropped, until `stream` has come past this.
    pub(super) unsafe fn upload(
        &self,
        from: &[u8],
        to: &DeviceMemory,
        at: usize,
        stream: &CudaStream,
    ) -> Result<(), EngineError> {
        to.check(at, from.len());
        // SAFETY: the range was just checked against the allocation; the rest is the caller's promise.
        let copied =
            unsafe { result::memcpy_htod_async(to.pointer + at as u64, from, stream.cu_stream()) };
        copied.map_err(|error| self.fault("copy to the GPU", error))
    }

    /// Copies `to.len()` bytes from the beginning of `from`, later.
    ///
    /// # Safety
    /// `to` is neither moved nor looked at, and `from` is not dropped, until `stream` has come past
    /// this.
    pub(super) unsafe fn download(
        &self,
        from: &DeviceMemory,
        to: &mut [u8],
        stream: &CudaStream,
    ) -> Result<(), EngineError> {
        from.check(0, to.len());
        // SAFETY: the range was just checked against the allocation; the rest is the caller's promise.
        let copied = unsafe { result::memcpy_dtoh_async(to, from.pointer, stream.cu_stream()) };
        copied.map_err(|error| self.fault("copy from the GPU", error))
    }
}

/// Memory of a GPU.
pub(super) struct DeviceMemory {
    pointer: Pointer,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl DeviceMemory {
    /// Where it begins.
    pub(super) fn pointer(&self) -> Pointer {
        self.pointer
    }

    /// How much it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, at: usize, count: usize) {
        let fits = at.checked_add(count).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{count} bytes at {at} of {} on a GPU. This is a bug.", self.bytes);
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if bound(&self.context) {
            // SAFETY: allocated in this context by `Gpu::memory`, and given back only here; a lane waits
            // for work that uses it before it drops it. An error means that the context is gone, and it with it.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Pinned memory of this machine.
pub(super) struct Pinned {
    pointer: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it is plain memory that this value owns alone, like a boxed slice, and which the driver
// allows to be given back from any thread.
unsafe impl Send for Pinned {}

impl HostMemory for Pinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes, all of them initialised, belong to this value until it is dropped.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if bound(&self.context) {
            // SAFETY: allocated by `Gpu::pinned`, and given back only here; a lane waits for copies that
            // use it before it drops it.
            let _ = unsafe { result::free_host(self.pointer.cast::<c_void>()) };
        }
    }
}

/// One of our kernels on a GPU.
pub(super) struct Kernel {
    function: CudaFunction,
    name: String,
}

impl Kernel {
    /// Launches it on the GPU's stream, with so many threads at least.
    ///
    /// # Safety
    /// `parameters` point to values of the types that the kernel of this name takes in kernels.cu, and
    /// what those point to is good for what the kernel does with it until the stream has come past
    /// this.
    pub(super) unsafe fn launch(
        &self,
        gpu: &Gpu,
        threads: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<(), EngineError> {
        let blocks = u32::try_from(threads.div_ceil(BLOCK as usize)).unwrap_or(u32::MAX);
        // SAFETY: the function is loaded in the context of the stream, and the driver copies
        // parameters before it returns; the rest is the caller's promise.
        let launched = unsafe {
            result::launch_kernel(
                self.function.cu_function(),
                (blocks, 1, 1),
                (BLOCK, 1, 1),
                0,
                gpu.stream.cu_stream(),
                parameters,
            )
        };
        launched.map_err(|error| gpu.fault(format!("launch {}", self.name), error))
    }
}

/// Work that was recorded once, to be launched as a whole.
pub(super) struct Recorded(CudaGraph);

// SAFETY: the driver wants calls about a graph one after another, whichever thread they come from; a
// lane owns its graphs and is used by one thread at a time.
unsafe impl Send for Recorded {}

impl Recorded {
    /// Records what `work` launches on the GPU's stream. `None` where the driver or a library cannot
    /// record it; nothing was computed either way.
    pub(super) fn record(
        gpu: &Gpu,
        work: impl FnOnce() -> Result<(), EngineError>,
    ) -> Option<Recorded> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        gpu.stream.begin_capture(mode).ok()?;
        let launched = work();
        // Ends the recording also where it failed, or the stream would be of no use.
        let flags = sys::CUgraphInstantiate_flags_enum(0);
        let graph = gpu.stream.end_capture(flags);
        launched.ok()?;
        graph.ok().flatten().map(Recorded)
    }

    /// Launches it.
    pub(super) fn launch(&self, gpu: &Gpu) -> Result<(), EngineError> {
        self.0.launch().map_err(|error| gpu.fault("launch the network", error))
    }
}

/// What candle says, without the stack that it adds where RUST_BACKTRACE is set.
fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Whether the context could be made this thread's. What an earlier drop has left to say is said once,
/// and no reason to give nothing back.
fn bound(context: &CudaContext) -> bool {
    context.bind_to_thread().is_ok() || context.bind_to_thread().is_ok()
}

/// Whether a GPU has hardly any memory left: less than libraries take for themselves when they please.
fn is_full(context: &CudaContext) -> bool {
    let left = context.mem_get_info();
    left.is_ok_and(|(free, total)| free < HEADROOM.min(total / 16))
}

/// What there is to know of a GPU, for `haul doctor`.
pub(super) fn describe(number: usize) -> Result<Description, DriverError> {
    let device = result::device::get(i32::try_from(number).unwrap_or(i32::MAX))?;
    let number_of = |attribute| {
        // SAFETY: the device was just given by the driver.
        unsafe { result::device::get_attribute(device, attribute) }.map(i32::unsigned_abs)
    };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }? as u64;
    let free = CudaContext::new(number).and_then(|context| context.mem_get_info());
    Ok(Description {
        number,
        name: result::device::get_name(device)?,
        capability: (
            number_of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number_of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory,
        free: free.ok().map(|(free, _)| free as u64),
    })
}
