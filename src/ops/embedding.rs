//! Rows of a matrix by index, and their gradient.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::gemm::Write;
use super::indices::{Indices, once};
use super::{View, cuda, slice, slice_mut, tensor};
use crate::error::{Error, Result};

/// An index outside the table is an error.
pub(super) fn check(rows: &Indices, table_rows: usize) -> Result<()> {
    match rows.outside(table_rows) {
        None => Ok(()),
        Some(row) => Err(Error::input(
            format!("token id {row}"),
            format!("is outside the embedding of {table_rows} rows"),
            "Use the tokenizer that belongs to the model",
        )),
    }
}

/// `table_vh: [V, H]`, `rows`: N indices -> `[N, H]`. An index outside the table is an error.
pub fn gather(table_vh: &Tensor, rows: &Indices) -> Result<Tensor> {
    if cuda::on(table_vh) {
        return cuda::embedding::gather(table_vh, rows);
    }
    let (v, h) = table_vh.dims2()?;
    check(rows, v)?;
    let table = View::new(table_vh)?;
    let mut out = Vec::with_capacity(rows.len() * h);
    for &row in rows.as_slice() {
        let row = row as usize;
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

/// Runs of rows, and the copy of them that a device reads: made once for all tensors they are taken from.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    runs: Vec<RowRun>,
    there: OnceLock<Tensor>,
}

impl Runs {
    pub fn new(runs: Vec<RowRun>) -> Self {
        Self { runs, there: OnceLock::new() }
    }

    /// The number of rows of all runs together.
    pub fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.len).sum()
    }

    /// One above the last row that is read of one of the matrices.
    pub(super) fn end(&self, part: usize) -> usize {
        self.runs.iter().filter(|run| run.part == part).map(|run| run.start + run.len).max().unwrap_or(0)
    }

    /// A number a row, `[rows]` u32 on `device`; of the second matrix with the highest bit set.
    pub(super) fn there(&self, device: &Device) -> Result<&Tensor> {
        once(&self.there, || {
            let row = |run: &RowRun, i: usize| (run.start + i) as u32 | (run.part as u32) << 31;
            let rows: Vec<u32> = self.runs.iter().flat_map(|run| (0..run.len).map(|i| row(run, i))).collect();
            cuda::upload(&rows, device)
        })
    }
}

/// Runs of rows of two matrices of one width and type, one below the other: `[sum of len, W]`.
pub fn gather_runs(parts: [&Tensor; 2], runs: &Runs) -> Result<Tensor> {
    if cuda::on(parts[0]) {
        return cuda::embedding::gather_runs(parts, runs);
    }
    let width = parts[0].dim(1)?;
    let views = [View::new(parts[0])?, View::new(parts[1])?];
    let rows = runs.rows();
    let mut out = vec![0f32; rows * width];
    let mut rest = out.as_mut_slice();
    let mut copies = Vec::new();
    for run in &runs.runs {
        let from = &views[run.part][run.start * width..(run.start + run.len) * width];
        let (to, after) = rest.split_at_mut(from.len());
        rest = after;
        copies.extend(to.chunks_mut(1 << 16).zip(from.chunks(1 << 16)));
    }
    copies.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
    tensor(out, (rows, width))
}

/// `table_vh[rows[i]] += values_nh[i]`, in place, in the order of `rows`, so that the sum is reproducible.
pub fn scatter_add(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    if cuda::on(table_vh) {
        return cuda::embedding::scatter_add(table_vh, rows, values_nh);
    }
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Accumulate })?)
}

/// `table_vh[rows[i]] = values_nh[i]`, in place.
pub fn scatter(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    if cuda::on(table_vh) {
        return cuda::embedding::scatter(table_vh, rows, values_nh);
    }
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Overwrite })?)
}

struct Scatter<'a> {
    rows: &'a Indices,
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
        if let Some(row) = self.rows.outside(v) {
            candle_core::bail!("scatter: row {row} of a table with {v} rows");
        }
        for (&row, value) in self.rows.as_slice().iter().zip(values.chunks_exact(h)) {
            let row = row as usize;
            let to = &mut table[row * h..(row + 1) * h];
            match self.write {
                Write::Overwrite => to.copy_from_slice(value),
                Write::Accumulate => to.iter_mut().zip(value).for_each(|(t, v)| *t += v),
            }
        }
        Ok(())
    }
}
