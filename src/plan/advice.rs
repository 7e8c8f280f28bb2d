//! What to change when a run does not fit.

use super::{Plan, Rank, Target};
use crate::config::optim::{GradientsConfig, MomentsConfig};
use crate::config::{ActivationMemory, Config, Stage, TokenBudget};
use crate::model::config::ModelConfig;

/// A setting, and the peak in bytes with it and those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub setting: String,
    pub peak: u64,
}

/// Settings that bring the peak down to `budget` bytes, the one that helps most first; fewer than are needed when
/// nothing more helps. What a setting costs: docs/plan.md.
pub fn advise(model: &ModelConfig, config: &Config, rank: impl Into<Rank>, budget: u64) -> Vec<Change> {
    let rank = rank.into();
    let mut config = config.clone();
    let mut peak = Plan::new(model, &config, rank).peak();
    let mut changes = Vec::new();
    while peak > budget {
        let options = options(&config, rank.target).into_iter().map(|(setting, config)| {
            let peak = Plan::new(model, &config, rank).peak();
            (Change { setting, peak }, config)
        });
        let Some((change, better)) =
            options.min_by_key(|(change, _)| change.peak).filter(|(c, _)| c.peak < peak)
        else {
            break;
        };
        (peak, config) = (change.peak, better);
        changes.push(change);
    }
    changes
}

/// Every setting that may take less memory, alone.
fn options(config: &Config, target: Target) -> Vec<(String, Config)> {
    let mut found = Vec::new();
    let mut option = |setting: String, change: &dyn Fn(&mut Config)| {
        let mut changed = config.clone();
        change(&mut changed);
        if changed != *config {
            found.push((setting, changed));
        }
    };
    option("pack.activations=recompute".into(), &|c| c.pack.activations = ActivationMemory::Recompute);
    option("pack.max_reused_tokens=0".into(), &|c| c.pack.max_reused_tokens = TokenBudget::Tokens(0));
    let halves = [
        ("pack.max_tokens_per_pack", config.pack.max_tokens_per_pack),
        ("pack.max_rollout_tokens", config.pack.rollout_tokens()),
    ];
    for (key, tokens) in halves {
        let half = tokens / 2;
        // Below this, packs of single rows are the same.
        if half >= 512 {
            option(format!("{key}={half}"), &|c| match key {
                "pack.max_tokens_per_pack" => c.pack.max_tokens_per_pack = half,
                _ => c.pack.max_rollout_tokens = TokenBudget::Tokens(half),
            });
        }
    }
    // All stages at once: the peak is the largest of them.
    let sections = |key: &str, value: &str| {
        let one = |stage: &Stage| format!("{}.optim.{key}={value}", stage.name());
        config.stages.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    option(sections("moments", "int8"), &|c| {
        for stage in c.stages.clone() {
            optim(c, stage).moments = MomentsConfig::Int8;
        }
    });
    // An adapter is f32.
    if target.dtype == candle_core::DType::BF16 && config.lora.is_none() {
        option(sections("gradients", "bf16"), &|c| {
            for stage in c.stages.clone() {
                optim(c, stage).gradients = GradientsConfig::Bf16;
            }
        });
    }
    found
}

pub(super) fn optim(config: &mut Config, stage: Stage) -> &mut crate::config::optim::OptimConfig {
    match stage {
        Stage::Sft => &mut config.sft.optim,
        Stage::Grpo => &mut config.grpo.optim,
        Stage::Enumerate => &mut config.enumerate.optim,
    }
}
