//! Is one way of training better than another? Paired comparisons over seeds and over queries.

use serde::Serialize;
use statrs::distribution::{Binomial, StudentsT};
use statrs::distribution::{ContinuousCDF, DiscreteCDF};

/// A mean difference and its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub mean: f64,
    /// `None` below two pairs, where nothing is known about the spread.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub pairs: usize,
}

/// Mean of `differences` with Student's t interval, which takes them for independent draws of one normal
/// distribution. `None` of nothing.
pub fn t_interval(differences: &[f64]) -> Option<Difference> {
    let pairs = differences.len();
    let mean = mean(differences)?;
    let half = match (deviation(differences), StudentsT::new(0.0, 1.0, pairs as f64 - 1.0)) {
        (Some(deviation), Ok(t)) => Some(t.inverse_cdf(0.975) * deviation / (pairs as f64).sqrt()),
        _ => None,
    };
    Some(Difference { mean, low: half.map(|h| mean - h), high: half.map(|h| mean + h), pairs })
}

/// Two-sided exact sign test: the chance of a split at least this uneven if either sign were as likely. Zeros are
/// left out; 1 when nothing differs. With one answer a query it is McNemar's exact test.
pub fn sign_test(differences: &[f64]) -> f64 {
    let up = differences.iter().filter(|d| **d > 0.0).count() as u64;
    let down = differences.iter().filter(|d| **d < 0.0).count() as u64;
    match Binomial::new(0.5, up + down) {
        Ok(split) if up + down > 0 => (2.0 * split.cdf(up.min(down))).min(1.0),
        _ => 1.0,
    }
}

pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation: divided by n - 1. `None` below two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653 (R: qt(.975, 2)).
    #[test]
    fn three_seeds_give_the_textbook_interval() {
        let got = t_interval(&[1.0, 2.0, 3.0]).unwrap();
        let half = 4.302_653 / 3f64.sqrt();
        assert!((got.mean - 2.0).abs() < 1e-12 && (got.low.unwrap() - (2.0 - half)).abs() < 1e-5);
        assert!((got.high.unwrap() - (2.0 + half)).abs() < 1e-5);
        assert_eq!(t_interval(&[0.5]).unwrap(), Difference { mean: 0.5, low: None, high: None, pairs: 1 });
        assert_eq!(t_interval(&[]), None);
    }

    /// 8 up, 2 down: 2 (1 + 10 + 45) / 1024 = 0.109375.
    #[test]
    fn the_sign_test_counts_splits() {
        let differences = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -0.25, 0.0, 0.0];
        assert!((sign_test(&differences) - 0.109_375).abs() < 1e-12);
        assert_eq!((sign_test(&[0.0]), sign_test(&[])), (1.0, 1.0));
        assert_eq!(sign_test(&[1.0, -1.0]), 1.0);
    }
}
