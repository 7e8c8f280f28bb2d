//! Kernel launches, and the other places where device memory is touched by address.
//!
//! # Why this is sound
//! A device address comes from a tensor and nowhere else. The address of a tensor argument is that of its view
//! inside the storage that owns the memory; the launch keeps the tensor, and so the storage, alive until the
//! kernel is in the stream, and memory is freed in that same stream, behind the kernel. Device memory is no Rust
//! memory: no reference into it exists, candle reads and writes it through the same stream, in order, so a kernel
//! that writes where a shared tensor lives races with nothing (event tracking is off because there is one
//! stream). The driver tells how many bytes each parameter of a kernel takes; a launch with another number of
//! arguments, or another size, is an error. What remains the duty of the op that launches: that the arguments
//! are of the kernel's types and order, and that each tensor has as many elements as the kernel reads and writes.
//! Every op checks its shapes before it launches. The driver keeps device memory apart from host memory, so a
//! fault there ends in an error or wrong numbers on the device, never in this process's memory.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, DevicePtr, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Shape, Storage, Tensor};

use super::grid::Grid;
use crate::error::Result;
use crate::ops::fault::fault;

/// Machine code of every `kernels/<name>.cu`, by name.
static IMAGES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/kernel_images.rs"));

/// Shared memory a block may have without asking.
const SHARED_BYTES: u32 = 48 << 10;

/// A kernel ready to launch.
struct Kernel {
    name: String,
    function: CudaFunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    /// How much dynamic shared memory it has been allowed.
    shared_bytes: AtomicU32,
}

/// Kept for the life of the process: modules are loaded once a device, kernels looked up once.
#[derive(Default)]
struct Loaded {
    modules: HashMap<(DeviceId, &'static str), Arc<CudaModule>>,
    kernels: HashMap<DeviceId, HashMap<String, Arc<Kernel>>>,
}

fn loaded() -> MutexGuard<'static, Loaded> {
    static LOADED: OnceLock<Mutex<Loaded>> = OnceLock::new();
    // A panic elsewhere leaves the maps whole: each insert is the last step.
    LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn kernel(device: &CudaDevice, file: &'static str, name: &str) -> Result<Arc<Kernel>> {
    let mut loaded = loaded();
    if let Some(kernel) = loaded.kernels.get(&device.id()).and_then(|kernels| kernels.get(name)) {
        return Ok(kernel.clone());
    }
    let stream = device.cuda_stream();
    let module = match loaded.modules.get(&(device.id(), file)) {
        Some(module) => module.clone(),
        None => {
            let Some((_, image)) = IMAGES.iter().find(|(of, _)| *of == file) else {
                return Err(fault(format!("kernels/{file}.cu is not in this build")));
            };
            let module = stream.context().load_module(Ptx::from_binary(image.to_vec())).map_err(|e| {
                fault(format!(
                    "the GPU driver cannot load kernels/{file}.cu: {e}. rlvr needs compute capability 8.0 or newer \
                     and a driver for CUDA {} or newer",
                    version(sys::CUDA_VERSION, 1000, 10)
                ))
            })?;
            loaded.modules.insert((device.id(), file), module.clone());
            module
        }
    };
    let function = module
        .load_function(name)
        .map_err(|e| fault(format!("kernels/{file}.cu has no kernel {name}: {e}")))?;
    let parameters = parameters(&function)?;
    let kernel = Arc::new(Kernel {
        name: name.into(),
        function,
        parameters,
        shared_bytes: AtomicU32::new(SHARED_BYTES),
    });
    loaded.kernels.entry(device.id()).or_default().insert(name.into(), kernel.clone());
    Ok(kernel)
}

/// Bytes of each parameter of a kernel.
fn parameters(function: &CudaFunction) -> Result<Vec<usize>> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: a live function; both results are written to locals.
        let status =
            unsafe { sys::cuFuncGetParamInfo(function.cu_function(), sizes.len(), &mut offset, &mut size) };
        match status {
            sys::CUresult::CUDA_SUCCESS => sizes.push(size),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes), // there are no more
            other => {
                return Err(fault(format!(
                    "the GPU driver does not tell a kernel's parameters ({other:?}): it is older than CUDA 12.4; \
                     update it"
                )));
            }
        }
    }
}

