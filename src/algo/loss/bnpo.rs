//! BNPO (TRL's name): the mean over all completion tokens of the batch. TRL takes it over each micro-batch, which
//! makes the gradient depend on the cut; here the batch is the whole optimiser step.

use super::clipped::Clip;
use super::{Family, StepTotals, Term, Token};

pub(super) struct Bnpo(pub(super) Clip);

impl Family for Bnpo {
    fn term(&self, token: &Token) -> Term {
        self.0.term(token)
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / totals.active_tokens as f64
    }
}
