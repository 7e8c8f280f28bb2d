//! Rows of a matrix by index, and their gradient.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::gemm::Write;
use super::{View, slice, slice_mut, tensor};
use crate::error::{Error, Result};

/// `table_vh: [V, H]`, `rows`: N indices -> `[N, H]`. An index outside the table is an error.
pub fn gather(table_vh: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (v, h) = table_vh.dims2()?;
    let table = View::new(table_vh)?;
    let mut out = Vec::with_capacity(rows.len() * h);
    for &row in rows {
        if row >= v {
            return Err(Error::input(
                format!("token id {row}"),
                format!("is outside the embedding of {v} rows"),
                "Use the tokenizer that belongs to the model",
            ));
        }
        out.extend_from_slice(&table[row * h..(row + 1) * h]);
    }
    tensor(out, (rows.len(), h))
}

/// `len` rows from row `start` of one of two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRun {
    /// Which matrix.
    pub part: usize,
    pub start: usize,
    pub len: usize,
}

/// Runs of rows of two matrices of one width, one below the other: `[sum of len, W]`.
pub fn gather_runs(parts: [&Tensor; 2], runs: &[RowRun]) -> Result<Tensor> {
    let width = parts[0].dim(1)?;
    let views = [View::new(parts[0])?, View::new(parts[1])?];
    let rows: usize = runs.iter().map(|run| run.len).sum();
    let mut out = vec![0f32; rows * width];
    let mut rest = out.as_mut_slice();
    let mut copies = Vec::new();
    for run in runs {
        let from = &views[run.part][run.start * width..(run.start + run.len) * width];
        let (to, after) = rest.split_at_mut(from.len());
        rest = after;
        copies.extend(to.chunks_mut(1 << 16).zip(from.chunks(1 << 16)));
    }
    copies.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
    tensor(out, (rows, width))
}

/// `table_vh[rows[i]] += values_nh[i]`, in place, in the order of `rows`, so that the sum is reproducible.
pub fn scatter_add(table_vh: &Tensor, rows: &[usize], values_nh: &Tensor) -> Result<()> {
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Accumulate })?)
}

/// `table_vh[rows[i]] = values_nh[i]`, in place.
pub fn scatter(table_vh: &Tensor, rows: &[usize], values_nh: &Tensor) -> Result<()> {
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Overwrite })?)
}

struct Scatter<'a> {
    rows: &'a [usize],
    write: Write,
}

impl InplaceOp2 for Scatter<'_> {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn cpu_fwd(
        &self,
        table: &mut CpuStorage,
        l_table: &Layout,
        values: &CpuStorage,
        l_values: &Layout,
    ) -> candle_core::Result<()> {
        let (v, h) = l_table.shape().dims2()?;
        let (table, values) = (slice_mut(table, l_table)?, slice(values, l_values)?);
        if let Some(row) = self.rows.iter().find(|row| **row >= v) {
            candle_core::bail!("scatter: row {row} of a table with {v} rows");
        }
        for (&row, value) in self.rows.iter().zip(values.chunks_exact(h)) {
            let to = &mut table[row * h..(row + 1) * h];
            match self.write {
                Write::Overwrite => to.copy_from_slice(value),
                Write::Accumulate => to.iter_mut().zip(value).for_each(|(t, v)| *t += v),
            }
        }
        Ok(())
    }
}
