//! Memory of a training run, added up from a model's shape and a config before anything is loaded.
//!
//! Worst case: every prompt is as long as `data.max_prompt_tokens`, every completion takes its whole budget.
//! docs/plan.md has what was measured beside it.

pub mod activations;
mod advice;
pub mod cards;
pub mod cost;
pub mod disk;
pub mod ranks;
pub mod scaling;
pub mod shapes;
pub mod time;
mod tokens;
pub mod work;

use candle_core::DType;

pub use self::advice::{Change, advise};
pub use self::ranks::{Rank, Shard, World};
use self::tokens::{Packs, TokenBytes};
use crate::config::lora::LoraStages;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, MomentsConfig, OptimConfig};
use crate::config::{ActivationMemory, Config, PackConfig, Stage, TokenBudget};
use crate::formats::hf::weights::LOAD_WINDOW;
use crate::model::adapter::Shape;
use crate::model::config::ModelConfig;
use crate::ops::adamw::blockwise::BLOCK;
use crate::ops::attention::cuda::KEPT_BYTES;
use crate::ops::token_logprob::{CPU_CHUNK_BYTES, CUDA_CHUNK_BYTES};

/// What a config does not say of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub cuda: bool,
    /// The type of weights and activations.
    pub dtype: DType,
    /// Answers to a prompt that an `enumerate` stage packs behind it, as many as the task has labels; 0 without one.
    pub answers: usize,
}

/// So many bytes, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub what: String,
    pub bytes: u64,
}

/// Memory that is alive at once, at the worst moment of a part of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    pub name: String,
    pub items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub parameters: u64,
    pub phases: Vec<Phase>,
}

impl Phase {
    fn new(name: &str, items: &[(&str, u64)]) -> Self {
        let items = items.iter().filter(|(_, bytes)| *bytes > 0);
        let items = items.map(|(what, bytes)| Item { what: (*what).into(), bytes: *bytes });
        Self { name: name.into(), items: items.collect() }
    }

    fn with(mut self, items: &[(&str, u64)]) -> Self {
        self.items.extend(Self::new("", items).items);
        self
    }

    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
}

impl Plan {
    /// The largest phase's bytes.
    pub fn peak(&self) -> u64 {
        self.phases.iter().map(Phase::bytes).max().unwrap_or(0)
    }

    /// Of a run on one device, or of the fullest of its ranks.
    pub fn new(model: &ModelConfig, config: &Config, rank: impl Into<Rank>) -> Self {
        let sum = Sum::new(model, config, rank.into());
        let mut phases = vec![sum.load()];
        for stage in &config.stages {
            match stage {
                Stage::Sft => phases.push(sum.sft_update()),
                Stage::Grpo => phases.extend([sum.grpo_rollout(), sum.grpo_update()]),
                Stage::Enumerate => phases.push(sum.enumerate_update()),
            }
        }
        phases.extend([sum.evaluation(), sum.save()]);
        Self { parameters: model.parameter_count(), phases }
    }
}

/// Program, tokenizer and rows on the CPU; workspace of the products on a device.
const BASE: u64 = 64 << 20;

struct Sum<'a> {
    model: &'a ModelConfig,
    config: &'a Config,
    target: Target,
    world: World,
    bytes: TokenBytes,
}

impl<'a> Sum<'a> {
    fn new(model: &'a ModelConfig, config: &'a Config, Rank { target, world }: Rank) -> Self {
        Self { model, config, target, world, bytes: TokenBytes::new(model, target.dtype) }
    }
}

