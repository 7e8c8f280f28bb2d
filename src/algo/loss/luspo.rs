//! LUSPO, arXiv:2602.05261: the mean over completions of the sum over their tokens, meant for the sequence ratio.

use super::clipped::Clip;
use super::{Family, StepTotals, Term, Token};

pub(super) struct Luspo(pub(super) Clip);

impl Family for Luspo {
    fn term(&self, token: &Token) -> Term {
        self.0.term(token)
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / totals.sequences as f64
    }
}
