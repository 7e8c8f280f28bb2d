//! Passes over whole arrays on a CUDA device.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::error::Result;
pub use crate::ops::cuda::zero;
use crate::ops::cuda::{Grid, Launch, read, spread, uninit};
use crate::ops::fault::fault;

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

/// `value` into these columns of `matrix_rv: [R, V]`, f32, in place.
pub fn fill_columns(matrix_rv: &Tensor, columns: &[Range<usize>], value: f32) -> Result<()> {
    let (rows, width) = matrix_rv.dims2()?;
    if matrix_rv.dtype() != DType::F32 {
        return Err(fault(format!("fill_columns: {:?}, and f32 is what it takes", matrix_rv.dtype())));
    }
    for columns in columns.iter().filter(|columns| rows > 0 && columns.end <= width) {
        Launch::new(matrix_rv.device(), "elementwise", "fill_columns_f32")?
            .tensor(matrix_rv)?
            .f32(value)
            .u32(width as u32)
            .u32(columns.start as u32)
            .u32(columns.len() as u32)
            .run(Grid { blocks: [rows as u32, 1, 1], threads: 128, shared_bytes: 0 })?;
    }
    Ok(())
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
    read::<f64>(&total)?.first().copied().ok_or_else(|| fault("sum_squares: the device gave no total"))
}
