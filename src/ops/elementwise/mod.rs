//! Passes over whole arrays, in place: sums, factors, zeros; and the norm of the gradients.

mod cpu;
mod cuda;

use std::ops::Range;

use candle_core::Tensor;

use crate::error::Result;
use crate::trail;

/// Adds `term` to `sum` in place; same shape.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn add_assign(sum: &Tensor, term: &Tensor) -> Result<()> {
    trail::begin("elementwise add_assign");
    if sum.device().is_cuda() { cuda::add_assign(sum, term) } else { cpu::add_assign(sum, term) }
}

/// Multiplies every element by `factor`, in place; f32.
pub fn scale(values: &Tensor, factor: f32) -> Result<()> {
    trail::begin("elementwise scale");
    if values.device().is_cuda() { cuda::scale(values, factor) } else { cpu::scale(values, factor) }
}

/// Writes `value` into these columns of `matrix_rv: [R, V]`, f32, in place.
pub fn fill_columns(matrix_rv: &Tensor, columns: &[Range<usize>], value: f32) -> Result<()> {
    if columns.is_empty() {
        return Ok(());
    }
    match matrix_rv.device().is_cuda() {
        true => cuda::fill_columns(matrix_rv, columns, value),
        false => cpu::fill_columns(matrix_rv, columns, value),
    }
}

/// Sets every element to zero, in place.
pub fn zero(values: &Tensor) -> Result<()> {
    if values.device().is_cuda() { cuda::zero(values) } else { cpu::zero(values) }
}

/// Sum of the squares of all tensors together, in f64 and a fixed order; NaN or infinity in the input shows in the
/// result. A device is waited for once.
pub fn sum_squares(tensors: &[&Tensor]) -> Result<f64> {
    trail::begin("elementwise sum_squares");
    if tensors.first().is_some_and(|first| first.device().is_cuda()) {
        cuda::sum_squares(tensors)
    } else {
        cpu::sum_squares(tensors)
    }
}
