//! How far the policy has moved from the reference model.

/// A per-token estimate and its derivative with respect to the policy's log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kl {
    /// Nats; never negative.
    pub value: f64,
    pub slope: f64,
}

/// k3 of KL(policy || reference) at one sampled token: `exp(d) - d - 1` with `d = ref_logp - logp`. Unbiased
/// when the token was sampled from the policy.
///
/// Schulman, "Approximating KL divergence" (2020); DeepSeekMath, arXiv:2402.03300, equation 4.
pub fn k3(logp: f64, ref_logp: f64) -> Kl {
    let d = ref_logp - logp;
    // exp(d) - 1 without the cancellation that k3 would suffer near d = 0.
    let exp_minus_one = d.exp_m1();
    Kl { value: exp_minus_one - d, slope: -exp_minus_one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_twice_as_likely_under_the_reference() {
        // d = ln 2: 2 - ln 2 - 1.
        let kl = k3(-2.0, -2.0 + std::f64::consts::LN_2);
        assert!((kl.value - 0.306_852_819_440_054_7).abs() < 1e-15, "{kl:?}");
        assert!((kl.slope + 1.0).abs() < 1e-15, "{kl:?}");
    }

    #[test]
    fn equal_models_have_no_distance_and_no_pull() {
        assert_eq!(k3(-1.5, -1.5), Kl { value: 0.0, slope: 0.0 });
    }

    #[test]
    fn small_distances_are_half_their_square() {
        let kl = k3(0.0, 1e-6);
        assert!((kl.value / 0.5e-12 - 1.0).abs() < 1e-3, "{kl:?}");
    }
}
