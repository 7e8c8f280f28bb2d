//! CISPO (MiniMax-M1, arXiv:2506.13585): `l = -sg[min(r, max_ratio)] A logp`, averaged over all tokens of the step.
//! The ratio is a constant to the gradient, and a clipped token keeps its own.

use super::{Family, Side, StepTotals, Term, Token};
use crate::config::loss::CispoConfig;

pub(super) struct Cispo {
    max_ratio: f64,
}

impl Cispo {
    pub(super) fn new(config: &CispoConfig) -> Self {
        Self { max_ratio: config.max_ratio.unwrap_or(5.0) }
    }
}

impl Family for Cispo {
    fn term(&self, token: &Token) -> Term {
        let ratio = token.log_ratio.exp();
        let clipped = (ratio > self.max_ratio && token.advantage > 0.0).then_some(Side::High);
        let slope = -ratio.min(self.max_ratio) * token.advantage;
        Term { loss: slope * token.logp, slope, clipped }
    }

    fn is_by_token(&self) -> bool {
        true
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / totals.active_tokens as f64
    }
}
