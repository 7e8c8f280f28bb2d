//! Fills, casts and random weights on a CUDA device, by the kernels of `elementwise.cu`.

use candle_core::{DType, Device, Shape, Tensor};

use super::Normal;
use crate::error::Result;
use crate::ops::cuda::{Launch, spread};
pub use crate::ops::cuda::{concatenate, duplicate, memory_peak, synchronize, to_host, uninit};
use crate::ops::fault::fault;

pub(super) fn operand(tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::F32 | DType::BF16 if tensor.is_contiguous() => Ok(tensor.clone()),
        dtype => {
            Err(fault(format!("a {dtype:?} tensor {:?} on a CUDA device is no operand", tensor.shape())))
        }
    }
}

pub(super) fn filled(device: &Device, shape: Shape, dtype: DType, value: f32) -> Result<Tensor> {
    let tensor = uninit(device, shape, dtype)?;
    fill(&tensor, value)?;
    Ok(tensor)
}

/// Sets every element, f32 or bf16, in place.
pub fn fill(values: &Tensor, value: f32) -> Result<()> {
    Launch::typed(values.device(), "elementwise", "fill", values.dtype())?
        .tensor(values)?
        .f32(value)
        .u64(values.elem_count() as u64)
        .run(spread(values)?)
}

/// The same values as f32 or bf16, in memory of their own; the tensor itself where it is of that type.
pub fn cast(values: &Tensor, dtype: DType) -> Result<Tensor> {
    let kernel = match (values.dtype(), dtype) {
        (from, to) if from == to => return Ok(values.clone()),
        (DType::F32, DType::BF16) => "cast_to_bf16",
        (DType::BF16, DType::F32) => "cast_to_f32",
        (from, to) => return Err(fault(format!("cast: {from:?} to {to:?}"))),
    };
    let out = uninit(values.device(), values.shape(), dtype)?;
    Launch::new(values.device(), "elementwise", kernel)?
        .tensor(values)?
        .tensor(&out)?
        .u64(values.elem_count() as u64)
        .run(spread(values)?)?;
    Ok(out)
}

/// Random weights made on the device; below 2^32 elements.
pub fn normal(device: &Device, weights: &Normal) -> Result<Tensor> {
    let count = weights.shape.elem_count();
    if u32::try_from(count).is_err() {
        return Err(fault(format!("normal: {count} elements in one tensor, below 2^32 are possible")));
    }
    let out = uninit(device, weights.shape.clone(), weights.dtype)?;
    let ([key0, key1], [id0, id1, id2]) = weights.stream.words();
    Launch::typed(device, "elementwise", "normal", weights.dtype)?
        .tensor(&out)?
        .f32(weights.deviation)
        .u32(key0)
        .u32(key1)
        .u32(id0)
        .u32(id1)
        .u32(id2)
        .u64(count as u64)
        .run(spread(&out)?)?;
    Ok(out)
}
