//! Memory of a training run, added up from a model's shape and a config before anything is loaded.
//!
//! Worst case: every prompt is as long as `data.max_prompt_tokens`, every completion takes its whole budget.
//! docs/plan.md has what was measured beside it.

mod advice;
mod tokens;

use candle_core::DType;

pub use self::advice::{Change, advise};
use self::tokens::{Packs, TokenBytes};
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, MomentsConfig, OptimConfig};
use crate::config::{ActivationMemory, Config, Stage};
use crate::model::config::ModelConfig;

/// Where a run computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub cuda: bool,
    /// Of weights and activations.
    pub dtype: DType,
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

    pub fn new(model: &ModelConfig, config: &Config, target: Target) -> Self {
        let sum = Sum { model, config, target, bytes: TokenBytes::new(model, target.dtype) };
        let mut phases = vec![sum.load()];
        for stage in &config.stages {
            match stage {
                Stage::Sft => phases.push(sum.sft_update()),
                Stage::Grpo => phases.extend([sum.grpo_rollout(), sum.grpo_update()]),
            }
        }
        phases.extend([sum.evaluation(), sum.save()]);
        Self { parameters: model.parameter_count(), phases }
    }
}

/// Of a file in memory while weights are loaded (`model/shards.rs`).
const LOAD_WINDOW: u64 = 32 << 20;
/// Logits of a chunk of target rows (`ops/token_logprob.rs` and its CUDA twin).
const LOGITS_CPU: u64 = 64 << 20;
const LOGITS_CUDA: u64 = 128 << 20;
/// Program, tokenizer and rows on the CPU; workspace of the products on a device.
const BASE: u64 = 64 << 20;

struct Sum<'a> {
    model: &'a ModelConfig,
    config: &'a Config,
    target: Target,
    bytes: TokenBytes,
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
            &[("weights", self.weights()), ("window of a file", LOAD_WINDOW), ("program", BASE)],
        )
    }

    /// What is there for the whole stage.
    fn standing(&self, name: &str, optim: &OptimConfig) -> Phase {
        let parameters = self.model.parameter_count();
        let moments = match optim.moments {
            MomentsConfig::F32 => 8 * parameters,
            // A byte each, and a scale for 256 of them.
            MomentsConfig::Int8 => 2 * parameters + 2 * parameters.div_ceil(256) * 4,
        };
        let masters = self.is_bf16() && optim.bf16_weights == Bf16WeightsConfig::Masters;
        Phase::new(
            name,
            &[
                ("weights", self.weights()),
                ("moments", moments),
                ("f32 masters", if masters { 4 * parameters } else { 0 }),
                ("program and workspace", BASE),
            ],
        )
    }

    fn grpo_standing(&self, name: &str) -> Phase {
        let kl = self.config.grpo.kl_coef != 0.0;
        let standing = self.standing(name, &self.config.grpo.optim);
        standing.with(&[("reference weights", if kl { self.weights() } else { 0 })])
    }

    fn gradients(&self, optim: &OptimConfig) -> u64 {
        let small = self.is_bf16() && optim.gradients == GradientsConfig::Bf16;
        self.model.parameter_count() * if small { 2 } else { 4 }
    }

    fn kept(&self) -> u64 {
        match self.config.pack.activations {
            ActivationMemory::Recompute => self.bytes.inputs,
            ActivationMemory::Keep => self.bytes.activations,
        }
    }

    /// A backward pass over packs of `rows` tokens, `targets` of them predicted.
    fn backward(&self, phase: Phase, optim: &OptimConfig, kept_rows: u64, packs: &Packs) -> Phase {
        let logits = match self.target.cuda {
            // The chunk's gradient in the weights' type lies beside it.
            true => LOGITS_CUDA + LOGITS_CUDA * self.target.dtype.size_in_bytes() as u64 / 4,
            false => LOGITS_CPU,
        };
        let all_logits = packs.targets * self.model.vocab_size as u64 * 4;
        phase.with(&[
            ("gradients", self.gradients(optim)),
            ("activations kept", kept_rows * self.kept()),
            ("one block and its backward pass", packs.rows * self.bytes.backward),
            ("hidden states", (2 * packs.rows + 4 * packs.targets) * self.bytes.hidden),
            ("logits of a chunk", logits.min(2 * all_logits)),
        ])
    }

    fn sft_update(&self) -> Phase {
        let (data, sft) = (&self.config.data, &self.config.sft);
        let (prompt, answer) = (data.max_prompt_tokens as u64, data.max_target_tokens as u64);
        let pack = &self.config.pack;
        let packs = Packs::new(sft.rows_per_step, prompt + answer, pack.max_tokens_per_pack)
            .of(prompt + answer, answer);
        self.backward(self.standing("sft update", &sft.optim), &sft.optim, packs.rows, &packs)
    }

    fn grpo_packs(&self, most_tokens: usize) -> Packs {
        let (data, grpo) = (&self.config.data, &self.config.grpo);
        let (prompt, group) = (data.max_prompt_tokens as u64, grpo.group_size as u64);
        let budget = grpo.max_completion_tokens as u64;
        // The last token of a completion is no input.
        let rows = prompt + group * budget.saturating_sub(1);
        Packs::new(grpo.prompts_per_step, prompt + group * budget, most_tokens).of(rows, group * budget)
    }

    /// Tokens of the step whose activations the rollout keeps for the update.
    fn taped(&self) -> u64 {
        let grpo = &self.config.grpo;
        let packs = self.grpo_packs(self.config.pack.max_rollout_tokens);
        let (pack, all) = (packs.groups * packs.size, grpo.prompts_per_step as u64 * packs.size);
        (self.config.pack.max_reused_tokens as u64 / pack * pack).min(all)
    }

    fn grpo_rollout(&self) -> Phase {
        let grpo = &self.config.grpo;
        let packs = self.grpo_packs(self.config.pack.max_rollout_tokens);
        let prompts = packs.groups * self.config.data.max_prompt_tokens as u64;
        let phase = self.grpo_standing("grpo rollout");
        self.sampling(phase, prompts, packs.groups * packs.size, packs.groups * grpo.group_size as u64)
            .with(&[("activations kept", self.taped() * self.kept())])
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
        let packs = self.grpo_packs(self.config.pack.max_tokens_per_pack);
        let kept_rows = self.taped().max(packs.rows);
        self.backward(self.grpo_standing("grpo update"), optim, kept_rows, &packs)
    }

    fn evaluation(&self) -> Phase {
        let (data, eval) = (&self.config.data, &self.config.eval);
        let prompt = data.max_prompt_tokens as u64;
        let samples = eval.samples_per_prompt as u64;
        let size = prompt + samples * eval.max_completion_tokens as u64;
        let most_rows = match data.max_valid_rows {
            0 => usize::MAX,
            rows => rows,
        };
        let packs = Packs::new(most_rows, size, self.config.pack.max_rollout_tokens);
        // Within a stage the optimiser is there too.
        let phase = match self.config.stages.last() {
            Some(Stage::Grpo) => self.grpo_standing("evaluation"),
            _ => self.standing("evaluation", &self.config.sft.optim),
        };
        self.sampling(phase, packs.groups * prompt, packs.groups * size, packs.groups * samples)
    }

    /// The model is loaded back from what was written and compared.
    fn save(&self) -> Phase {
        Phase::new(
            "save and compare",
            &[
                ("weights", self.weights()),
                ("weights loaded back", self.weights()),
                ("a tensor on its way to the file", 2 * self.largest_tensor()),
                ("program", BASE),
            ],
        )
    }
}
