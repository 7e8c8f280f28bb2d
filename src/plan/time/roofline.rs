//! The least time that a machine of given rates needs for a step: every op at the longer of its arithmetic and its traffic.

use super::Parts;
use super::traffic::Pack;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, MomentsConfig, OptimConfig};
use crate::config::{ActivationMemory, Config, Stage, TokenBudget};
use crate::error::Result;
use crate::model::adapter::Shape;
use crate::model::config::ModelConfig;
use crate::ops::adamw::blockwise::BLOCK;
use crate::ops::cpu::few_rows;
use crate::ops::token_logprob::{CPU_CHUNK_BYTES, CUDA_CHUNK_BYTES};
use crate::plan::cost::{Cost, GroupShape, Groups, Layer, Rates};
use crate::plan::{Shard, Target, World};

/// A config's steps on one machine, or on the fullest of several ranks. Rows are as long as the config lets them be.
#[derive(Clone, Copy)]
pub struct Roofline<'a> {
    pub model: &'a ModelConfig,
    pub config: &'a Config,
    pub target: Target,
    pub rates: Rates,
    pub world: World,
}

/// Prompts, all alike, and what is behind each.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    count: usize,
    prompt: usize,
    completions: usize,
    new_tokens: usize,
}

impl Rows {
    /// Those of the fullest of so many minibatches.
    pub(super) fn over(self, minibatches: usize) -> Self {
        Self { count: self.count.div_ceil(minibatches), ..self }
    }
}

/// How often an update computes a forward pass.
#[derive(Clone, Copy)]
pub(super) struct Passes {
    pub(super) forward: f64,
    pub(super) backward: f64,
}