/// One kernel of `kernels/<file>.cu` and its arguments, in the kernel's order.
pub struct Launch {
    device: CudaDevice,
    kernel: Arc<Kernel>,
    arguments: Vec<Argument>,
    /// Alive until the kernel is in the stream.
    tensors: Vec<Tensor>,
}

#[derive(Clone, Copy)]
enum Argument {
    Address(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Argument {
    fn bytes(self) -> usize {
        match self {
            Self::Address(_) | Self::U64(_) => 8,
            Self::U32(_) | Self::F32(_) => 4,
        }
    }
}

impl Launch {
    /// The entry point `kernel`, as written in the file.
    ///
    /// # Errors
    /// When `device` is no CUDA device, or the driver does not take the file or lacks the kernel.
    pub fn new(device: &Device, file: &'static str, kernel: &str) -> Result<Self> {
        let device = cuda(device)?.clone();
        let kernel = self::kernel(&device, file, kernel)?;
        let arguments = Vec::with_capacity(kernel.parameters.len());
        Ok(Self { device, kernel, arguments, tensors: Vec::with_capacity(8) })
    }

    /// The entry point `<kernel>_f32` or `<kernel>_bf16`.
    ///
    /// # Errors
    /// As [`Launch::new`], and for any other element type.
    pub fn typed(device: &Device, file: &'static str, kernel: &str, dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Self::new(device, file, &format!("{kernel}_f32")),
            DType::BF16 => Self::new(device, file, &format!("{kernel}_bf16")),
            other => Err(fault(format!("{kernel}: elements must be f32 or bf16, got {other:?}"))),
        }
    }

    /// The address of a contiguous tensor on the same device, for reading or writing; a view's begins at its
    /// first element. The op vouches that the kernel's element type and count agree with it.
    ///
    /// # Errors
    /// When the tensor is elsewhere or not contiguous.
    pub fn tensor(mut self, tensor: &Tensor) -> Result<Self> {
        let address = address(tensor, &self.device)
            .map_err(|e| fault(format!("{}, argument {}: {e}", self.kernel.name, self.arguments.len())))?;
        self.arguments.push(Argument::Address(address));
        self.tensors.push(tensor.clone());
        Ok(self)
    }

    /// A null pointer.
    pub fn null(self) -> Self {
        self.with(Argument::Address(0))
    }

    pub fn u32(self, value: u32) -> Self {
        self.with(Argument::U32(value))
    }

    pub fn u64(self, value: u64) -> Self {
        self.with(Argument::U64(value))
    }

    pub fn f32(self, value: f32) -> Self {
        self.with(Argument::F32(value))
    }

    fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    /// Puts the kernel into the device's stream. Does not wait for it: a fault inside the kernel shows at a
    /// later call.
    ///
    /// # Errors
    /// When the arguments are not as many or as large as the kernel's, the grid is beyond the device's limits,
    /// or the driver refuses the launch.
    pub fn run(self, grid: Grid) -> Result<()> {
        let Self { device, kernel, arguments, tensors } = self;
        let given: Vec<usize> = arguments.iter().map(|a| a.bytes()).collect();
        if given != kernel.parameters {
            return Err(fault(format!(
                "{}: its parameters take {:?} bytes, the arguments {given:?}",
                kernel.name, kernel.parameters
            )));
        }
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let fits = x < 1 << 31 && y < 1 << 16 && z < 1 << 16 && (1..=1024).contains(&grid.threads);
        if !fits {
            return Err(fault(format!("{}: no device can launch {grid:?}", kernel.name)));
        }
        let refused = |e: &dyn std::fmt::Display| fault(format!("{} with {grid:?}: {e}", kernel.name));
        if grid.shared_bytes > kernel.shared_bytes.load(Ordering::Relaxed) {
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel.function.set_attribute(limit, grid.shared_bytes as i32).map_err(|e| refused(&e))?;
            kernel.shared_bytes.store(grid.shared_bytes, Ordering::Relaxed);
        }
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel.function);
        for argument in &arguments {
            match argument {
                Argument::Address(v) | Argument::U64(v) => launch.arg(v),
                Argument::U32(v) => launch.arg(v),
                Argument::F32(v) => launch.arg(v),
            };
        }
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared_bytes,
        };
        // SAFETY: number and sizes of the arguments are the kernel's; addresses are of live tensors of this
        // device, which `tensors` holds until after the launch. For the rest see the head of this file.
        unsafe { launch.launch(config) }.map_err(|e| refused(&e))?;
        drop(tensors);
        Ok(())
    }
}

