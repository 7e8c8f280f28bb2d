//! Passes over whole arrays on the CPU.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::ops::cpu::simd::{dot, vectorize};
use crate::ops::cpu::widened::{View, slice, slice_mut};

/// Elements of one task; of `sum_squares`, those that are added in f32.
const CHUNK: usize = 1 << 14;

pub(super) fn add_assign(sum: &Tensor, term: &Tensor) -> Result<()> {
    Ok(sum.inplace_op2(term, &AddAssign)?)
}

struct AddAssign;

impl InplaceOp2 for AddAssign {
    fn name(&self) -> &'static str {
        "add-assign"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        l_sum: &Layout,
        term: &CpuStorage,
        l_term: &Layout,
    ) -> candle_core::Result<()> {
        let (mut sum, term) = (slice_mut(sum, l_sum)?, slice(term, l_term)?);
        sum.par_chunks_mut(CHUNK).zip(term.par_chunks(CHUNK)).for_each(|(sum, term)| {
            sum.iter_mut().zip(term).for_each(|(s, t)| *s += t);
        });
        Ok(())
    }
}

pub(super) fn scale(values: &Tensor, factor: f32) -> Result<()> {
    Ok(values.inplace_op1(&Scale(factor))?)
}

struct Scale(f32);

impl InplaceOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        slice_mut(values, layout)?.iter_mut().for_each(|x| *x *= self.0);
        Ok(())
    }
}

pub(super) fn fill_columns(matrix_rv: &Tensor, columns: &[Range<usize>], value: f32) -> Result<()> {
    let (_, width) = matrix_rv.dims2()?;
    Ok(matrix_rv.inplace_op1(&FillColumns { width, columns, value })?)
}

struct FillColumns<'a> {
    width: usize,
    columns: &'a [Range<usize>],
    value: f32,
}

impl InplaceOp1 for FillColumns<'_> {
    fn name(&self) -> &'static str {
        "fill-columns"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        for row in slice_mut(values, layout)?.chunks_exact_mut(self.width) {
            self.columns.iter().for_each(|columns| row[columns.clone()].fill(self.value));
        }
        Ok(())
    }
}

pub(super) fn zero(values: &Tensor) -> Result<()> {
    Ok(values.inplace_op1(&Zero)?)
}

struct Zero;

impl InplaceOp1 for Zero {
    fn name(&self) -> &'static str {
        "zero"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        slice_mut(values, layout)?.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
        Ok(())
    }
}

pub(super) fn sum_squares(tensors: &[&Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for values in tensors {
        let view = View::new(values)?;
        let partial: Vec<f64> =
            view.par_chunks(CHUNK).map(|chunk| f64::from(vectorize!(dot(chunk, chunk)))).collect();
        sum += partial.iter().sum::<f64>();
    }
    Ok(sum)
}
