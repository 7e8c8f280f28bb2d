//! RoPE on the CPU.

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

use super::{Direction, RopeTable};
use crate::error::Result;
use crate::ops::cpu::simd::vectorize;
use crate::ops::cpu::widened::{View, slice_mut, tensor_as};
use crate::ops::fault::fault;

/// As [`RopeTable::rotate`], with positions that are within the table.
pub(super) fn rotate(
    table: &RopeTable,
    x_nd: &Tensor,
    positions: &[u32],
    direction: Direction,
) -> Result<()> {
    Ok(x_nd.inplace_op1(&Rotate { table, positions, direction })?)
}

struct Rotate<'a> {
    table: &'a RopeTable,
    positions: &'a [u32],
    direction: Direction,
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (n, width) = layout.shape().dims2()?;
        let half = self.table.half;
        if n != self.positions.len() || width % (2 * half) != 0 {
            candle_core::bail!("rope: {n} rows of {width} for {} positions", self.positions.len());
        }
        let sign = if self.direction == Direction::Forward { 1f32 } else { -1f32 };
        let mut x = slice_mut(x, layout)?;
        let rows = x.par_chunks_mut(width).zip(self.positions).with_min_len(16);
        rows.for_each(|(row, &position)| {
            let (cos, sin) = self.table.angles(position);
            turn(row, cos, sin, sign);
        });
        Ok(())
    }
}

/// Every head of a row.
fn turn(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    vectorize!({
        for head in row.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for j in 0..half {
                let (x, y, s) = (a[j], b[j], sin[j] * sign);
                a[j] = x * cos[j] - y * s;
                b[j] = y * cos[j] + x * s;
            }
        }
    });
}

/// As [`RopeTable::split`], with positions that are within the table.
pub(super) fn split(
    table: &RopeTable,
    qkv_nd: &Tensor,
    [query, key]: [usize; 2],
    positions: Option<&[u32]>,
) -> Result<[Tensor; 3]> {
    let ((n, width), qkv) = (qkv_nd.dims2()?, View::new(qkv_nd)?);
    fits(table, width, [query, key], n, positions)?;
    let (mut q, mut k, mut v) = (vec![0f32; n * query], vec![0f32; n * key], vec![0f32; n * key]);
    let apart = q.par_chunks_mut(query).zip(k.par_chunks_mut(key)).zip(v.par_chunks_mut(key));
    apart.zip(qkv.par_chunks(width)).enumerate().with_min_len(16).for_each(|(row, (((q, k), v), qkv))| {
        q.copy_from_slice(&qkv[..query]);
        k.copy_from_slice(&qkv[query..query + key]);
        v.copy_from_slice(&qkv[query + key..]);
        if let Some(positions) = positions {
            let (cos, sin) = table.angles(positions[row]);
            turn(q, cos, sin, 1.0);
            turn(k, cos, sin, 1.0);
        }
    });
    let part = |values, width| tensor_as(values, (n, width), qkv_nd.dtype());
    Ok([part(q, query)?, part(k, key)?, part(v, key)?])
}

/// As [`RopeTable::join`], with positions that are within the table.
pub(super) fn join(table: &RopeTable, [q, k, v]: [&Tensor; 3], positions: Option<&[u32]>) -> Result<Tensor> {
    let ((n, query), key, dtype) = (q.dims2()?, k.dim(1)?, q.dtype());
    let width = query + 2 * key;
    fits(table, width, [query, key], n, positions)?;
    if k.dims() != [n, key] || v.dims() != [n, key] {
        return Err(fault(format!(
            "rope: {:?}, {:?} and {:?} side by side",
            q.shape(),
            k.shape(),
            v.shape()
        )));
    }
    let (q, k, v) = (View::new(q)?, View::new(k)?, View::new(v)?);
    let mut qkv = vec![0f32; n * width];
    let apart = q.par_chunks(query).zip(k.par_chunks(key)).zip(v.par_chunks(key));
    qkv.par_chunks_mut(width).zip(apart).enumerate().with_min_len(16).for_each(
        |(row, (qkv, ((q, k), v)))| {
            qkv[..query].copy_from_slice(q);
            qkv[query..query + key].copy_from_slice(k);
            qkv[query + key..].copy_from_slice(v);
            if let Some(positions) = positions {
                let (cos, sin) = table.angles(positions[row]);
                turn(&mut qkv[..query + key], cos, sin, -1.0);
            }
        },
    );
    tensor_as(qkv, (n, width), dtype)
}

fn fits(
    table: &RopeTable,
    width: usize,
    [query, key]: [usize; 2],
    n: usize,
    positions: Option<&[u32]>,
) -> Result<()> {
    let dim = 2 * table.half;
    let whole = dim > 0 && query > 0 && key > 0 && query.is_multiple_of(dim) && key.is_multiple_of(dim);
    if whole && width == query + 2 * key && positions.is_none_or(|positions| positions.len() == n) {
        return Ok(());
    }
    Err(fault(format!("rope: {n} rows of {width} for queries of {query} and keys of {key}")))
}
