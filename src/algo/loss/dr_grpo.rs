//! Dr. GRPO, arXiv:2503.20783: the sum over tokens, divided by completions times the completion budget.

use super::clipped::Clip;
use super::{Family, StepTotals, Term, Token};

pub(super) struct DrGrpo(pub(super) Clip);

impl Family for DrGrpo {
    fn term(&self, token: &Token) -> Term {
        self.0.term(token)
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / (totals.sequences as f64 * totals.max_completion_tokens as f64)
    }
}
