//! `x W^T` for a few rows of `x`: the products of a decode step.
//!
//! They read every weight for a handful of rows, so memory bandwidth bounds them; a general product would first
//! copy the weights into tiles. Here one broadcast weight meets all rows at once: the rows lie in the lanes.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that share one pass over the weights.
const LANES: usize = 16;
/// Weight rows in flight: enough independent sums to hide the latency of a fused multiply-add.
const BLOCK: usize = 8;
/// Past this many rows a general product is faster.
pub const MAX_ROWS: usize = 32;

type Lanes = [f32; LANES];

/// `x: [n, h]`, `w: [o, h]`, both row-major -> `x w^T`, `[n, o]`. A row's result does not depend on the others.
pub fn product(x: &[f32], w: &[f32], [n, h, o]: [usize; 3]) -> Vec<f32> {
    let mut y = vec![0f32; n * o];
    for first in (0..n).step_by(LANES) {
        let rows = LANES.min(n - first);
        // Column k of x, one row a lane; lanes without a row stay zero.
        let mut columns = vec![[0f32; LANES]; h];
        for (lane, row) in x[first * h..(first + rows) * h].chunks_exact(h).enumerate() {
            columns.iter_mut().zip(row).for_each(|(column, x)| column[lane] = *x);
        }
        let mut out = vec![[0f32; LANES]; o];
        let chunk = o.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(BLOCK).clamp(BLOCK, 256);
        out.par_chunks_mut(chunk).zip(w.par_chunks(chunk * h)).with_max_len(1).for_each(|(out, w)| {
            pulp::Arch::new().dispatch(Chunk { columns: &columns, w, out });
        });
        for (lane, y) in y[first * o..(first + rows) * o].chunks_exact_mut(o).enumerate() {
            y.iter_mut().zip(&out).for_each(|(y, lanes)| *y = lanes[lane]);
        }
    }
    y
}

struct Chunk<'a> {
    columns: &'a [Lanes],
    w: &'a [f32],
    out: &'a mut [Lanes],
}

impl WithSimd for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Registers that hold 16 lanes: 1 with AVX-512, 2 with AVX2, 4 with SSE and NEON.
        match LANES / S::F32_LANES {
            1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, LANES>(simd),
        }
    }
}

impl Chunk<'_> {
    #[inline(always)]
    fn run<S: Simd, const REGISTERS: usize>(self, simd: S) {
        let h = self.columns.len();
        let whole = self.out.len() / BLOCK * BLOCK;
        let (out, rest) = self.out.split_at_mut(whole);
        for (w, out) in self.w.chunks_exact(BLOCK * h).zip(out.chunks_exact_mut(BLOCK)) {
            let rows: [&[f32]; BLOCK] = std::array::from_fn(|i| &w[i * h..(i + 1) * h]);
            sums::<S, BLOCK, REGISTERS>(simd, self.columns, rows, out);
        }
        for (w, out) in self.w[whole * h..].chunks_exact(h).zip(rest.chunks_exact_mut(1)) {
            sums::<S, 1, REGISTERS>(simd, self.columns, [w], out);
        }
    }
}

#[inline(always)]
fn sums<S: Simd, const ROWS: usize, const REGISTERS: usize>(
    simd: S,
    columns: &[Lanes],
    w: [&[f32]; ROWS],
    out: &mut [Lanes],
) {
    let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
    for (k, column) in columns.iter().enumerate() {
        let (x, _) = S::as_simd_f32s(column);
        for i in 0..ROWS {
            let weight = simd.splat_f32s(w[i][k]);
            for r in 0..REGISTERS {
                sums[i][r] = simd.mul_add_f32s(weight, x[r], sums[i][r]);
            }
        }
    }
    for (lanes, sums) in out.iter_mut().zip(&sums) {
        S::as_mut_simd_f32s(lanes).0.copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_f64_sums_at_every_row_count() {
        let value = |i: usize| ((i * 7919) % 61) as f32 / 16.0 - 2.0;
        for (n, h, o) in [(1, 5, 3), (8, 40, 19), (16, 33, 64), (17, 64, 8), (32, 7, 300)] {
            let x: Vec<f32> = (0..n * h).map(value).collect();
            let w: Vec<f32> = (0..o * h).map(|i| value(i + 17)).collect();
            let y = product(&x, &w, [n, h, o]);
            for (r, c) in (0..n).flat_map(|r| (0..o).map(move |c| (r, c))) {
                let want: f64 = (0..h).map(|k| f64::from(x[r * h + k]) * f64::from(w[c * h + k])).sum();
                assert!((f64::from(y[r * o + c]) - want).abs() < 1e-4, "{n} {h} {o}: [{r}, {c}]");
            }
        }
    }
}
