//! Conversions and random weights on the CPU.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::Normal;
use crate::error::Result;

pub(super) fn operand(tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::BF16 => Ok(tensor.contiguous()?),
        _ => Ok(tensor.to_dtype(DType::F32)?.contiguous()?),
    }
}

pub(super) fn normal(device: &Device, weights: &Normal) -> Result<Tensor> {
    let Normal { shape, dtype, deviation, stream } = weights;
    let element = |i: u32| deviation * stream.normal(i);
    let values: Vec<f32> = (0..shape.elem_count() as u32).into_par_iter().map(element).collect();
    Ok(Tensor::from_vec(values, shape.clone(), device)?.to_dtype(*dtype)?)
}
