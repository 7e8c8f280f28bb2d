//! The clipped surrogate of PPO (arXiv:1707.06347), which grpo, bnpo, dapo, dr_grpo and luspo share.

use super::{Side, Term, Token};
use crate::config::loss::ClipConfig;

/// `l = -min(min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)`
pub(super) struct Clip {
    low: f64,
    high: f64,
    /// Infinite when there is no bound.
    delta: f64,
}

impl Clip {
    pub(super) fn new(config: &ClipConfig) -> Self {
        Self {
            low: 1.0 - config.epsilon_low(),
            high: 1.0 + config.epsilon_high(),
            delta: config.delta.unwrap_or(f64::INFINITY),
        }
    }

    pub(super) fn term(&self, token: &Token) -> Term {
        let advantage = token.advantage;
        // Also keeps 0 * infinity out when the ratio overflows.
        if advantage == 0.0 {
            return Term::NONE;
        }
        let ratio = token.log_ratio.exp();
        let open = ratio.min(self.delta) * advantage;
        let clipped = ratio.clamp(self.low, self.high) * advantage;
        // Where the clip binds, or delta does, the loss no longer depends on the ratio.
        let slope = if clipped < open || ratio > self.delta { 0.0 } else { -advantage * ratio };
        let side = if ratio < self.low && advantage < 0.0 {
            Some(Side::Low)
        } else if ratio > self.high && advantage > 0.0 {
            Some(Side::High)
        } else {
            None
        };
        Term { loss: -open.min(clipped), slope, clipped: side }
    }
}
