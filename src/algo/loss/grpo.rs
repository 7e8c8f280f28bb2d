//! GRPO, DeepSeekMath, arXiv:2402.03300: the mean over completions of the mean over their tokens.

use super::clipped::Clip;
use super::{Family, StepTotals, Term, Token};

pub(super) struct Grpo(pub(super) Clip);

impl Family for Grpo {
    fn term(&self, token: &Token) -> Term {
        self.0.term(token)
    }

    fn weight(&self, tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / (totals.sequences as f64 * tokens as f64)
    }
}
