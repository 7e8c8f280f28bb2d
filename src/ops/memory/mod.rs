//! Tensors made, copied and converted where they live: on the CPU, or on a CUDA device by its own kernels.

mod cpu;
pub mod cuda;

use candle_core::{DType, Device, Shape, Tensor};

use crate::error::Result;
use crate::ops::fault::fault;
use crate::rng::Stream;
use crate::trail;

/// The tensor as ops take it: contiguous, f32 or bf16; of another type it becomes f32 on the CPU.
///
/// # Errors
/// On a CUDA device, for other types than f32 and bf16.
pub fn operand(tensor: &Tensor) -> Result<Tensor> {
    if tensor.device().is_cuda() { cuda::operand(tensor) } else { cpu::operand(tensor) }
}

/// The same values in memory of their own.
///
/// # Errors
/// When memory runs out; so for every function here.
pub fn duplicate(tensor: &Tensor) -> Result<Tensor> {
    trail::begin("memory duplicate");
    if tensor.device().is_cuda() { cuda::duplicate(tensor) } else { Ok(tensor.copy()?) }
}

/// Tensors of one type one below the other, along the first dimension, in memory of their own.
pub fn concatenate(parts: &[&Tensor]) -> Result<Tensor> {
    trail::begin("memory concatenate");
    let Some(first) = parts.first() else { return Err(fault("concatenate: no tensors")) };
    if first.device().is_cuda() { cuda::concatenate(parts) } else { Ok(Tensor::cat(parts, 0)?) }
}

/// The tensor in host memory. Of a view, its own elements go over, not all of what it is a view of.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    trail::begin("memory to_host");
    if tensor.device().is_cuda() { cuda::to_host(tensor) } else { Ok(tensor.clone()) }
}

/// The same values in host memory that is this tensor's alone.
pub fn host_copy(tensor: &Tensor) -> Result<Tensor> {
    if tensor.device().is_cuda() { to_host(tensor) } else { duplicate(tensor) }
}

/// The same values as f32 or bf16; the tensor itself where it is of that type.
pub fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    if tensor.device().is_cuda() { cuda::cast(tensor, dtype) } else { Ok(tensor.to_dtype(dtype)?) }
}

/// `value` in every element, f32 or bf16.
pub fn filled(device: &Device, shape: impl Into<Shape>, dtype: DType, value: f32) -> Result<Tensor> {
    let shape = shape.into();
    if device.is_cuda() {
        cuda::filled(device, shape, dtype, value)
    } else {
        Ok(Tensor::full(value, shape, device)?.to_dtype(dtype)?)
    }
}

/// Zero in every element, or none.
pub fn zeros(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let shape = shape.into();
    // A driver gives out no empty arrays.
    if device.is_cuda() && shape.elem_count() == 0 {
        return cuda::uninit(device, shape, dtype);
    }
    Ok(Tensor::zeros(shape, dtype, device)?)
}

/// The tensor on `device`; it may have no elements.
pub fn to_device(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    if device.is_cuda() && tensor.elem_count() == 0 {
        return cuda::uninit(device, tensor.shape(), tensor.dtype());
    }
    Ok(tensor.to_device(device)?)
}

/// What random weights are like.
#[derive(Clone, Debug)]
pub struct Normal {
    pub shape: Shape,
    /// f32 or bf16.
    pub dtype: DType,
    pub deviation: f32,
    /// Element `i` is `deviation * stream.normal(i)`, to the last bits of the device's logarithm and cosine.
    pub stream: Stream,
}

/// Random weights.
pub fn normal(device: &Device, weights: &Normal) -> Result<Tensor> {
    if device.is_cuda() { cuda::normal(device, weights) } else { cpu::normal(device, weights) }
}

/// Waits until the device has done all it was given; the CPU always has.
///
/// # Errors
/// When a kernel failed.
pub fn synchronize(device: &Device) -> Result<()> {
    trail::begin("memory synchronize");
    if device.is_cuda() { cuda::synchronize(device) } else { Ok(()) }
}

/// The most bytes that tensors held at once on a CUDA device; `None` on the CPU.
///
/// # Errors
/// When the device is lost.
pub fn device_peak(device: &Device) -> Result<Option<u64>> {
    device.is_cuda().then(|| cuda::memory_peak(device)).transpose()
}
