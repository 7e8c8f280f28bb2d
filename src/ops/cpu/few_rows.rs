//! `x W^T` for a few rows of `x`: the products of a decode step.
//!
//! They read every weight for a handful of rows, so memory bandwidth bounds them; a general product would first
//! copy the weights into tiles. Here one broadcast weight meets all rows at once: the rows lie in the lanes.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that share one pass over the weights.
pub const LANES: usize = 16;
/// Weight rows in flight: enough independent sums to hide the latency of a fused multiply-add.
const BLOCK: usize = 8;
/// Past this many rows a general product is faster.
pub const MAX_ROWS: usize = 32;

/// One value of each of 16 rows.
pub type Lanes = [f32; LANES];

/// Rows of a matrix inside a slice, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub count: usize,
    pub stride: usize,
}

/// `x: [n, h]`, `w: [o, h]`, both row-major -> `x w^T`, `[n, o]`. A row's result does not depend on the others.
pub fn product(x: &[f32], [n, h]: [usize; 2], w: &[f32]) -> Vec<f32> {
    let o = w.len() / h;
    let mut y = vec![0f32; n * o];
    let chunk = o.div_ceil(3 * rayon::current_num_threads()).next_multiple_of(BLOCK).clamp(BLOCK, 256);
    for first in (0..n).step_by(LANES) {
        let rows = LANES.min(n - first);
        let columns = columns(x[first * h..(first + rows) * h].chunks_exact(h), h);
        let mut out = vec![[0f32; LANES]; o];
        out.par_chunks_mut(chunk).zip(w.par_chunks(chunk * h)).with_max_len(1).for_each(|(out, w)| {
            let rows = Rows { data: w, count: out.len(), stride: h };
            dot_rows(rows, &columns, out);
        });
        for (lane, y) in y[first * o..(first + rows) * o].chunks_exact_mut(o).enumerate() {
            y.iter_mut().zip(&out).for_each(|(y, lanes)| *y = lanes[lane]);
        }
    }
    y
}

/// Up to 16 rows of `h` elements turned: element k of row j in lane j of column k. Lanes without a row are zero.
pub fn columns<'a>(rows: impl Iterator<Item = &'a [f32]>, h: usize) -> Vec<Lanes> {
    let mut columns = vec![[0f32; LANES]; h];
    for (lane, row) in rows.enumerate() {
        columns.iter_mut().zip(row).for_each(|(column, x)| column[lane] = *x);
    }
    columns
}

/// `out[i] = sum_k w[i][k] columns[k]`, one output a row of `w`.
pub fn dot_rows(w: Rows, columns: &[Lanes], out: &mut [Lanes]) {
    pulp::Arch::new().dispatch(Dispatched(DotRows { w, columns, out }));
}

/// `out[i] += sum_k w[k][i] columns[k]`: the rows of `w`, weighted and summed.
pub fn add_weighted_rows(w: Rows, columns: &[Lanes], out: &mut [Lanes]) {
    pulp::Arch::new().dispatch(Dispatched(AddWeightedRows { w, columns, out }));
}

struct DotRows<'a> {
    w: Rows<'a>,
    columns: &'a [Lanes],
    out: &'a mut [Lanes],
}

struct AddWeightedRows<'a> {
    w: Rows<'a>,
    columns: &'a [Lanes],
    out: &'a mut [Lanes],
}

/// A loop over 16 lanes, written for the number of registers they take.
trait LaneLoop: Sized {
    fn run<S: Simd, const REGISTERS: usize>(self, simd: S);
}

struct Dispatched<L>(L);

impl<L: LaneLoop> WithSimd for Dispatched<L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // 1 register with AVX-512, 2 with AVX2, 4 with SSE and NEON.
        match LANES / S::F32_LANES {
            1 => self.0.run::<S, 1>(simd),
            2 => self.0.run::<S, 2>(simd),
            4 => self.0.run::<S, 4>(simd),
            _ => self.0.run::<S, LANES>(simd),
        }
    }
}