/// The CUDA device inside.
pub(super) fn cuda(device: &Device) -> Result<&CudaDevice> {
    match device {
        Device::Cuda(device) => Ok(device),
        other => Err(fault(format!("a CUDA op was given a tensor on {:?}", other.location()))),
    }
}

/// Where a contiguous tensor's first element is. Valid as long as the tensor's storage lives.
pub(super) fn address(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
    if !tensor.is_contiguous() {
        return Err(fault(format!("the tensor is not contiguous: strides {:?}", tensor.stride())));
    }
    start(tensor, device)
}

/// A matrix in memory: rows of contiguous elements, `stride` elements from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub address: u64,
    pub stride: usize,
}

impl Rows {
    /// Of a 2-D tensor, columns of a wider one too. Valid as long as its storage lives.
    ///
    /// # Errors
    /// When the tensor is elsewhere, or a row's elements are apart.
    pub fn of(tensor: &Tensor, device: &CudaDevice) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        let [row, column] = tensor.stride() else { return Err(fault("a matrix has two strides")) };
        if (columns > 1 && *column != 1) || (rows > 1 && *row < columns) {
            return Err(fault(format!("no rows of contiguous elements: strides {:?}", tensor.stride())));
        }
        let stride = if rows > 1 { *row } else { columns.max(1) };
        Ok(Self { address: start(tensor, device)?, stride })
    }
}

fn start(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(fault(format!(
            "the tensor is on {:?}, not on the CUDA device",
            tensor.device().location()
        )));
    };
    if !storage.device.same_device(device) {
        return Err(fault("the tensor is on another CUDA device"));
    }
    let start = layout.start_offset();
    let stream = device.cuda_stream();
    macro_rules! start_of {
        ($($kind:ident),*) => {
            match &storage.slice {
                $(CudaStorageSlice::$kind(slice) => slice.device_ptr(&stream).0,)*
                _ => return Err(fault(format!("no op takes elements of type {:?}", tensor.dtype()))),
            }
        };
    }
    let base = start_of!(U8, U32, I16, I32, I64, BF16, F16, F32, F64);
    Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
}

/// A tensor over memory that nothing has written: what is read from it before a kernel fills it is chance.
///
/// # Errors
/// When `device` is no CUDA device, or has no memory left.
pub fn uninit(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let (cuda, shape) = (cuda(device)?, shape.into());
    // The driver gives out no empty allocations.
    let held = if shape.elem_count() == 0 { Shape::from(1) } else { shape.clone() };
    // SAFETY: every bit pattern is a value of the numeric types that tensors have, and device memory is read by
    // the device only, so unwritten memory gives wrong numbers at worst.
    let storage = unsafe { cuda.alloc_uninit(&held, dtype) }?;
    Ok(wrap(storage, shape))
}

fn wrap(storage: CudaStorage, shape: Shape) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// The same elements in memory of their own, whatever storage `tensor` is a view of.
///
/// # Errors
/// When the tensor is not contiguous on a CUDA device, or no memory is left.
pub fn duplicate(tensor: &Tensor) -> Result<Tensor> {
    let copy = uninit(tensor.device(), tensor.shape(), tensor.dtype())?;
    copy_into(tensor, &copy)?;
    Ok(copy)
}

