//! What is trained: a decoder, its gradients and its optimiser.

use candle_core::Tensor;

use super::summed::Summed;
use crate::config::ActivationMemory;
use crate::config::optim::{GradientsConfig, OptimConfig};
use crate::config::pack::Shard;
use crate::dist::{Engine, Ranks};
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::forward::{Distribution, Forward};
use crate::model::gradients::Gradients;
use crate::ops::elementwise::sum_squares;
use crate::ops::memory;
use crate::ops::token_logprob::{Slopes, TokenLogprobs};
use crate::optim::adamw::{AdamW, Bf16Weights};
use crate::stop;
use crate::types::PackedBatch;

/// Bytes of gradients, or of weights, that go between ranks at once.
const BUCKET: usize = 64 << 20;

/// The state of a stage's training. Passes add to the gradients, [`Self::step`] spends them.
pub struct Learner {
    decoder: Decoder,
    gradients: Gradients,
    optimizer: AdamW,
    optim: OptimConfig,
    activations: ActivationMemory,
    ranks: Ranks,
    /// `None`: gradients stay whole until they are summed.
    summed: Option<Summed>,
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
        Self::among(Ranks::alone(), decoder, optim, activations, seed)
    }

    /// [`Self::new`] as one of several ranks: with the moments of its share.
    pub fn among(
        ranks: Ranks,
        decoder: Decoder,
        optim: &OptimConfig,
        activations: ActivationMemory,
        seed: u64,
    ) -> Result<Self> {
        let rounding = Bf16Weights::new(optim.bf16_weights, seed);
        let optimizer = AdamW::of_share(&decoder, optim.moments, rounding, ranks.share())?;
        Ok(Self::resumed(ranks, decoder, optimizer, optim, activations))
    }

    /// With the optimiser of a checkpoint, or the rank's share of it.
    pub fn resumed(
        ranks: Ranks,
        decoder: Decoder,
        optimizer: AdamW,
        optim: &OptimConfig,
        activations: ActivationMemory,
    ) -> Self {
        let gradients = decoder.zero_gradients_in(match optim.gradients {
            GradientsConfig::F32 => candle_core::DType::F32,
            GradientsConfig::Bf16 => candle_core::DType::BF16,
        });
        Self { decoder, gradients, optimizer, optim: optim.clone(), activations, ranks, summed: None }
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What its rank holds of the gradients from now on; nothing changes for one that is alone.
    pub fn sharded(mut self, shard: Shard) -> Self {
        let sums = shard == Shard::Zero2 && !self.ranks.is_alone();
        self.summed = sums.then(|| Summed::new(&self.decoder));
        self
    }

    pub fn ranks(&self) -> &Ranks {
        &self.ranks
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
        self.summed.iter_mut().for_each(Summed::clear);
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
        let (Some(summed), Some(engine)) = (&mut self.summed, self.ranks.engine()) else {
            return self.decoder.backward(forward, under, slopes, &mut self.gradients);
        };
        // All are there: from here to the pass's end nobody stops.
        self.ranks.gather(())?;
        let _whole = stop::hold();
        let mut done = |layer, gradients: &mut Gradients| summed.add(engine, layer, gradients);
        self.decoder.backward_by_block(forward, under, slopes, &mut self.gradients, &mut done)?;
        summed.add_rest(engine, &mut self.gradients)
    }

    /// After this rank's `own` passes of an update: those in which only others have something to learn from.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn end_passes(&mut self, own: usize, most: usize) -> Result<()> {
        let (Some(summed), Some(engine)) = (&mut self.summed, self.ranks.engine()) else { return Ok(()) };
        for _ in own..most {
            self.ranks.gather(())?;
            let _whole = stop::hold();
            for layer in (0..summed.layers()).rev() {
                summed.add(engine, layer, &mut self.gradients)?;
            }
            summed.add_rest(engine, &mut self.gradients)?;
        }
        Ok(())
    }

    /// The most passes that any rank makes of an update, where all have to make as many.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn most_passes(&self, own: usize) -> Result<usize> {
        match self.summed {
            Some(_) => Ok(self.ranks.gather(own)?.into_iter().max().unwrap_or(own)),
            None => Ok(own),
        }
    }

    /// One update of the weights from all gradients since the last, which are zero again afterwards. Metrics:
    /// grad_norm, before the clip, and learning_rate.
    ///
    /// # Errors
    /// A gradient that is not finite; the weights are then as before.
    pub fn step(&mut self, learning_rate: f64) -> Result<[(&'static str, f64); 2]> {
        let ranks = self.ranks.clone();
        let grad_norm = match ranks.engine() {
            Some(engine) => self.step_together(engine, learning_rate)?,
            None => self.optimizer.step(&mut self.decoder, &self.gradients, &self.optim, learning_rate)?,
        };
        memory::synchronize(self.decoder.device())?; // for the clock
        // Now and not at the next update: the rollout before it has use for the memory.
        self.gradients.clear();
        Ok([("grad_norm", grad_norm), ("learning_rate", learning_rate)])
    }
}

