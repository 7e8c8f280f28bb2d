//! Truncated importance sampling: what corrects for a sampler whose log-probs are not the trainer's.

/// `min(exp(old_logp - sampler_logp), cap)` of each token; a constant to the gradient.
///
/// Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025).
pub fn truncated_importance(old_logps: &[f64], sampler_logps: &[f32], cap: f64) -> Vec<f64> {
    let ratio = |(old, sampler): (&f64, &f32)| (old - f64::from(*sampler)).exp().min(cap);
    old_logps.iter().zip(sampler_logps).map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_up_to_the_cap() {
        let got = truncated_importance(&[-1.0, -2.0, 0.0], &[-1.0, -1.0, -3.0], 2.0);
        assert_eq!(got, [1.0, (-1.0f64).exp(), 2.0]);
    }

    /// Two tokens, sampled by (3/4, 1/4), trained as (1/2, 1/2): weighted, the sampler's mean is the trainer's.
    #[test]
    fn weighted_means_are_the_trainers() {
        let (sampler, trainer, value) = ([0.75f32, 0.25], [0.5f64, 0.5], [3.0, -1.0]);
        let weights = truncated_importance(&trainer.map(f64::ln), &sampler.map(f32::ln), 10.0);
        let mean: f64 = (0..2).map(|i| f64::from(sampler[i]) * weights[i] * value[i]).sum();
        assert!((mean - 1.0).abs() < 1e-6);
    }
}
