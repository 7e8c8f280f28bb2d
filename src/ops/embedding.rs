//! Rows of a matrix by index, and their gradient.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Storage, Tensor, WithDType};
use half::bf16;
use rayon::prelude::*;

use super::indices::{Indices, once};
use super::{cpu_range, cuda, slice};
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
    let (guard, layout) = table_vh.storage_and_layout();
    let range = cpu_range(layout)?;
    match &*guard {
        Storage::Cpu(CpuStorage::F32(table)) => gather_rows(&table[range], h, rows.as_slice()),
        Storage::Cpu(CpuStorage::BF16(table)) => gather_rows(&table[range], h, rows.as_slice()),
        _ => Err(Error::Compute(TYPES.into())),
    }
}

const TYPES: &str = "rows of an embedding on the CPU are f32 or bf16, those of two tables alike";

fn gather_rows<T: WithDType>(table: &[T], h: usize, rows: &[u32]) -> Result<Tensor> {
    let mut out = Vec::with_capacity(rows.len() * h);
    for &row in rows {
        let row = row as usize;
        out.extend_from_slice(&table[row * h..(row + 1) * h]);
    }
    Ok(Tensor::from_vec(out, (rows.len(), h), &Device::Cpu)?)
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
    let [(first, l_first), (second, l_second)] = parts.map(Tensor::storage_and_layout);
    let (a, b) = (cpu_range(l_first)?, cpu_range(l_second)?);
    match (&*first, &*second) {
        (Storage::Cpu(CpuStorage::F32(first)), Storage::Cpu(CpuStorage::F32(second))) => {
            copy_runs([&first[a], &second[b]], width, runs)
        }
        (Storage::Cpu(CpuStorage::BF16(first)), Storage::Cpu(CpuStorage::BF16(second))) => {
            copy_runs([&first[a], &second[b]], width, runs)
        }
        _ => Err(Error::Compute(TYPES.into())),
    }
}

fn copy_runs<T: WithDType>(parts: [&[T]; 2], width: usize, runs: &Runs) -> Result<Tensor> {
    let rows = runs.rows();
    let mut out = vec![T::zero(); rows * width];
    let mut rest = out.as_mut_slice();
    let mut copies = Vec::new();
    for run in &runs.runs {
        let from = &parts[run.part][run.start * width..(run.start + run.len) * width];
        let (to, after) = rest.split_at_mut(from.len());
        rest = after;
        copies.extend(to.chunks_mut(1 << 16).zip(from.chunks(1 << 16)));
    }
    copies.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
    Ok(Tensor::from_vec(out, (rows, width), &Device::Cpu)?)
}

/// `table_vh[rows[i]] += values_nh[i]`, in place, in the order of `rows`, so that the sum is reproducible.
pub fn scatter_add(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    if cuda::on(table_vh) {
        return cuda::embedding::scatter_add(table_vh, rows, values_nh);
    }
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Sum })?)
}

/// `table_vh[rows[i]] = values_nh[i]`, in place.
pub fn scatter(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    if cuda::on(table_vh) {
        return cuda::embedding::scatter(table_vh, rows, values_nh);
    }
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Copy })?)
}

enum Write {
    Copy,
    Sum,
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
        if let Some(row) = self.rows.outside(v) {
            candle_core::bail!("scatter: row {row} of a table with {v} rows");
        }
        let (to, from) = (cpu_range(l_table)?, cpu_range(l_values)?);
        let rows = self.rows.as_slice();
        match (&self.write, table, values) {
            (Write::Copy, CpuStorage::F32(table), CpuStorage::F32(values)) => {
                copy_rows(&mut table[to], rows, values[from].chunks_exact(h));
            }
            (Write::Copy, CpuStorage::BF16(table), CpuStorage::BF16(values)) => {
                copy_rows(&mut table[to], rows, values[from].chunks_exact(h));
            }
            (Write::Sum, CpuStorage::F32(table), values) => {
                let values = slice(values, l_values)?;
                let table = &mut table[to];
                for (&row, value) in rows.iter().zip(values.chunks_exact(h)) {
                    let to = &mut table[row as usize * h..][..h];
                    to.iter_mut().zip(value).for_each(|(t, v)| *t += v);
                }
            }
            (Write::Sum, CpuStorage::BF16(table), values) => {
                let values = slice(values, l_values)?;
                add_rows_rounded(&mut table[to], rows, values.chunks_exact(h));
            }
            _ => candle_core::bail!("{TYPES}"),
        }
        Ok(())
    }
}

fn copy_rows<'v, T: Copy + 'v>(table: &mut [T], rows: &[u32], values: impl Iterator<Item = &'v [T]>) {
    for (&row, value) in rows.iter().zip(values) {
        table[row as usize * value.len()..][..value.len()].copy_from_slice(value);
    }
}

/// Each row of the table is rounded once, however many values it gets.
fn add_rows_rounded<'v>(table: &mut [bf16], rows: &[u32], values: impl Iterator<Item = &'v [f32]>) {
    let mut sums = std::collections::HashMap::new();
    for (&row, value) in rows.iter().zip(values) {
        let h = value.len();
        let sum = sums.entry(row as usize * h).or_insert_with_key(|&start| -> Vec<f32> {
            table[start..start + h].iter().map(|x| x.to_f32()).collect()
        });
        sum.iter_mut().zip(value).for_each(|(sum, v)| *sum += v);
    }
    for (start, sum) in sums {
        let to = table[start..].iter_mut();
        to.zip(sum).for_each(|(to, sum)| *to = bf16::from_f32(sum));
    }
}
