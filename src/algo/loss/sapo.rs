//! SAPO, arXiv:2511.20347: `l = -sigmoid(tau (r - 1)) (4 / tau) A`, averaged as grpo. At r = 1 the gradient is that of
//! `-r A` for every tau; it fades smoothly on both sides.

use super::{Family, StepTotals, Term, Token};
use crate::config::loss::SapoConfig;

pub(super) struct Sapo {
    positive: f64,
    negative: f64,
}

impl Sapo {
    pub(super) fn new(config: &SapoConfig) -> Self {
        Self {
            positive: config.temperature_pos.unwrap_or(1.0).into(),
            negative: config.temperature_neg.unwrap_or(1.05).into(),
        }
    }
}

impl Family for Sapo {
    fn term(&self, token: &Token) -> Term {
        if token.advantage == 0.0 {
            return Term::NONE;
        }
        let tau = if token.advantage > 0.0 { self.positive } else { self.negative };
        let ratio = token.log_ratio.exp();
        let gate = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
        // An infinite ratio times a gradient that has long faded.
        let pull = if ratio.is_finite() { ratio * 4.0 * gate * (1.0 - gate) } else { 0.0 };
        Term { loss: -gate * 4.0 / tau * token.advantage, slope: -pull * token.advantage, clipped: None }
    }

    fn weight(&self, tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / (totals.sequences as f64 * tokens as f64)
    }
}
