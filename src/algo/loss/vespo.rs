//! VESPO, arXiv:2602.10693: `l = -sg[phi(w)] A logp`, averaged over all tokens of the step. `w` is the ratio of the whole
//! completion, the product of its tokens', and `phi(w) = exp(lambda) w^k exp(-lambda w)`, which is 1 at w = 1.

use super::{Family, StepTotals, Term, Token};
use crate::config::loss::VespoConfig;

pub(super) struct Vespo {
    /// Power and rate.
    positive: (f64, f64),
    negative: (f64, f64),
}

/// Bounds of log w, as in TRL.
const MIN_LOG_WEIGHT: f64 = -18.420_680_743_952_367;
const MAX_LOG_WEIGHT: f64 = 20.0;

impl Vespo {
    pub(super) fn new(config: &VespoConfig) -> Self {
        Self {
            positive: (config.k_pos.unwrap_or(2.0).into(), config.lambda_pos.unwrap_or(3.0).into()),
            negative: (config.k_neg.unwrap_or(3.0).into(), config.lambda_neg.unwrap_or(2.0).into()),
        }
    }

    fn phi(&self, token: &Token) -> f64 {
        let (k, lambda) = if token.advantage >= 0.0 { self.positive } else { self.negative };
        let log_weight = token.sequence_log_ratio.clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT);
        (lambda + k * log_weight - lambda * log_weight.exp()).exp()
    }
}

impl Family for Vespo {
    fn term(&self, token: &Token) -> Term {
        let slope = -self.phi(token) * token.advantage;
        Term { loss: slope * token.logp, slope, clipped: None }
    }

    fn is_by_token(&self) -> bool {
        true
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / totals.active_tokens as f64
    }

    fn sequence_weight(&self, token: &Token) -> Option<f64> {
        Some(self.phi(token))
    }
}
