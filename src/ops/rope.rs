//! Rotary position embedding in HF's rotate-half layout, Su et al., arXiv:2104.09864.

use std::sync::OnceLock;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

use super::cuda::rope::DeviceTable;
use super::indices::{Indices, once};
use super::simd::vectorize;
use super::{cuda, slice_mut};
use crate::error::{Error, Result};

/// Cosines and sines by position: the angle of pair `j` at position `p` is `p * inverse_frequency[j]`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    /// `[positions, half]`
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The copy on a device, made by the first rotation there.
    there: OnceLock<DeviceTable>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    /// The transpose: the backward pass, and the inverse of a table that is not scaled.
    Inverse,
}

impl RopeTable {
    /// Angles in f64 from `inverse_frequencies` (`head_dim / 2` of them) for positions `0..positions`.
    pub fn new(inverse_frequencies: &[f64], positions: usize) -> Self {
        let half = inverse_frequencies.len();
        let mut table = Self {
            half,
            cos: Vec::with_capacity(positions * half),
            sin: Vec::with_capacity(positions * half),
            there: OnceLock::new(),
        };
        for position in 0..positions {
            for frequency in inverse_frequencies {
                let angle = position as f64 * frequency;
                table.cos.push(angle.cos() as f32);
                table.sin.push(angle.sin() as f32);
            }
        }
        table
    }

    /// Multiplies sines and cosines, and with them every vector that is rotated, in either direction.
    pub fn scaled_by(mut self, factor: f64) -> Self {
        self.there = OnceLock::new();
        for x in self.cos.iter_mut().chain(&mut self.sin) {
            *x = (f64::from(*x) * factor) as f32;
        }
        self
    }

    /// Number of positions the table covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Rotates every head of `x_nd: [N, heads * head_dim]` in place by its row's position.
    ///
    /// # Errors
    /// When a position is past the table, or shapes do not agree.
    pub fn rotate(&self, x_nd: &Tensor, positions: &Indices, direction: Direction) -> Result<()> {
        if let Some(p) = positions.outside(self.positions()) {
            let problem = format!("rope: position {p} is past the table's {}", self.positions());
            return Err(Error::Compute(problem.into()));
        }
        if cuda::on(x_nd) {
            let device = x_nd.device();
            let table = once(&self.there, || DeviceTable::new(&self.cos, &self.sin, self.half, device))?;
            return table.rotate(x_nd, positions.there(device)?, direction);
        }
        let positions = positions.as_slice();
        Ok(x_nd.inplace_op1(&Rotate { table: self, positions, direction })?)
    }
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
            let start = position as usize * half;
            let (cos, sin) = (&self.table.cos[start..start + half], &self.table.sin[start..start + half]);
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
        });
        Ok(())
    }
}
