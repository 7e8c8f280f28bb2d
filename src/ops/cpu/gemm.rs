//! `C (+)= A B` for f32 matrices of any strides: a checked, safe face of the `gemm` crate.

use gemm::Parallelism;
use rayon::prelude::*;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    /// Elements between two rows.
    pub row_stride: usize,
    /// Elements between two columns.
    pub col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows one after the other.
    pub fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// `rows` rows of `cols` contiguous elements, `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Rows `start..end`.
    fn row_band(self, start: usize, end: usize) -> Self {
        Self { data: &self.data[start * self.row_stride..], rows: end - start, ..self }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// Where the product goes: rows `row_stride` apart, columns contiguous.
pub struct MatMut<'a> {
    pub data: &'a mut [f32],
    pub row_stride: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Overwrite,
    Accumulate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread: for products inside a parallel task.
    One,
    /// The current rayon pool.
    Pool,
}

/// `c = a b` or `c += a b`. Sums run over k in an order that depends on the shape only.
///
/// # Panics
/// When the shapes do not agree or a matrix does not fit its slice: a fault of the calling op.
pub fn gemm(a: Mat, b: Mat, c: MatMut, write: Write, threads: Threads) {
    assert_eq!(a.cols, b.rows, "gemm: inner dimensions");
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    assert!((a.rows - 1) * c.row_stride + b.cols <= c.data.len(), "gemm: output too small");
    assert!(c.row_stride >= b.cols || a.rows == 1, "gemm: output rows overlap");
    // SAFETY: the asserts above keep every element of the product inside `c.data`, which is initialised
    // and borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        raw(a, b, c.data.as_mut_ptr(), c.row_stride, write, threads)
    }
}

/// `a b` as a new row-major matrix.
///
/// # Panics
/// As [`gemm()`].
pub fn product(a: Mat, b: Mat, threads: Threads) -> Vec<f32> {
    assert_eq!(a.cols, b.rows, "gemm: inner dimensions");
    let len = a.rows * b.cols;
    if a.cols == 0 {
        return vec![0.0; len];
    }
    let mut c = Vec::with_capacity(len);
    // SAFETY: with `Overwrite` all `len` elements of the product are written and none is read; the buffer's
    // capacity is `len`, so they are inside it and initialised when the length is set. This saves the pass
    // of zeros that `vec![0.0; len]` costs.
    #[allow(unsafe_code)]
    unsafe {
        raw(a, b, c.as_mut_ptr(), b.cols, Write::Overwrite, threads);
        c.set_len(len);
    }
    c
}

/// Where the parts of one product write; each part has rows or columns of its own.
#[derive(Clone, Copy)]
struct Destination {
    c: *mut f32,
    row_stride: usize,
}

// SAFETY: parts that run at the same time write disjoint elements, see `raw`.
#[allow(unsafe_code)]
unsafe impl Send for Destination {}
#[allow(unsafe_code)]
unsafe impl Sync for Destination {}

impl Destination {
    fn at(self, row: usize, column: usize) -> Self {
        Self { c: self.c.wrapping_add(row * self.row_stride + column), row_stride: self.row_stride }
    }
}

/// Up to this many threads each takes one band of the output and computes it alone, which packs the shared
/// operand once a thread and never waits: 1.05 to 1.3 times the crate's own sharing at the shapes of a small
/// decoder on two threads.
const MAX_BANDS: usize = 4;