impl LaneLoop for DotRows<'_> {
    #[inline(always)]
    fn run<S: Simd, const REGISTERS: usize>(self, simd: S) {
        let Self { w, columns, out } = self;
        let row = |i: usize| &w.data[i * w.stride..i * w.stride + columns.len()];
        // Row `band` of each of 8 bands: eight streams that run on without a break, which the processor's
        // prefetchers follow; eight neighbouring rows would be eight new streams every block.
        let bands = w.count / BLOCK;
        for band in 0..bands {
            let rows: [&[f32]; BLOCK] = std::array::from_fn(|i| row(i * bands + band));
            for (i, sums) in Self::block::<S, BLOCK, REGISTERS>(simd, rows, columns).iter().enumerate() {
                S::as_mut_simd_f32s(&mut out[i * bands + band]).0.copy_from_slice(sums);
            }
        }
        for (i, out) in out.iter_mut().enumerate().skip(bands * BLOCK) {
            let [sums] = Self::block::<S, 1, REGISTERS>(simd, [row(i)], columns);
            S::as_mut_simd_f32s(out).0.copy_from_slice(&sums);
        }
    }
}

impl DotRows<'_> {
    #[inline(always)]
    fn block<S: Simd, const ROWS: usize, const REGISTERS: usize>(
        simd: S,
        w: [&[f32]; ROWS],
        columns: &[Lanes],
    ) -> [[S::f32s; REGISTERS]; ROWS] {
        let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
        // One length for all, so that the loop checks no bounds.
        let h = columns.len();
        let w: [&[f32]; ROWS] = std::array::from_fn(|i| &w[i][..h]);
        for k in 0..h {
            let (x, _) = S::as_simd_f32s(&columns[k]);
            for i in 0..ROWS {
                let weight = simd.splat_f32s(w[i][k]);
                for r in 0..REGISTERS {
                    sums[i][r] = simd.mul_add_f32s(weight, x[r], sums[i][r]);
                }
            }
        }
        sums
    }
}

impl LaneLoop for AddWeightedRows<'_> {
    #[inline(always)]
    fn run<S: Simd, const REGISTERS: usize>(self, simd: S) {
        let Self { w, columns, out } = self;
        let whole = out.len() / BLOCK * BLOCK;
        let (blocks, rest) = out.split_at_mut(whole);
        for (i, out) in blocks.chunks_exact_mut(BLOCK).enumerate() {
            Self::block::<S, BLOCK, REGISTERS>(simd, w, i * BLOCK, columns, out);
        }
        for (i, out) in rest.chunks_exact_mut(1).enumerate() {
            Self::block::<S, 1, REGISTERS>(simd, w, whole + i, columns, out);
        }
    }
}

impl AddWeightedRows<'_> {
    #[inline(always)]
    fn block<S: Simd, const ROWS: usize, const REGISTERS: usize>(
        simd: S,
        w: Rows,
        at: usize,
        columns: &[Lanes],
        out: &mut [Lanes],
    ) {
        let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
        for (sums, lanes) in sums.iter_mut().zip(&*out) {
            sums.copy_from_slice(S::as_simd_f32s(lanes).0);
        }
        for (k, column) in columns[..w.count].iter().enumerate() {
            let (x, _) = S::as_simd_f32s(column);
            let weights = &w.data[k * w.stride + at..k * w.stride + at + ROWS];
            for i in 0..ROWS {
                let weight = simd.splat_f32s(weights[i]);
                for r in 0..REGISTERS {
                    sums[i][r] = simd.mul_add_f32s(weight, x[r], sums[i][r]);
                }
            }
        }
        for (lanes, sums) in out.iter_mut().zip(&sums) {
            S::as_mut_simd_f32s(lanes).0.copy_from_slice(sums);
        }
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
            let (y, half) = (product(&x, [n, h], &w), product(&x, [n, h], &w[..o / 2 * h]));
            assert!(half.chunks(o / 2).zip(y.chunks(o)).all(|(half, y)| half == &y[..o / 2]));
            for (r, c) in (0..n).flat_map(|r| (0..o).map(move |c| (r, c))) {
                let want: f64 = (0..h).map(|k| f64::from(x[r * h + k]) * f64::from(w[c * h + k])).sum();
                assert!((f64::from(y[r * o + c]) - want).abs() < 1e-4, "{n} {h} {o}: [{r}, {c}]");
            }
        }
    }

    #[test]
    fn weighted_rows_are_added() {
        // Rows [1, 2], [3, 4] (stride 3) with weights 10 and 100 in lane 5, onto 7.
        let rows = Rows { data: &[1., 2., 0., 3., 4.], count: 2, stride: 3 };
        let weights = columns([[0.; 2]; 5].iter().chain(&[[10., 100.]]).map(|row| row.as_slice()), 2);
        let mut out = vec![[7f32; LANES]; 2];
        add_weighted_rows(rows, &weights, &mut out);
        assert_eq!([out[0][5], out[1][5], out[0][4]], [317., 427., 7.]);
    }
}
