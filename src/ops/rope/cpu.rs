//! RoPE on the CPU.

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

use super::{Direction, RopeTable};
use crate::error::Result;
use crate::ops::cpu::simd::vectorize;
use crate::ops::cpu::widened::slice_mut;

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