/// # Safety
/// `c` must be valid for writes (and initialised for `Accumulate`) at `i * row_stride + j` for all rows `i` of
/// `a` and columns `j` of `b`, and must not overlap `a` or `b`.
#[allow(unsafe_code)]
unsafe fn raw(a: Mat, b: Mat, c: *mut f32, row_stride: usize, write: Write, threads: Threads) {
    assert!(a.fits() && b.fits(), "gemm: operand outside its slice");
    let c = Destination { c, row_stride };
    let count = if threads == Threads::Pool { rayon::current_num_threads() } else { 1 };
    let (m, n) = (a.rows, b.cols);
    if count == 1 || m * n * a.cols < 1 << 18 {
        // SAFETY: as the caller vouches.
        return unsafe { single(a, b, c, write, Parallelism::None) };
    }
    if count > MAX_BANDS {
        // SAFETY: as the caller vouches.
        return unsafe { single(a, b, c, write, Parallelism::Rayon(0)) };
    }
    // Bands along the longer side, whole tiles of the crate's kernels; rows where the sides are alike.
    let by_rows = 3 * m >= 2 * n;
    let (len, tile) = if by_rows { (m, 6) } else { (n, 64) };
    let band = len.div_ceil(count).next_multiple_of(tile);
    (0..count).into_par_iter().with_max_len(1).for_each(|i| {
        let (start, end) = ((i * band).min(len), ((i + 1) * band).min(len));
        if start == end {
            return;
        }
        let (a, b, c) = if by_rows {
            (a.row_band(start, end), b, c.at(start, 0))
        } else {
            (a, b.t().row_band(start, end).t(), c.at(0, start))
        };
        // SAFETY: bands are disjoint parts of the output the caller vouches for.
        unsafe { single(a, b, c, write, Parallelism::None) }
    });
}

/// # Safety
/// As `raw`.
#[allow(unsafe_code)]
unsafe fn single(a: Mat, b: Mat, c: Destination, write: Write, parallelism: Parallelism) {
    // SAFETY: `fits` bounded every read; the caller vouches for `c`. Strides are far below isize::MAX.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c.c,
            1,
            c.row_stride as isize,
            write == Write::Accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1f32,
            1f32,
            false,
            false,
            false,
            parallelism,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_by_two() {
        let (a, b) = ([1., 2., 3., 4.], [5., 6., 7., 8.]);
        let (a, b) = (Mat::row_major(&a, 2, 2), Mat::row_major(&b, 2, 2));
        assert_eq!(product(a, b, Threads::One), [19., 22., 43., 50.]);
        assert_eq!(product(a.t(), b, Threads::One), [26., 30., 38., 44.]);
        let mut c = [100f32; 6];
        gemm(a, b, MatMut { data: &mut c, row_stride: 3 }, Write::Accumulate, Threads::One);
        assert_eq!(c, [119., 122., 100., 143., 150., 100.]);
        gemm(a, b, MatMut { data: &mut c, row_stride: 3 }, Write::Overwrite, Threads::Pool);
        assert_eq!(c, [19., 22., 100., 43., 50., 100.]);
    }

    #[test]
    fn bands_give_the_same_bits_as_one_thread() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (m, n, k) in [(131, 70, 40), (20, 301, 70), (7, 65, 900)] {
            let value = |i: usize| ((i * 7919) % 31) as f32 / 8.0 - 2.0;
            let (a, b): (Vec<_>, Vec<_>) = ((0..m * k).map(value).collect(), (0..n * k).map(value).collect());
            let (a, b) = (Mat::row_major(&a, m, k), Mat::row_major(&b, n, k).t());
            let one = product(a, b, Threads::One);
            assert_eq!(pool.install(|| product(a, b, Threads::Pool)), one, "{m} x {n} x {k}");
            let dot: f32 = (0..k).map(|i| a.data[k + i] * b.data[k + i]).sum();
            assert!((one[n + 1] - dot).abs() < 1e-3 * k as f32);
        }
    }

    #[test]
    fn empty_inner_dimension_gives_zeros() {
        assert_eq!(product(Mat::row_major(&[], 2, 0), Mat::row_major(&[], 0, 2), Threads::One), [0.; 4]);
    }

    #[test]
    #[should_panic(expected = "output too small")]
    fn a_short_output_is_refused() {
        let a = [1f32; 4];
        let m = Mat::row_major(&a, 2, 2);
        gemm(m, m, MatMut { data: &mut [0.; 3], row_stride: 2 }, Write::Overwrite, Threads::One);
    }
}
