//! Rows of a matrix by index on the CPU.

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Storage, Tensor, WithDType};
use half::bf16;
use rayon::prelude::*;

use super::{Runs, check};
use crate::error::Result;
use crate::ops::cpu::widened::{cpu_range, slice};
use crate::ops::fault::fault;
use crate::ops::indices::Indices;

pub(super) fn gather(table_vh: &Tensor, rows: &Indices) -> Result<Tensor> {
    let (v, h) = table_vh.dims2()?;
    check(rows, v)?;
    let (guard, layout) = table_vh.storage_and_layout();
    let range = cpu_range(layout)?;
    match &*guard {
        Storage::Cpu(CpuStorage::F32(table)) => gather_rows(&table[range], h, rows.as_slice()),
        Storage::Cpu(CpuStorage::BF16(table)) => gather_rows(&table[range], h, rows.as_slice()),
        _ => Err(fault(TYPES)),
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

pub(super) fn gather_runs(parts: [&Tensor; 2], runs: &Runs) -> Result<Tensor> {
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
        _ => Err(fault(TYPES)),
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

pub(super) fn scatter_add(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    Ok(table_vh.inplace_op2(values_nh, &Scatter { rows, write: Write::Sum })?)
}

pub(super) fn scatter(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
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
