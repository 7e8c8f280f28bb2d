//! One pass over one packed batch: forward, log-probs, whatever loss, backward.

use crate::config::ActivationMemory;
use crate::error::Result;
use crate::model::decoder::{Decoder, Forward, Head};
use crate::model::gradients::Gradients;
use crate::ops::sampling::Sampling;
use crate::ops::token_logprob::{Slopes, TokenLogprobs};
use crate::types::PackedBatch;

/// A decoder being trained and where its gradients collect.
#[derive(Clone, Copy)]
pub struct Trainee<'a> {
    pub decoder: &'a Decoder,
    pub gradients: &'a Gradients,
    pub activations: ActivationMemory,
}

/// What a loss returns: derivatives by every target's log-prob and entropy, the latter empty where it has none.
/// Already divided by the whole step's count, so that packs add up.
#[derive(Clone, Debug, Default)]
pub struct LossSlopes {
    pub dlogprobs: Vec<f32>,
    pub dentropies: Vec<f32>,
}

impl From<Vec<f32>> for LossSlopes {
    fn from(dlogprobs: Vec<f32>) -> Self {
        Self { dlogprobs, dentropies: Vec::new() }
    }
}

/// Under which distribution log-probs are taken.
#[derive(Clone, Copy, Debug)]
pub struct Distribution {
    /// Divides the logits.
    pub temperature: f32,
    /// The sampler's cuts, where log-probs are those of what they leave.
    pub cut: Option<Sampling>,
}

impl From<f32> for Distribution {
    fn from(temperature: f32) -> Self {
        Self { temperature, cut: None }
    }
}

impl Trainee<'_> {
    /// Runs `batch` forward, hands the targets' log-probs to `loss`, and runs backward with the derivatives it
    /// returns.
    pub fn pass<S: Into<LossSlopes>>(
        &self,
        batch: &PackedBatch,
        temperature: f32,
        loss: impl FnOnce(&TokenLogprobs) -> Result<S>,
    ) -> Result<()> {
        self.learn(batch, self.forward(batch)?, temperature.into(), loss)
    }

    /// The forward pass of [`Self::pass`].
    pub fn forward(&self, batch: &PackedBatch) -> Result<Forward> {
        self.decoder.forward(batch, self.activations.into())
    }

    /// What follows the forward pass of [`Self::pass`].
    pub fn learn<S: Into<LossSlopes>>(
        &self,
        batch: &PackedBatch,
        forward: Forward,
        under: Distribution,
        loss: impl FnOnce(&TokenLogprobs) -> Result<S>,
    ) -> Result<()> {
        let Distribution { temperature, cut } = under;
        let head = Head { targets: &batch.targets, temperature };
        let logprobs = self.decoder.logprobs_within(&forward.hidden, head, cut.as_ref())?;
        let LossSlopes { dlogprobs, dentropies } = loss(&logprobs)?.into();
        let slopes = Slopes { dlogprobs: &dlogprobs, dentropies: &dentropies, cut: cut.as_ref() };
        self.decoder.backward(batch, forward, temperature, slopes, self.gradients)
    }
}

/// Mean in f64; 0 of nothing.
pub fn mean(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
}
