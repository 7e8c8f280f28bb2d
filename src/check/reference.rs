//! What the ops should give: naive loops in f64 that share no code with them.

/// `a[n, k] b[m, k]^T`, `[n, m]`
pub fn times_transposed(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    a.chunks(k).flat_map(|x| b.chunks(k).map(move |y| dot(x, y))).collect()
}

/// `[rows, columns]` to `[columns, rows]`
pub fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
    let rows = a.len() / columns;
    (0..a.len()).map(|i| a[i % rows * columns + i / rows]).collect()
}

/// `a[n, k] b[k, m]`, `[n, m]`
pub fn times(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    times_transposed(a, &transposed(b, b.len() / k), k)
}

pub fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Logarithm of the softmax of a row.
pub fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    row.iter().map(|z| z - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_by_three() {
        let (a, b) = ([1., 2., 3., 4., 5., 6.], [1., 0., 2., 0., 1., 1.]);
        assert_eq!(transposed(&a, 3), [1., 4., 2., 5., 3., 6.]);
        assert_eq!(times_transposed(&a, &b, 3), [7., 5., 16., 11.]);
        assert_eq!(times(&a, &b, 3), [8., 3., 20., 6.]);
        let p = log_softmax(&[0., 3f64.ln()]);
        assert!((p[0] - 0.25f64.ln()).abs() < 1e-15 && (p[1] - 0.75f64.ln()).abs() < 1e-15);
    }
}
