//! The least time that a machine of given rates needs for a step: every op at the longer of its arithmetic and its traffic.

use super::Parts;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, MomentsConfig, OptimConfig};
use crate::config::{ActivationMemory, Config};
use crate::error::Result;
use crate::model::adapter::Shape;
use crate::model::config::ModelConfig;
use crate::ops::adamw::blockwise::BLOCK;
use crate::ops::cpu::few_rows;
use crate::ops::token_logprob::{CPU_CHUNK_BYTES, CUDA_CHUNK_BYTES};
use crate::plan::Target;
use crate::plan::cost::{Cost, GroupShape, Groups, Layer, Rates};

/// A config's steps on one machine. Rows are as long as the config lets them be.
#[derive(Clone, Copy)]
pub struct Roofline<'a> {
    pub model: &'a ModelConfig,
    pub config: &'a Config,
    pub target: Target,
    pub rates: Rates,
}

/// Prompts, all alike, and what is behind each.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    prompt: usize,
    completions: usize,
    new_tokens: usize,
}

/// How often an update computes a forward pass.
#[derive(Clone, Copy)]
struct Passes {
    forward: f64,
    backward: f64,
}

impl Roofline<'_> {
    /// A GRPO step, all groups alive.
    pub fn grpo(&self) -> Result<Parts> {
        let (data, grpo, pack) = (&self.config.data, &self.config.grpo, &self.config.pack);
        let rows = Rows {
            count: grpo.prompts_per_step,
            prompt: data.max_prompt_tokens,
            completions: grpo.group_size,
            new_tokens: grpo.max_completion_tokens,
        };
        let whole = rows.prompt + rows.completions * rows.new_tokens;
        let taped = (pack.reused_tokens() / whole).min(rows.count) as f64 / rows.count as f64;
        let updates = grpo.updates_per_rollout as f64;
        let reference = if grpo.kl_coef != 0.0 { 1.0 } else { 0.0 };
        let passes = Passes { forward: updates - taped + reference, backward: updates };
        let rollout = self.rollout(rows)?;
        let update = self.update(rows, passes, &grpo.optim)?;
        let optimizer = grpo.updates() as f64 * self.optimizer(&grpo.optim);
        Ok(Parts { update, optimizer, ..rollout })
    }

    pub fn sft(&self) -> Result<Parts> {
        let (data, sft) = (&self.config.data, &self.config.sft);
        let rows = Rows {
            count: sft.rows_per_step,
            prompt: data.max_prompt_tokens,
            completions: 1,
            new_tokens: data.max_target_tokens,
        };
        let update = self.update(rows, Passes { forward: 1.0, backward: 1.0 }, &sft.optim)?;
        Ok(Parts { update, optimizer: self.optimizer(&sft.optim), ..Parts::default() })
    }

    /// A step of enumeration, every answer as long as `data.max_target_tokens`.
    pub fn enumerate(&self) -> Result<Parts> {
        let (data, enumerate) = (&self.config.data, &self.config.enumerate);
        let rows = Rows {
            count: enumerate.prompts_per_step,
            prompt: data.max_prompt_tokens,
            completions: self.target.answers,
            new_tokens: data.max_target_tokens,
        };
        let forward = if enumerate.kl_coef != 0.0 { 2.0 } else { 1.0 };
        let update = self.update(rows, Passes { forward, backward: 1.0 }, &enumerate.optim)?;
        Ok(Parts { update, optimizer: self.optimizer(&enumerate.optim), ..Parts::default() })
    }

    /// An evaluation of so many rows.
    pub fn evaluation(&self, rows: usize) -> Result<Parts> {
        let (data, eval) = (&self.config.data, &self.config.eval);
        self.rollout(Rows {
            count: rows,
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
        let size = rows.prompt + rows.completions * rows.new_tokens.saturating_sub(1);
        let recompute = self.config.pack.activations != ActivationMemory::Keep;
        let all_weights = self.config.lora.is_none();
        let mut total = 0.0;
        for (packs, together) in packs(rows.count, size, self.config.pack.max_tokens_per_pack) {
            let mut shape = self.shape(rows, together);
            shape.gradient_size = self.gradient_bytes(optim);
            let layout = shape.layout()?;
            let attention = self.seconds(shape.attention_forward(&layout));
            let forward = self.blocks(&shape, attention);
            let [inner @ .., head] = shape.layers();
            // Down projections and what only they read are not computed again.
            let unread = self.seconds(shape.linear(inner[3])) + self.seconds(shape.swiglu_forward());
            let again = forward - self.model.num_hidden_layers as f64 * unread;
            let of_layer = |layer: &Layer| {
                let weight = if all_weights { shape.linear_backward_weight(*layer) } else { NOTHING };
                self.seconds(shape.linear(*layer)) + self.seconds(weight)
            };
            let block = inner.iter().map(of_layer).sum::<f64>()
                + self.seconds(shape.attention_backward(&layout))
                + 2.0 * self.seconds(shape.rms_norm_backward())
                + self.seconds(shape.rope())
                + self.seconds(shape.swiglu_backward());
            let backward = self.model.num_hidden_layers as f64 * block + 2.0 * self.adapter(shape.rows);
            let head_weight = if all_weights { NOTHING } else { shape.linear_backward_weight(head) };
            let head = self.seconds(shape.token_logprob_forward());
            let head_backward =
                (self.seconds(shape.token_logprob_backward()) - self.seconds(head_weight)).max(0.0);
            let recomputed = if recompute { again } else { 0.0 };
            total += packs
                * (passes.forward * forward
                    + passes.backward * (head + recomputed + backward + head_backward));
        }
        Ok(total)
    }

    fn gradient_bytes(&self, optim: &OptimConfig) -> usize {
        let small = optim.gradients == GradientsConfig::Bf16 && self.target.dtype == candle_core::DType::BF16;
        if small { 2 } else { 4 }
    }

    /// The norm of the gradients, and AdamW over all that is trained.
    fn optimizer(&self, optim: &OptimConfig) -> f64 {
        let bf16 = self.target.dtype == candle_core::DType::BF16 && self.config.lora.is_none();
        let trained = match &self.config.lora {
            None => self.model.parameter_count() as f64,
            Some(lora) => {
                let tensors = Shape::from(lora).tensors(self.model);
                tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() as f64).sum()
            }
        };
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
