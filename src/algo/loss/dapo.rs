//! DAPO, arXiv:2503.14476, equation 8: the mean over all completion tokens of the optimiser step.

use super::clipped::Clip;
use super::{Family, StepTotals, Term};

pub(super) struct Dapo(pub(super) Clip);

impl Family for Dapo {
    fn term(&self, log_ratio: f64, advantage: f64) -> Term {
        self.0.term(log_ratio, advantage)
    }

    fn weight(&self, _tokens: usize, totals: &StepTotals) -> f64 {
        1.0 / totals.active_tokens as f64
    }
}
