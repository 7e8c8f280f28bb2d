//! The policy gradient without samples: where the answers form a small closed set, the expected reward is a sum.
//!
//! A prompt's answers have probabilities `p_i = exp(logp_i)`, the sum of their tokens' log-probs; whatever else the
//! policy may write has the rest `p_0 = 1 - sum p_i`, and earns what a malformed answer earns. The probabilities are
//! not made to sum to 1: a normalised objective would not notice a policy that forgets the form of an answer, and
//! would not be the expectation of what sampled GRPO estimates.

/// One prompt.
#[derive(Clone, Copy, Debug)]
pub struct AnswerSet<'a> {
    /// Log-probs of the answers, nats. `[K]`
    pub logps: &'a [f64],
    /// What each earns. `[K]`
    pub rewards: &'a [f64],
    /// What everything else earns.
    pub rest_reward: f64,
    /// Under the reference model. `[K]`
    pub ref_logps: Option<&'a [f64]>,
}

/// What the policy is worth on a prompt, exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// `[K]`
    pub p: Vec<f64>,
    /// Probability of no answer of the set.
    pub rest: f64,
    /// Expected reward and its standard deviation.
    pub reward: f64,
    pub std: f64,
    /// KL(policy || reference) over the answers and the rest; 0 without a reference.
    pub kl: f64,
    /// Log-ratio of each answer to the reference, less the rest's. `[K]`
    log_ratios: Vec<f64>,
    rest_reward: f64,
}

/// The smallest rest that has a logarithm: below it the sum of f32 log-probs is noise.
const LEAST_REST: f64 = 1e-6;

impl Expected {
    pub fn new(set: AnswerSet) -> Self {
        let rest_of = |p: &[f64]| (1.0 - p.iter().sum::<f64>()).max(0.0);
        let exp = |logps: &[f64]| logps.iter().map(|l| l.exp()).collect::<Vec<f64>>();
        let p = exp(set.logps);
        let rest = rest_of(&p);
        let mean = |of: &dyn Fn(f64) -> f64| -> f64 {
            p.iter().zip(set.rewards).map(|(p, r)| p * of(*r)).sum::<f64>() + rest * of(set.rest_reward)
        };
        let reward = mean(&|r| r);
        let std = mean(&|r| (r - reward).powi(2)).sqrt();
        let (mut kl, mut log_ratios) = (0.0, vec![0.0; p.len()]);
        if let Some(ref_logps) = set.ref_logps {
            let rest_ratio = rest.max(LEAST_REST).ln() - rest_of(&exp(ref_logps)).max(LEAST_REST).ln();
            kl = rest * rest_ratio;
            for (i, (logp, ref_logp)) in set.logps.iter().zip(ref_logps).enumerate() {
                kl += p[i] * (logp - ref_logp);
                log_ratios[i] = logp - ref_logp - rest_ratio;
            }
        }
        Self { p, rest, reward, std, kl, log_ratios, rest_reward: set.rest_reward }
    }

    /// Derivative by each answer's log-prob of `-reward / scale + kl_coef * kl`, the scale held fixed:
    /// `-p_i (R_i - R_0) / scale + kl_coef p_i (d_i - d_0)` with `d = logp - ref_logp`. `[K]`
    pub fn dloss_dlogp(&self, rewards: &[f64], scale: f64, kl_coef: f64) -> Vec<f64> {
        let term = |i: usize| (self.rest_reward - rewards[i]) / scale + kl_coef * self.log_ratios[i];
        (0..self.p.len()).map(|i| self.p[i] * term(i)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Half the time right, a quarter wrong, a quarter neither: J = 1/2 - 1/4 * 1 = 0.25.
        let logps = [0.5f64.ln(), 0.25f64.ln()];
        let set = AnswerSet { logps: &logps, rewards: &[1.0, 0.0], rest_reward: -1.0, ref_logps: None };
        let expected = Expected::new(set);
        assert!((expected.reward - 0.25).abs() < 1e-15 && (expected.rest - 0.25).abs() < 1e-15);
        // 1/2 (3/4)^2 + 1/4 (1/4)^2 + 1/4 (5/4)^2 = 11/16
        assert!((expected.std - (11.0f64 / 16.0).sqrt()).abs() < 1e-15);
        let gradient = expected.dloss_dlogp(&[1.0, 0.0], 1.0, 0.0);
        assert!((gradient[0] + 1.0).abs() < 1e-15 && (gradient[1] + 0.25).abs() < 1e-15, "{gradient:?}");
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let rewards = [1.0, 0.3, 0.0];
        let ref_logps = [-1.0, -1.5, -2.5];
        let (scale, kl_coef) = (0.4, 0.2);
        let expected = |logps: &[f64]| {
            let ref_logps = Some(ref_logps.as_slice());
            Expected::new(AnswerSet { logps, rewards: &rewards, rest_reward: -0.2, ref_logps })
        };
        let logps = [-0.9, -1.9, -2.1];
        let gradient = expected(&logps).dloss_dlogp(&rewards, scale, kl_coef);
        for i in 0..3 {
            let at = |shift: f64| {
                let mut moved = logps;
                moved[i] += shift;
                let e = expected(&moved);
                -e.reward / scale + kl_coef * e.kl
            };
            let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((gradient[i] - slope).abs() < 1e-8, "{i}: {} is not {slope}", gradient[i]);
        }
    }

    /// A softmax over the answers alone: by logit j the gradient of the expected reward is p_j (R_j - J).
    #[test]
    fn a_policy_that_knows_only_the_answers() {
        let (logits, rewards) = ([0.3f64, -0.2, 1.1, 0.0], [0.0, 1.0, 0.2, -0.5]);
        let sum: f64 = logits.iter().map(|z| z.exp()).sum();
        let logps = logits.map(|z| z - sum.ln());
        let expected =
            Expected::new(AnswerSet { logps: &logps, rewards: &rewards, rest_reward: 9.0, ref_logps: None });
        let dlogp = expected.dloss_dlogp(&rewards, 1.0, 0.0);
        let total: f64 = dlogp.iter().sum();
        for j in 0..4 {
            // d logp_i / d z_j = (i == j) - p_j
            let got = dlogp[j] - logps[j].exp() * total;
            let want = -logps[j].exp() * (rewards[j] - expected.reward);
            assert!((got - want).abs() < 1e-14, "{got} is not {want}");
        }
    }

    #[test]
    fn the_divergence_counts_the_rest() {
        let (p, q) = ([0.5f64, 0.2], [0.3f64, 0.3]);
        let (logps, ref_logps) = (p.map(f64::ln), q.map(f64::ln));
        let set =
            AnswerSet { logps: &logps, rewards: &[0.0; 2], rest_reward: 0.0, ref_logps: Some(&ref_logps) };
        let want = 0.5 * (0.5f64 / 0.3).ln() + 0.2 * (0.2f64 / 0.3).ln() + 0.3 * (0.3f64 / 0.4).ln();
        assert!((Expected::new(set).kl - want).abs() < 1e-15);
    }
}