impl Roofline<'_> {
    /// What a stage's step goes over, and how often; all groups alive, answers as long as they may be.
    pub(super) fn stage(&self, stage: Stage) -> (Rows, Passes) {
        let (data, grpo, pack) = (&self.config.data, &self.config.grpo, &self.config.pack);
        let prompt = data.max_prompt_tokens;
        match stage {
            Stage::Grpo => {
                let count = self.world.share(grpo.prompts_per_step);
                let (completions, new_tokens) = (grpo.group_size, grpo.max_completion_tokens);
                let rows = Rows { count, prompt, completions, new_tokens };
                let whole = prompt + completions * new_tokens;
                let taped = (pack.reused_tokens() / whole).min(count) as f64 / count as f64;
                let updates = grpo.updates_per_rollout as f64;
                let reference = if grpo.kl_coef != 0.0 { 1.0 } else { 0.0 };
                (rows, Passes { forward: updates - taped + reference, backward: updates })
            }
            Stage::Sft => {
                let count = self.world.share(self.config.sft.rows_per_step);
                let rows = Rows { count, prompt, completions: 1, new_tokens: data.max_target_tokens };
                (rows, Passes { forward: 1.0, backward: 1.0 })
            }
            Stage::Enumerate => {
                let enumerate = &self.config.enumerate;
                let count = self.world.share(enumerate.prompts_per_step);
                let (completions, new_tokens) = (self.target.answers, data.max_target_tokens);
                let forward = if enumerate.kl_coef != 0.0 { 2.0 } else { 1.0 };
                (Rows { count, prompt, completions, new_tokens }, Passes { forward, backward: 1.0 })
            }
        }
    }

    pub(super) fn optim(&self, stage: Stage) -> &OptimConfig {
        match stage {
            Stage::Sft => &self.config.sft.optim,
            Stage::Grpo => &self.config.grpo.optim,
            Stage::Enumerate => &self.config.enumerate.optim,
        }
    }

    /// A step of a stage.
    pub fn step(&self, stage: Stage) -> Result<Parts> {
        let (rows, passes) = self.stage(stage);
        let (grpo, optim) = (&self.config.grpo, self.optim(stage));
        let (rollout, updates) = match stage {
            Stage::Grpo => (self.rollout(rows)?, grpo.updates() as f64),
            Stage::Sft | Stage::Enumerate => (Parts::default(), 1.0),
        };
        let mut update = self.update(rows, passes, optim)?;
        if stage == Stage::Sft && self.config.sft.distill.is_some() {
            // Every answer of each row, in packs of their own.
            update += self.update(Rows { completions: self.target.answers, ..rows }, passes, optim)?;
        }
        Ok(Parts { update, optimizer: updates * self.optimizer(optim), ..rollout })
    }

    /// Seconds of each stage's step on one card, which keeps for the update what all ranks keep.
    ///
    /// # Errors
    /// None that a shape with tokens has.
    pub fn alone(&self, shares: Parts) -> Result<Vec<f64>> {
        let mut config = self.config.clone();
        let kept = config.pack.reused_tokens().saturating_mul(self.world.size);
        config.pack.max_reused_tokens = TokenBudget::Tokens(kept);
        let one = Roofline { config: &config, world: World::ONE, ..*self };
        config.stages.iter().map(|stage| Ok(one.step(*stage)?.over(shares).total())).collect()
    }

    /// A GRPO step.
    pub fn grpo(&self) -> Result<Parts> {
        self.step(Stage::Grpo)
    }

    /// An evaluation of so many rows.
    pub fn evaluation(&self, rows: usize) -> Result<Parts> {
        let (data, eval) = (&self.config.data, &self.config.eval);
        self.rollout(Rows {
            count: self.world.share(rows),
            prompt: data.max_prompt_tokens,
            completions: eval.samples_per_prompt,
            new_tokens: eval.max_completion_tokens,
        })
    }

    fn seconds(&self, cost: Cost) -> f64 {
        cost.seconds(self.rates)
    }

    /// `together` of `rows` in one pack, for ops that see `tokens` of them at once.
    fn shape(&self, rows: Rows, together: usize) -> GroupShape {
        let mut shape = GroupShape {
            config: self.model.clone(),
            prompt: rows.prompt,
            completions: rows.completions,
            new_tokens: rows.new_tokens.max(1),
            groups: Groups { packed: together, sampled: together, all: together },
            rows: 0,
            size: self.target.dtype.size_in_bytes(),
            gradient_size: 4,
            chunk_bytes: if self.target.cuda { CUDA_CHUNK_BYTES } else { CPU_CHUNK_BYTES },
        };
        shape.rows = shape.packed();
        shape
    }

    fn rollout(&self, rows: Rows) -> Result<Parts> {
        let size = rows.prompt + rows.completions * rows.new_tokens;
        let mut parts = Parts::default();
        for (packs, together) in packs(rows.count, size, self.config.pack.rollout_tokens()) {
            parts.prefill += packs * self.prefill(rows, together)?;
            parts.decode += packs * self.decode(rows, together);
        }
        Ok(parts)
    }

    /// All blocks over the prompts, and the head over their last rows.
    fn prefill(&self, rows: Rows, together: usize) -> Result<f64> {
        let shape = self.shape(Rows { completions: 0, new_tokens: 1, ..rows }, together);
        let attention = self.seconds(shape.attention_forward(&shape.layout()?));
        let [.., head] = shape.layers();
        let head = self.product(&shape, Layer { rows: together, ..head });
        Ok(self.blocks(&shape, attention) + head)
    }

    /// All tokens of the completions but the first, which the prefill gives.
    fn decode(&self, rows: Rows, together: usize) -> f64 {
        // Half of the completion is there on average.
        let mut shape = self.shape(Rows { new_tokens: rows.new_tokens.div_ceil(2), ..rows }, together);
        shape.rows = shape.decode_rows();
        let attention = self.seconds(shape.decode_attention());
        let [.., head] = shape.layers();
        let head = self.product(&shape, Layer { rows: shape.rows, ..head });
        let sampling = self.seconds(shape.sampling());
        let step = self.blocks(&shape, attention) + head + sampling;
        rows.new_tokens.saturating_sub(1) as f64 * step + sampling
    }

    /// The forward pass of all blocks; `attention`: seconds of it in one.
    fn blocks(&self, shape: &GroupShape, attention: f64) -> f64 {
        let [inner @ .., _] = shape.layers();
        let linear: f64 = inner.iter().map(|layer| self.product(shape, *layer)).sum();
        let others = 2.0 * self.seconds(shape.rms_norm_forward())
            + self.seconds(shape.rope())
            + self.seconds(shape.swiglu_forward());
        let layers = self.model.num_hidden_layers as f64;
        layers * (linear + attention + others) + self.adapter(shape.rows)
    }

    /// A linear layer forward.
    fn product(&self, shape: &GroupShape, layer: Layer) -> f64 {
        let mut cost = shape.linear(layer);
        if !self.target.cuda && layer.rows <= few_rows::MAX_ROWS {
            let again = layer.rows.div_ceil(few_rows::LANES).saturating_sub(1);
            cost.bytes += (again * shape.size * layer.inputs * layer.outputs) as f64;
        }
        self.seconds(cost)
    }

    /// What an adapter adds to a pass over `rows`.
    fn adapter(&self, rows: usize) -> f64 {
        let Some(lora) = &self.config.lora else { return 0.0 };
        let size = self.target.dtype.size_in_bytes();
        let of_one = |(_, shape): (String, Vec<usize>)| {
            let (outputs, inputs) = (shape[0], shape[1]);
            let flop = (2 * rows * outputs * inputs) as f64;
            let bytes = (size * rows * (inputs + 2 * outputs) + 4 * outputs * inputs) as f64;
            self.seconds(Cost { flop, bytes })
        };
        Shape::from(lora).tensors(self.model).into_iter().map(of_one).sum()
    }

    fn update(&self, rows: Rows, passes: Passes, optim: &OptimConfig) -> Result<f64> {
        let layers = self.model.num_hidden_layers as f64;
        let of_one = |Pack { times, forward, head, block }: Pack| {
            times * (passes.forward * forward + passes.backward * (head + layers * block))
        };
        Ok(self.packs(rows, optim)?.into_iter().map(of_one).sum())
    }

    /// The packs of an update over `rows`.
    pub(super) fn packs(&self, rows: Rows, optim: &OptimConfig) -> Result<Vec<Pack>> {
        let size = rows.prompt + rows.completions * rows.new_tokens.saturating_sub(1);
        let recompute = self.config.pack.activations != ActivationMemory::Keep;
        let all_weights = self.config.lora.is_none();
        let layers = self.model.num_hidden_layers as f64;
        let mut all = Vec::new();
        for (times, together) in packs(rows.count, size, self.config.pack.max_tokens_per_pack) {
            let mut shape = self.shape(rows, together);
            shape.gradient_size = self.gradient_bytes(optim);
            let layout = shape.layout()?;
            let attention = self.seconds(shape.attention_forward(&layout));
            let forward = self.blocks(&shape, attention);
            let [inner @ .., head] = shape.layers();
            // Down projections and what only they read are not computed again.
            let unread = self.seconds(shape.linear(inner[3])) + self.seconds(shape.swiglu_forward());
            let again = forward / layers - unread;
            let of_layer = |layer: &Layer| {
                let weight = if all_weights { shape.linear_backward_weight(*layer) } else { NOTHING };
                self.seconds(shape.linear(*layer)) + self.seconds(weight)
            };
            let backward = inner.iter().map(of_layer).sum::<f64>()
                + self.seconds(shape.attention_backward(&layout))
                + 2.0 * self.seconds(shape.rms_norm_backward())
                + self.seconds(shape.rope())
                + self.seconds(shape.swiglu_backward())
                + 2.0 * self.adapter(shape.rows) / layers;
            let head_weight = if all_weights { NOTHING } else { shape.linear_backward_weight(head) };
            let head_forward = self.seconds(shape.token_logprob_forward());
            let head_backward =
                (self.seconds(shape.token_logprob_backward()) - self.seconds(head_weight)).max(0.0);
            let block = backward + if recompute { again } else { 0.0 };
            all.push(Pack { times, forward, head: head_forward + head_backward, block });
        }
        Ok(all)
    }

    pub(super) fn gradient_bytes(&self, optim: &OptimConfig) -> usize {
        let small = optim.gradients == GradientsConfig::Bf16 && self.target.dtype == candle_core::DType::BF16;
        if small { 2 } else { 4 }
    }

    /// Whether each rank updates a part of the weights.
    pub(super) fn sharded(&self) -> bool {
        self.world.size > 1 && self.world.shard != Shard::None && self.config.lora.is_none()
    }

    /// Numbers that are trained.
    pub(super) fn trained(&self) -> f64 {
        match &self.config.lora {
            None => self.model.parameter_count() as f64,
            Some(lora) => {
                let tensors = Shape::from(lora).tensors(self.model);
                tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() as f64).sum()
            }
        }
    }

    /// The norm of the gradients, and AdamW over all that is trained, or over the rank's part of it.
    fn optimizer(&self, optim: &OptimConfig) -> f64 {
        let bf16 = self.target.dtype == candle_core::DType::BF16 && self.config.lora.is_none();
        let trained = self.trained() / if self.sharded() { self.world.size as f64 } else { 1.0 };
        let moments = match optim.moments {
            MomentsConfig::F32 => 16.0,
            MomentsConfig::Int8 => 4.0 + 16.0 / BLOCK as f64,
        };
        let masters = if bf16 && optim.bf16_weights == Bf16WeightsConfig::Masters { 8.0 } else { 0.0 };
        let weights = if bf16 { 4.0 } else { 8.0 };
        // Gradients are read by the norm and by the update, and given back by neither.
        let gradients = 2.0 * self.gradient_bytes(optim) as f64;
        let bytes = (weights + masters + moments + gradients) * trained;
        self.seconds(Cost { flop: 18.0 * trained, bytes })
    }
}

const NOTHING: Cost = Cost { flop: 0.0, bytes: 0.0 };

/// Packs of as many rows as have room, and one of those that are left: how often, and rows in it.
fn packs(count: usize, size: usize, most: usize) -> impl Iterator<Item = (f64, usize)> {
    let together = (most / size.max(1)).clamp(1, count.max(1));
    [((count / together) as f64, together), (1.0, count % together)].into_iter().filter(|(_, rows)| *rows > 0)
}
