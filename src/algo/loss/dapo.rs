//! DAPO, arXiv:2503.14476, equation 8: the mean over all completion tokens of the optimiser step.

use super::clipped::Clip;
use super::{Family, StepTotals, Term, Token};

pub(super) struct Dapo(pub(super) Clip);

impl Family for Dapo {
    fn term(&self, token: &Token) -> Term {
        self.0.term(token)
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / totals.active_tokens as f64
    }
}