impl Sum<'_> {
    fn weights(&self) -> u64 {
        self.model.parameter_count() * self.target.dtype.size_in_bytes() as u64
    }

    fn is_bf16(&self) -> bool {
        self.target.dtype == DType::BF16
    }

    fn largest_tensor(&self) -> u64 {
        let elements =
            self.model.parameter_names().into_iter().map(|(_, shape)| shape.iter().product::<usize>());
        elements.max().unwrap_or(0) as u64 * self.target.dtype.size_in_bytes() as u64
    }

    fn load(&self) -> Phase {
        Phase::new(
            "load",
            &[("weights", self.weights()), ("window of a file", LOAD_WINDOW as u64), ("program", BASE)],
        )
    }

    /// Numbers of an adapter, which is f32; 0 where all weights are trained.
    fn adapter(&self) -> u64 {
        let Some(lora) = &self.config.lora else { return 0 };
        let tensors = Shape::from(lora).tensors(self.model);
        tensors.into_iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// Numbers that have moments and a gradient.
    fn trained(&self) -> u64 {
        if self.config.lora.is_some() { self.adapter() } else { self.model.parameter_count() }
    }

    /// What is there for the whole stage.
    fn standing(&self, name: &str, optim: &OptimConfig) -> Phase {
        let parameters = self.updated();
        let moments = match optim.moments {
            MomentsConfig::F32 => 8 * parameters,
            // A byte each, and a scale for each block of them.
            MomentsConfig::Int8 => 2 * parameters + 2 * parameters.div_ceil(BLOCK as u64) * 4,
        };
        let masters = self.is_bf16() && optim.bf16_weights == Bf16WeightsConfig::Masters;
        Phase::new(
            name,
            &[
                ("weights", self.weights()),
                ("adapter", 4 * self.adapter()),
                (
                    "adapter as products read it",
                    if self.target.cuda && self.is_bf16() { 2 * self.adapter() } else { 0 },
                ),
                ("moments", moments),
                ("f32 masters", if masters { 4 * parameters } else { 0 }),
                ("program and workspace", BASE),
            ],
        )
    }

    fn grpo_standing(&self, name: &str) -> Phase {
        let grpo = &self.config.grpo;
        self.with_reference(self.standing(name, &grpo.optim), grpo.kl_coef)
    }

    fn enumerate_standing(&self, name: &str) -> Phase {
        let enumerate = &self.config.enumerate;
        self.with_reference(self.standing(name, &enumerate.optim), enumerate.kl_coef)
    }

    fn with_reference(&self, standing: Phase, kl_coef: f64) -> Phase {
        let kl = kl_coef != 0.0;
        let reference = match &self.config.lora {
            None => self.weights(),
            // The weights without the adapter, or with a copy of it.
            Some(_) => 4 * self.adapter(),
        };
        standing.with(&[("reference weights", if kl { reference } else { 0 })])
    }

    /// Bytes of a number of a gradient.
    fn gradient_width(&self, optim: &OptimConfig) -> u64 {
        if self.is_bf16() && optim.gradients == GradientsConfig::Bf16 { 2 } else { 4 }
    }

    /// A layer's input and output in f32, of one token.
    fn widest(&self) -> u64 {
        4 * (self.model.hidden_size + self.model.intermediate_size) as u64
    }

    fn kept(&self) -> u64 {
        match self.config.pack.activations {
            ActivationMemory::Auto | ActivationMemory::Recompute => self.bytes.inputs,
            ActivationMemory::Keep => self.bytes.activations,
        }
    }

    /// One block's backward pass over packs of `rows` tokens, at its widest.
    fn block_backward(&self, packs: &Packs) -> u64 {
        let attention = packs.rows * self.bytes.attention_backward;
        let kept = match self.target.cuda && self.is_bf16() {
            // A number for each pair of rows of a group and each head is more than there is.
            true => {
                let rows = packs.rows / packs.groups.max(1);
                let pairs = packs.groups * rows * rows * self.model.num_attention_heads as u64;
                (2 * pairs).min(KEPT_BYTES as u64)
            }
            false => 0,
        };
        (packs.rows * self.bytes.backward).max(attention + kept)
    }

    /// A backward pass over packs of `rows` tokens, `targets` of them predicted.
    fn backward(&self, phase: Phase, optim: &OptimConfig, kept_rows: u64, packs: &Packs) -> Phase {
        let logits = match self.target.cuda {
            // The chunk's gradient in the weights' type lies beside it.
            true => CUDA_CHUNK_BYTES + CUDA_CHUNK_BYTES * self.target.dtype.size_in_bytes() / 4,
            false => CPU_CHUNK_BYTES,
        } as u64;
        // On a device its products read what is there, and A and B in the weights' type.
        let copies = self.adapter() > 0 && self.is_bf16() && !self.target.cuda;
        let all_logits = packs.targets * self.model.vocab_size as u64 * 4;
        // The head's backward pass is over when the last block's begins.
        let passing = self.block_backward(packs).max(logits.min(2 * all_logits));
        let width = self.gradient_width(optim);
        let sent = self.sent_gradients(width);
        phase.with(&[
            ("gradients", self.kept_gradients() * width),
            (&sent.what, sent.bytes),
            ("activations kept", kept_rows * self.kept()),
            ("backward pass of block or head", passing),
            ("f32 copies for the adapter", if copies { packs.rows * self.widest() } else { 0 }),
            ("hidden states", (2 * packs.rows + 4 * packs.targets) * self.bytes.hidden),
        ])
    }

    fn sft_update(&self) -> Phase {
        let (data, sft) = (&self.config.data, &self.config.sft);
        let (prompt, answer) = (data.max_prompt_tokens as u64, data.max_target_tokens as u64);
        let pack = &self.config.pack;
        let rows = self.world.share(sft.rows_per_step);
        let packs = match sft.distill {
            Some(_) => self.answers_packs(rows),
            None => Packs::new(rows, prompt + answer, pack.max_tokens_per_pack).of(prompt + answer, answer),
        };
        self.backward(self.standing("sft update", &sft.optim), &sft.optim, packs.rows, &packs)
    }

    /// Groups of the rollout: there is room for a whole completion, while its last token is no input.
    fn rollout_packs(&self) -> Packs {
        let (data, grpo) = (&self.config.data, &self.config.grpo);
        let (prompt, group) = (data.max_prompt_tokens as u64, grpo.group_size as u64);
        let budget = grpo.max_completion_tokens as u64;
        let most_tokens = self.config.pack.rollout_tokens();
        let rows = prompt + group * budget.saturating_sub(1);
        Packs::new(self.world.share(grpo.prompts_per_step), prompt + group * budget, most_tokens)
            .of(rows, group * budget)
    }

    /// Groups of the update.
    fn update_packs(&self) -> Packs {
        let (data, grpo) = (&self.config.data, &self.config.grpo);
        let (prompt, group) = (data.max_prompt_tokens as u64, grpo.group_size as u64);
        let budget = grpo.max_completion_tokens as u64;
        let rows = prompt + group * budget.saturating_sub(1);
        Packs::new(self.world.share(grpo.prompts_per_step), rows, self.config.pack.max_tokens_per_pack)
            .of(rows, group * budget)
    }

    /// Tokens of the step whose activations the rollout keeps for the update.
    fn taped(&self) -> u64 {
        let grpo = &self.config.grpo;
        let packs = self.rollout_packs();
        let most = match self.config.pack.max_reused_tokens {
            TokenBudget::Tokens(tokens) => tokens,
            TokenBudget::Auto if self.target.cuda => 0,
            TokenBudget::Auto => PackConfig::REUSED_TOKENS,
        };
        let groups = most as u64 / packs.size;
        groups.min(self.world.share(grpo.prompts_per_step) as u64) * packs.size
    }

    fn grpo_rollout(&self) -> Phase {
        let grpo = &self.config.grpo;
        let packs = self.rollout_packs();
        let prompts = packs.groups * self.config.data.max_prompt_tokens as u64;
        let phase = self.grpo_standing("grpo rollout");
        self.sampling(phase, prompts, packs.groups * packs.size, packs.groups * grpo.group_size as u64).with(
            &[
                ("activations kept", self.taped() * self.kept()),
                ("outputs of the blocks", self.taped_outputs()),
            ],
        )
    }

    /// Hidden states of what is taped, beside the tape.
    fn taped_outputs(&self) -> u64 {
        self.taped() * self.bytes.hidden
    }

    /// Prefill of `prompts` tokens and the decoding of `sequences` completions, `tokens` with their prompts.
    fn sampling(&self, phase: Phase, prompts: u64, tokens: u64, sequences: u64) -> Phase {
        let logits = sequences * self.model.vocab_size as u64 * 4;
        // The prefill's widest layer has gone when the logits of the decode steps come.
        let passing = (prompts * self.bytes.forward).max(logits);
        phase.with(&[
            ("keys and values", tokens * self.bytes.keys_values),
            ("prefill, or logits of a token", passing),
        ])
    }

    fn grpo_update(&self) -> Phase {
        let optim = &self.config.grpo.optim;
        let packs = self.update_packs();
        let kept_rows = self.taped().max(packs.rows);
        let gathered = if self.taped() > 0 { packs.rows * self.bytes.hidden } else { 0 };
        self.backward(self.grpo_standing("grpo update"), optim, kept_rows, &packs).with(&[
            ("a block's rows out of the tape", gathered),
            ("outputs of the blocks", self.taped_outputs()),
        ])
    }

    /// Every answer of each prompt behind it, as long as `data.max_target_tokens` lets it be.
    fn answers_packs(&self, prompts: usize) -> Packs {
        let data = &self.config.data;
        let (prompt, answers) = (data.max_prompt_tokens as u64, self.target.answers as u64);
        let targets = answers * data.max_target_tokens as u64;
        let size = prompt + targets;
        Packs::new(prompts, size, self.config.pack.max_tokens_per_pack)
            .of(size - answers.min(targets), targets)
    }

    fn enumerate_update(&self) -> Phase {
        let enumerate = &self.config.enumerate;
        let packs = self.answers_packs(self.world.share(enumerate.prompts_per_step));
        let standing = self.enumerate_standing("enumerate update");
        self.backward(standing, &enumerate.optim, packs.rows, &packs)
    }

    fn evaluation(&self) -> Phase {
        let (data, eval) = (&self.config.data, &self.config.eval);
        let prompt = data.max_prompt_tokens as u64;
        let samples = eval.samples_per_prompt as u64;
        let size = prompt + samples * eval.max_completion_tokens as u64;
        let most_rows = match data.max_valid_rows {
            0 => usize::MAX,
            rows => self.world.share(rows),
        };
        let packs = Packs::new(most_rows, size, self.config.pack.rollout_tokens());
        // Within a stage the optimiser is there too.
        let phase = match self.config.stages.last() {
            Some(Stage::Grpo) => self.grpo_standing("evaluation"),
            Some(Stage::Enumerate) => self.enumerate_standing("evaluation"),
            _ => self.standing("evaluation", &self.config.sft.optim),
        };
        self.sampling(phase, packs.groups * prompt, packs.groups * size, packs.groups * samples)
    }

    /// What was written is loaded back and compared: the model, or an adapter beside the same weights; beside those that
    /// the run started from where an earlier stage's adapter was merged into them.
    fn save(&self) -> Phase {
        let merged = self.config.stages.len() > 1;
        let (again, file) = match &self.config.lora {
            None => (self.weights(), 2 * self.largest_tensor()),
            Some(lora) if merged && lora.stages == LoraStages::Fresh => (self.weights(), 0),
            Some(_) => (0, 0),
        };
        Phase::new(
            "save and compare",
            &[
                ("weights", self.weights()),
                ("adapter, and loaded back", 8 * self.adapter()),
                ("weights loaded back", again),
                ("a tensor on its way to the file", file),
                ("program", BASE),
            ],
        )
    }
}

#[cfg(test)]
mod tests;
