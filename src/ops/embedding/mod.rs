//! Rows of a matrix by index, and their gradient.

mod cpu;
mod cuda;

use std::sync::OnceLock;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::ops::cuda::upload;
use crate::ops::indices::{Indices, once};
use crate::trail;

/// An index outside the table is an error.
fn check(rows: &Indices, table_rows: usize) -> Result<()> {
    match rows.outside(table_rows) {
        None => Ok(()),
        Some(row) => Err(Error::input(
            format!("token id {row}"),
            format!("is outside the embedding of {table_rows} rows"),
            "Use the tokenizer that belongs to the model",
        )),
    }
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
    fn end(&self, part: usize) -> usize {
        self.runs.iter().filter(|run| run.part == part).map(|run| run.start + run.len).max().unwrap_or(0)
    }

    /// A number a row, `[rows]` u32 on `device`; of the second matrix with the highest bit set.
    fn there(&self, device: &Device) -> Result<&Tensor> {
        once(&self.there, || {
            let row = |run: &RowRun, i: usize| (run.start + i) as u32 | (run.part as u32) << 31;
            let rows: Vec<u32> = self.runs.iter().flat_map(|run| (0..run.len).map(|i| row(run, i))).collect();
            upload(&rows, device)
        })
    }
}

/// `table_vh: [V, H]`, `rows`: N indices -> `[N, H]`.
///
/// # Errors
/// For an index outside the table, or when the device fails.
pub fn gather(table_vh: &Tensor, rows: &Indices) -> Result<Tensor> {
    trail::begin("embedding");
    if table_vh.device().is_cuda() { cuda::gather(table_vh, rows) } else { cpu::gather(table_vh, rows) }
}

/// Runs of rows of two matrices of one width and type, one below the other: `[sum of len, W]`.
pub fn gather_runs(parts: [&Tensor; 2], runs: &Runs) -> Result<Tensor> {
    trail::begin("embedding");
    if parts[0].device().is_cuda() { cuda::gather_runs(parts, runs) } else { cpu::gather_runs(parts, runs) }
}

/// `table_vh[rows[i]] += values_nh[i]`, in place, in the order of `rows`, so that the sum is reproducible.
pub fn scatter_add(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    trail::begin("embedding backward");
    if table_vh.device().is_cuda() {
        cuda::scatter_add(table_vh, rows, values_nh)
    } else {
        cpu::scatter_add(table_vh, rows, values_nh)
    }
}

/// `table_vh[rows[i]] = values_nh[i]`, in place.
pub fn scatter(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    if table_vh.device().is_cuda() {
        cuda::scatter(table_vh, rows, values_nh)
    } else {
        cpu::scatter(table_vh, rows, values_nh)
    }
}
