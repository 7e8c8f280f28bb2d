//! Tensors made, copied and converted where they live: on the CPU, or on a CUDA device by its own kernels.

use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;

use super::cuda::{self, elementwise};
use crate::error::{Error, Result};

pub use super::cuda::elementwise::Normal;

/// The tensor as ops take it: contiguous, f32 or bf16; of another type it becomes f32 on the CPU.
///
/// # Errors
/// On a CUDA device, for other types than f32 and bf16.
pub fn operand(tensor: &Tensor) -> Result<Tensor> {
    match (cuda::on(tensor), tensor.dtype()) {
        (false, DType::BF16) => Ok(tensor.contiguous()?),
        (false, _) => Ok(tensor.to_dtype(DType::F32)?.contiguous()?),
        (true, DType::F32 | DType::BF16) if tensor.is_contiguous() => Ok(tensor.clone()),
        (true, dtype) => {
            let problem = format!("a {dtype:?} tensor {:?} on a CUDA device is no operand", tensor.shape());
            Err(Error::Compute(problem.into()))
        }
    }
}

/// The same values in memory of their own.
///
/// # Errors
/// When memory runs out; so for every function here.
pub fn duplicate(tensor: &Tensor) -> Result<Tensor> {
    if cuda::on(tensor) { cuda::duplicate(tensor) } else { Ok(tensor.copy()?) }
}

/// The same values as f32 or bf16; the tensor itself where it is of that type.
pub fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    if cuda::on(tensor) { elementwise::cast(tensor, dtype) } else { Ok(tensor.to_dtype(dtype)?) }
}

/// `value` in every element, f32 or bf16.
pub fn filled(device: &Device, shape: impl Into<Shape>, dtype: DType, value: f32) -> Result<Tensor> {
    let shape = shape.into();
    if device.is_cuda() {
        let tensor = cuda::uninit(device, shape, dtype)?;
        elementwise::fill(&tensor, value)?;
        return Ok(tensor);
    }
    Ok(Tensor::full(value, shape, device)?.to_dtype(dtype)?)
}

/// Random weights.
pub fn normal(device: &Device, weights: &Normal) -> Result<Tensor> {
    if device.is_cuda() {
        return elementwise::normal(device, weights);
    }
    let Normal { shape, dtype, deviation, stream } = weights;
    let element = |i: u32| deviation * stream.normal(i);
    let values: Vec<f32> = (0..shape.elem_count() as u32).into_par_iter().map(element).collect();
    Ok(Tensor::from_vec(values, shape.clone(), device)?.to_dtype(*dtype)?)
}

/// Waits until the device has done all it was given; the CPU always has.
///
/// # Errors
/// When a kernel failed.
pub fn synchronize(device: &Device) -> Result<()> {
    if device.is_cuda() { cuda::synchronize(device) } else { Ok(()) }
}

/// The most bytes that tensors held at once on a CUDA device; `None` on the CPU.
///
/// # Errors
/// When the device is lost.
pub fn device_peak(device: &Device) -> Result<Option<u64>> {
    device.is_cuda().then(|| cuda::memory_peak(device)).transpose()
}
