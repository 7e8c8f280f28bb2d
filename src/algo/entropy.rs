//! What the entropy of the policy decides: which tokens are learned from, and how much it is held up.

use serde::{Deserialize, Serialize};

use crate::config::entropy::AdaptiveEntropyConfig;

/// The coefficient of an entropy bonus that follows the entropy, as TRL has it. He et al., "Skywork Open Reasoner 1", arXiv:2505.22312.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntropyControl {
    coef: f64,
    /// Mean entropy of the tokens of the last update; None before the first.
    last: Option<f64>,
}

impl EntropyControl {
    pub fn new(coef: f64) -> Self {
        Self { coef, last: None }
    }

    pub fn coef(self) -> f64 {
        self.coef
    }

    /// What counts in the next update: nothing where the last one's entropy is not known or was above the target.
    pub fn applied(self, rule: &AdaptiveEntropyConfig) -> f64 {
        if self.last.is_some_and(|last| last <= rule.target) { self.coef } else { 0.0 }
    }

    /// After an update whose tokens had this mean entropy, nats.
    pub fn observe(&mut self, entropy: f64, rule: &AdaptiveEntropyConfig) {
        self.coef = match entropy <= rule.target {
            true => (self.coef + rule.delta).min(rule.max),
            false => (self.coef - rule.delta).max(rule.min),
        };
        self.last = Some(entropy);
    }
}

/// Which tokens a step learns from: those at which the policy hesitates. Wang et al., "Beyond the 80/20 Rule", arXiv:2506.01939.
///
/// The entropy that the share `top` of the highest ones reaches: the quantile `1 - top` of all, between two of them by linear
/// interpolation, in f32, as `torch.quantile` and TRL have it. `top`: above 0, at most 1. None of no tokens.
pub fn top_entropy(entropies: &[f32], top: f64) -> Option<f32> {
    let mut sorted = entropies.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let rank = (1.0 - top) as f32 * last as f32;
    let below = (rank as usize).min(last);
    let (a, b, weight) = (sorted[below], sorted[(below + 1).min(last)], rank - below as f32);
    Some(if weight < 0.5 { a + weight * (b - a) } else { b - (b - a) * (1.0 - weight) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coefficient_follows_the_entropy_within_its_bounds() {
        let rule = AdaptiveEntropyConfig { target: 0.5, delta: 0.1, min: 0.05, max: 0.25 };
        let mut control = EntropyControl::new(0.1);
        assert_eq!(control.applied(&rule), 0.0, "nothing is known yet");
        let mut seen = Vec::new();
        for entropy in [0.4, 0.5, 0.3, 0.6, 0.9, 0.9, 0.1] {
            control.observe(entropy, &rule);
            seen.push((control.coef(), control.applied(&rule)));
        }
        let want =
            [(0.2, 0.2), (0.25, 0.25), (0.25, 0.25), (0.15, 0.0), (0.05, 0.0), (0.05, 0.0), (0.15, 0.15)];
        for ((coef, applied), (a, b)) in seen.into_iter().zip(want) {
            assert!(
                (coef - a).abs() < 1e-12 && (applied - b).abs() < 1e-12,
                "{coef} {applied} is not {a} {b}"
            );
        }
        let kept = serde_json::to_string(&control).unwrap();
        assert_eq!(serde_json::from_str::<EntropyControl>(&kept).unwrap(), control);
    }

    #[test]
    fn by_hand() {
        let five = [0.5, 0.1, 0.4, 0.2, 0.3];
        assert_eq!(top_entropy(&five, 1.0), Some(0.1));
        assert_eq!(top_entropy(&five, 0.5), Some(0.3));
        // Rank 3.2 of 0 to 4: a fifth of the way from 0.4 to 0.5.
        assert!((top_entropy(&five, 0.2).unwrap() - 0.42).abs() < 1e-6);
        assert_eq!(top_entropy(&[2.0], 0.01), Some(2.0));
        assert_eq!(top_entropy(&[], 0.5), None);
    }
}