/// Tensors of one type and width one below the other, in memory of their own.
///
/// # Errors
/// When they do not fit together, and as [`duplicate`].
pub fn concatenate(parts: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Err(fault("concatenate: no tensors")) };
    let rows: usize = parts.iter().map(|part| part.dims().first().copied().unwrap_or(1)).sum();
    let mut shape = first.dims().to_vec();
    if shape.is_empty()
        || parts.iter().any(|p| p.dims().get(1..) != first.dims().get(1..) || p.dtype() != first.dtype())
    {
        return Err(fault("concatenate: tensors of different widths or types"));
    }
    shape[0] = rows;
    let whole = uninit(first.device(), shape, first.dtype())?;
    let mut start = 0;
    for part in parts {
        let rows = part.dim(0)?;
        copy_into(part, &whole.narrow(0, start, rows)?)?;
        start += rows;
    }
    Ok(whole)
}

/// `to` is as large as `from`, and nothing of it is part of `from`.
pub(super) fn copy_into(from: &Tensor, to: &Tensor) -> Result<()> {
    let device = cuda(from.device())?;
    let bytes = bytes(from);
    let (from, to) = (address(from, device)?, address(to, device)?);
    if bytes > 0 {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(|e| fault(e.to_string()))?;
        // SAFETY: both are live tensors of this device with `bytes` bytes, apart from each other.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
            .map_err(|e| fault(format!("copying {bytes} bytes on the device: {e}")))?;
    }
    Ok(())
}

/// Writes the elements of `from` over those of `to`, in place.
///
/// # Errors
/// When they differ in number or type, and as [`duplicate`].
pub fn overwrite(to: &Tensor, from: &Tensor) -> Result<()> {
    if (to.elem_count(), to.dtype()) != (from.elem_count(), from.dtype()) {
        return Err(fault(format!("overwrite: {:?} with {:?}", to.shape(), from.shape())));
    }
    copy_into(from, to)
}

/// Sets every element to zero, in place.
///
/// # Errors
/// When the tensor is not contiguous on a CUDA device.
pub fn zero(tensor: &Tensor) -> Result<()> {
    let device = cuda(tensor.device())?;
    let (at, bytes) = (address(tensor, device)?, bytes(tensor));
    if bytes > 0 {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(|e| fault(e.to_string()))?;
        // SAFETY: a live tensor of this device with `bytes` bytes; all zero bits are zero in every type.
        unsafe { result::memset_d8_async(at, 0, bytes, stream.cu_stream()) }
            .map_err(|e| fault(format!("clearing {bytes} bytes on the device: {e}")))?;
    }
    Ok(())
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// Stops recording two events for every tensor: with one stream they order nothing.
pub(super) fn forget_events(device: &CudaDevice) {
    // SAFETY: all of this program's work on the device goes to the one stream of `device`.
    unsafe { device.disable_event_tracking() }
}

/// The newest CUDA version the driver serves, 1000 major + 10 minor.
pub(super) fn driver_version() -> Result<u32> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| fault(e.to_string()))?;
    Ok(version as u32)
}

/// `13020` with steps 1000 and 10 is `13.2`.
pub(super) fn version(number: u32, major: u32, minor: u32) -> String {
    format!("{}.{}", number / major, number % major / minor)
}

/// A 64-bit property of the device's memory pool.
pub(super) fn pool_attribute(device: &CudaDevice, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut value = 0u64;
    // SAFETY: a live device; the attributes used here are 64-bit counts.
    unsafe {
        let pool = result::device::get_default_mem_pool(device.cuda_stream().context().cu_device());
        pool.and_then(|pool| {
            result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast::<c_void>())
        })
    }
    .map_err(|e| fault(format!("the device's memory pool: {e}")))?;
    Ok(value)
}

/// Sets a 64-bit property of the device's memory pool.
pub(super) fn set_pool_attribute(
    device: &CudaDevice,
    attribute: sys::CUmemPool_attribute,
    mut value: u64,
) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        let pool = result::device::get_default_mem_pool(device.cuda_stream().context().cu_device());
        pool.and_then(|pool| {
            result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast::<c_void>())
        })
    }
    .map_err(|e| fault(format!("the device's memory pool: {e}")))
}
