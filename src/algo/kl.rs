//! How far the policy has moved from the reference model.

use crate::config::loss::KlEstimator;

/// A per-token estimate and its derivative with respect to the policy's log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kl {
    /// Nats. `k1` may be negative at a token, the others never are.
    pub value: f64,
    pub slope: f64,
}

/// Estimate of KL(policy || reference) at one token that was sampled from the policy, with `d = ref_logp - logp`:
/// k1 `-d`, k2 `d^2 / 2`, k3 `exp(d) - d - 1`, abs `|d|`. k1 and k3 are unbiased; abs is a distance of its own.
///
/// As a part of a loss what counts is the expected slope: k2's is the gradient of the KL divergence, k3's that of
/// the reverse divergence, and k1's is zero (Tang and Munos, arXiv:2506.09477). At d = 0 abs has slope 0.
///
/// Schulman, "Approximating KL divergence" (2020); DeepSeekMath, arXiv:2402.03300, equation 4.
pub fn kl(estimator: KlEstimator, logp: f64, ref_logp: f64) -> Kl {
    let d = ref_logp - logp;
    match estimator {
        KlEstimator::K1 => Kl { value: -d, slope: 1.0 },
        KlEstimator::K2 => Kl { value: d * d / 2.0, slope: -d },
        KlEstimator::K3 => {
            // exp(d) - 1 without the cancellation that k3 would suffer near d = 0.
            let exp_minus_one = d.exp_m1();
            Kl { value: exp_minus_one - d, slope: -exp_minus_one }
        }
        KlEstimator::Abs if d == 0.0 => Kl { value: 0.0, slope: 0.0 },
        KlEstimator::Abs => Kl { value: d.abs(), slope: -d.signum() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use KlEstimator::{Abs, K1, K2, K3};

    #[test]
    fn a_token_twice_as_likely_under_the_reference() {
        // d = ln 2.
        let ln2 = std::f64::consts::LN_2;
        for (estimator, value, slope) in [
            (K1, -ln2, 1.0),
            (K2, 0.240_226_506_959_100_7, -ln2),
            (K3, 0.306_852_819_440_054_7, -1.0),
            (Abs, ln2, -1.0),
        ] {
            let got = kl(estimator, -2.0, -2.0 + ln2);
            assert!((got.value - value).abs() < 1e-15, "{estimator:?} {got:?}");
            assert!((got.slope - slope).abs() < 1e-15, "{estimator:?} {got:?}");
        }
    }

    #[test]
    fn equal_models_have_no_distance_and_no_pull() {
        for estimator in [K2, K3, Abs] {
            let Kl { value, slope } = kl(estimator, -1.5, -1.5);
            assert_eq!((value, slope), (0.0, 0.0), "{estimator:?}");
        }
    }

    #[test]
    fn small_distances_are_half_their_square() {
        for estimator in [K2, K3] {
            let value = kl(estimator, 0.0, 1e-6).value;
            assert!((value / 0.5e-12 - 1.0).abs() < 1e-3, "{estimator:?} {value}");
        }
    }

    /// Over a vocabulary the expectation is a sum: values are the divergence, slopes what the note says of them.
    #[test]
    fn expected_values_and_slopes_over_a_vocabulary() {
        let (p, q) = ([0.5f64, 0.3, 0.2], [0.2f64, 0.3, 0.5]);
        let divergence: f64 = (0..3).map(|i| p[i] * (p[i] / q[i]).ln()).sum();
        let expected = |estimator, of: fn(Kl) -> f64| -> f64 {
            (0..3).map(|i| p[i] * of(kl(estimator, p[i].ln(), q[i].ln()))).sum()
        };
        for estimator in [K1, K3] {
            assert!((expected(estimator, |k| k.value) - divergence).abs() < 1e-15, "{estimator:?}");
        }
        // By logit j the gradient of sum_i p_i slope_i log p_i is p_j (slope_j - sum_i p_i slope_i).
        let gradient = |estimator| -> Vec<f64> {
            let slopes: Vec<f64> = (0..3).map(|i| kl(estimator, p[i].ln(), q[i].ln()).slope).collect();
            let mean: f64 = (0..3).map(|i| p[i] * slopes[i]).sum();
            (0..3).map(|j| p[j] * (slopes[j] - mean)).collect()
        };
        for j in 0..3 {
            assert!(gradient(K1)[j].abs() < 1e-15);
            assert!((gradient(K2)[j] - p[j] * ((p[j] / q[j]).ln() - divergence)).abs() < 1e-15);
            assert!((gradient(K3)[j] - (p[j] - q[j])).abs() < 1e-15, "KL(reference || policy)");
        }
    }
}