impl Learner {
    /// [`Self::step`] with the gradients of all ranks: each gets its part of their sum, updates its part of the weights, and gives it to
    /// the others (ZeRO, Rajbhandari et al., arXiv:1910.02054).
    fn step_together(&mut self, engine: &dyn Engine, learning_rate: f64) -> Result<f64> {
        // All are there. Whoever is asked to stop from here on stops after this step: no rank may lack at what follows.
        self.ranks.gather(())?;
        let _whole = stop::hold();
        let parts = match &mut self.summed {
            Some(summed) => summed.take(&self.decoder, self.ranks.share())?,
            None => reduced(engine, &self.gradients)?,
        };
        engine.finish()?;
        self.gradients.clear();
        let some: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
        let squares: f64 = self.ranks.gather(sum_squares(&some)?)?.into_iter().sum();
        let grad_norm = squares.sqrt();
        if !grad_norm.is_finite() {
            return Err(self.not_finite(&parts)?);
        }
        self.optimizer.apply(
            &self.decoder,
            parts.into_iter().map(Ok),
            grad_norm,
            &self.optim,
            learning_rate,
        )?;
        let mut bucket = Vec::new();
        for (_, weight) in self.decoder.trainable() {
            bucket.push(weight.clone());
            if is_full(&bucket) {
                engine.all_gather(&std::mem::take(&mut bucket))?;
            }
        }
        engine.all_gather(&bucket)?;
        engine.finish()?;
        self.decoder.adapter_changed()?;
        Ok(grad_norm)
    }

    /// Names a weight whose gradient is no number on some rank.
    fn not_finite(&self, parts: &[Tensor]) -> Result<Error> {
        let is_finite =
            |part: &Tensor| part.elem_count() == 0 || sum_squares(&[part]).is_ok_and(f64::is_finite);
        let culprit = self.decoder.trainable().zip(parts).find(|(_, part)| !is_finite(part));
        let named = self.ranks.gather(culprit.map(|((name, _), _)| name.to_string()))?;
        let name = named.into_iter().flatten().next().unwrap_or_else(|| "all weights together".into());
        Ok(AdamW::refusal(&name, self.optimizer.updates() + 1))
    }
}

/// This rank's part of the sum of every gradient.
fn reduced(engine: &dyn Engine, gradients: &Gradients) -> Result<Vec<Tensor>> {
    let (mut parts, mut bucket) = (Vec::new(), Vec::new());
    for gradient in gradients.tensors() {
        bucket.push(gradient?);
        if is_full(&bucket) {
            parts.extend(engine.reduce_scatter(&std::mem::take(&mut bucket))?);
        }
    }
    parts.extend(engine.reduce_scatter(&bucket)?);
    Ok(parts)
}

/// Whether the tensors are enough to be sent.
fn is_full(bucket: &[Tensor]) -> bool {
    bucket.iter().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum::<usize>() >= BUCKET
}

/// Mean in f64; 0 of nothing.
pub fn mean(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
}
