//! Sums, fills, casts, random weights and the gradient norm on a CUDA device.

use candle_core::{DType, Device, Shape, Tensor};

use super::{Grid, Launch, fault, multiprocessors, uninit};
use crate::error::Result;
use crate::rng::Stream;

/// A grid for a kernel whose threads step over all elements: at most what keeps the device busy.
pub(super) fn spread(tensor: &Tensor) -> Result<Grid> {
    let lanes = 16 / tensor.dtype().size_in_bytes();
    let blocks = tensor.elem_count().div_ceil(256 * lanes);
    Ok(Grid::line(blocks.min(16 * multiprocessors(tensor.device())?) as u32, 256))
}

/// `sum += term`, in place; the same shape and type, or a bf16 term into an f32 sum.
///
/// # Errors
/// When shapes or types do not agree, or the device fails; so for every function here.
pub fn add_assign(sum: &Tensor, term: &Tensor) -> Result<()> {
    let kernel = match (sum.dtype(), term.dtype()) {
        (DType::F32, DType::BF16) => "add_assign_to_f32",
        (a, b) if a == b => "add_assign",
        (a, b) => return Err(fault(format!("add_assign: {b:?} into {a:?}"))),
    };
    if sum.elem_count() != term.elem_count() {
        return Err(fault(format!("add_assign: {:?} into {:?}", term.shape(), sum.shape())));
    }
    Launch::typed(sum.device(), "elementwise", kernel, term.dtype())?
        .tensor(sum)?
        .tensor(term)?
        .u64(sum.elem_count() as u64)
        .run(spread(term)?)
}

/// `values *= factor`, f32, in place.
pub fn scale(values: &Tensor, factor: f32) -> Result<()> {
    if values.dtype() != DType::F32 {
        return Err(fault(format!("scale: {:?}, and f32 is what it takes", values.dtype())));
    }
    Launch::new(values.device(), "elementwise", "scale_f32")?
        .tensor(values)?
        .f32(factor)
        .u64(values.elem_count() as u64)
        .run(spread(values)?)
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

/// Elements that one block of `sum_squares` adds; as in the kernel.
const SHARE: usize = 65_536;

/// Sum of the squares of all tensors together, f32 or bf16, in f64 and a fixed order, with one copy to the host.
/// NaN or infinity in the input shows in the result. 0 for no tensors.
pub fn sum_squares(tensors: &[&Tensor]) -> Result<f64> {
    let Some(first) = tensors.first() else { return Ok(0.0) };
    let device = first.device();
    let blocks = |t: &Tensor| t.elem_count().div_ceil(SHARE);
    let count: usize = tensors.iter().map(|t| blocks(t)).sum();
    let partial = uninit(device, count, DType::F64)?;
    let mut at = 0;
    for tensor in tensors.iter().filter(|t| t.elem_count() > 0) {
        Launch::typed(device, "sum_squares", "sum_squares", tensor.dtype())?
            .tensor(tensor)?
            .tensor(&partial.narrow(0, at, blocks(tensor))?)?
            .u64(tensor.elem_count() as u64)
            .run(Grid::line(blocks(tensor) as u32, 256))?;
        at += blocks(tensor);
    }
    let total = uninit(device, 1, DType::F64)?;
    Launch::new(device, "sum_squares", "sum_squares_total")?
        .tensor(&partial)?
        .tensor(&total)?
        .u32(count as u32)
        .run(Grid::line(1, 1024))?;
    total.to_vec1::<f64>()?.first().copied().ok_or_else(|| fault("sum_squares: the device gave no total"))
}
