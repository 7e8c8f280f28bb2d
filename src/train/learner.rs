//! What is trained: a decoder, its gradients and its optimiser.

use crate::config::ActivationMemory;
use crate::config::optim::{GradientsConfig, OptimConfig};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::forward::{Distribution, Forward};
use crate::model::gradients::Gradients;
use crate::ops::memory;
use crate::ops::token_logprob::{Slopes, TokenLogprobs};
use crate::optim::adamw::{AdamW, Bf16Weights};
use crate::types::PackedBatch;

/// The state of a stage's training. Passes add to the gradients, [`Self::step`] spends them.
pub struct Learner {
    decoder: Decoder,
    gradients: Gradients,
    optimizer: AdamW,
    optim: OptimConfig,
    activations: ActivationMemory,
}

/// Derivatives of a loss by every target's log-prob and entropy, the latter empty where it has none. Already divided
/// by the whole step's count, so that packs add up.
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

impl Learner {
    /// With fresh moments. `seed` keys the stochastic rounding of bf16 weights.
    pub fn new(
        decoder: Decoder,
        optim: &OptimConfig,
        activations: ActivationMemory,
        seed: u64,
    ) -> Result<Self> {
        let rounding = Bf16Weights::new(optim.bf16_weights, seed);
        let optimizer = AdamW::with(&decoder, optim.moments, rounding)?;
        Ok(Self::resumed(decoder, optimizer, optim, activations))
    }

    /// With the optimiser of a checkpoint.
    pub fn resumed(
        decoder: Decoder,
        optimizer: AdamW,
        optim: &OptimConfig,
        activations: ActivationMemory,
    ) -> Self {
        let gradients = decoder.zero_gradients_in(match optim.gradients {
            GradientsConfig::F32 => candle_core::DType::F32,
            GradientsConfig::Bf16 => candle_core::DType::BF16,
        });
        Self { decoder, gradients, optimizer, optim: optim.clone(), activations }
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// What passes added since the last step.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Takes [`Self::gradients`] back.
    pub fn clear(&mut self) {
        self.gradients.clear();
    }

    /// The decoder alone: gradients and optimiser give their memory back.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// Runs `batch` forward, hands the targets' log-probs to `loss`, and runs backward with the derivatives it
    /// returns.
    pub fn pass<S: Into<LossSlopes>>(
        &mut self,
        batch: &PackedBatch,
        under: impl Into<Distribution>,
        loss: impl FnOnce(&TokenLogprobs) -> Result<S>,
    ) -> Result<()> {
        let forward = self.forward(batch)?;
        self.backward(forward, under, loss)
    }

    /// The forward pass of [`Self::pass`].
    pub fn forward(&self, batch: &PackedBatch) -> Result<Forward> {
        self.decoder.forward(batch, self.activations.into())
    }

    /// What follows the forward pass of [`Self::pass`].
    pub fn backward<S: Into<LossSlopes>>(
        &mut self,
        forward: Forward,
        under: impl Into<Distribution>,
        loss: impl FnOnce(&TokenLogprobs) -> Result<S>,
    ) -> Result<()> {
        let under = under.into();
        let logprobs = self.decoder.logprobs(&forward, under)?;
        let LossSlopes { dlogprobs, dentropies } = loss(&logprobs)?.into();
        let log_sums = &logprobs.log_sums;
        let slopes = Slopes { dlogprobs: &dlogprobs, dentropies: &dentropies, cut: None, log_sums };
        self.decoder.backward(forward, under, slopes, &mut self.gradients)
    }

    /// One update of the weights from all gradients since the last, which are zero again afterwards. Metrics:
    /// grad_norm, before the clip, and learning_rate.
    ///
    /// # Errors
    /// A gradient that is not finite; the weights are then as before.
    pub fn step(&mut self, learning_rate: f64) -> Result<[(&'static str, f64); 2]> {
        let grad_norm =
            self.optimizer.step(&mut self.decoder, &self.gradients, &self.optim, learning_rate)?;
        memory::synchronize(self.decoder.device())?; // for the clock
        // Now and not at the next update: the rollout before it has use for the memory.
        self.gradients.clear();
        Ok([("grad_norm", grad_norm), ("learning_rate", learning_rate)])
    }
}

/// Mean in f64; 0 of nothing.
pub fn mean(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
}
