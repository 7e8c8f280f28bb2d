//! What a run writes, added up before anything is loaded.

use super::{Item, Rank, Sum, Target};
use crate::config::choice::LAST;
use crate::config::lora::LoraStages;
use crate::config::optim::{Bf16WeightsConfig, MomentsConfig, OptimConfig};
use crate::config::{Config, Stage};
use crate::model::config::ModelConfig;
use crate::ops::adamw::blockwise::BLOCK;

/// Bytes that lie on the disk at once, at most: as many checkpoints as are kept and the one being written, reference, the
/// best model, the final one. Metrics and samples are not counted.
pub fn needed(model: &ModelConfig, config: &Config, target: Target) -> Vec<Item> {
    let sum = Sum::new(model, config, target.into());
    let (weights, adapter, trained) = (sum.weights(), 4 * sum.adapter(), trained(&sum));
    let checkpoint = checkpoint(&sum);
    let kept = config.checkpoint.kept() as u64;
    let references = config.stages.iter().filter(|stage| match stage {
        Stage::Sft => false,
        Stage::Grpo => config.grpo.kl_coef != 0.0,
        Stage::Enumerate => config.enumerate.kl_coef != 0.0,
    });
    let chosen = config.eval.keep_best != LAST;
    let best = match (chosen, config.lora.is_some()) {
        (false, _) => 0,
        (true, true) => trained,
        (true, false) => weights,
    };
    [
        (
            format!(
                "{} checkpoints ({})",
                kept + 1,
                if config.checkpoint.keep_last < 2 {
                    "two always stay, and the next"
                } else {
                    "checkpoint.keep_last + 1"
                }
            ),
            (kept + 1) * checkpoint,
        ),
        ("references (kl_coef)".into(), references.count() as u64 * trained),
        ("the best so far (eval.keep_best)".into(), best),
        ("the final model".into(), weights + adapter),
    ]
    .into_iter()
    .filter(|(_, bytes)| *bytes > 0)
    .map(|(what, bytes)| Item { what, bytes })
    .collect()
}

/// Bytes of host memory that a copy of a checkpoint takes, or of a rank's part of it, where one is made to be written in the
/// background.
pub fn copied(model: &ModelConfig, config: &Config, rank: impl Into<Rank>) -> u64 {
    let sum = Sum::new(model, config, rank.into());
    let ranks = if sum.sharded() { sum.world.size as u64 } else { 1 };
    if config.checkpoint.background { checkpoint(&sum).div_ceil(ranks) } else { 0 }
}

fn checkpoint(sum: &Sum) -> u64 {
    let within = sum.config.checkpoint.every_steps > 0 || sum.config.checkpoint.every_minutes > 0.0;
    let state = sum.config.optims().map(|(_, optim)| state(sum, optim)).max().unwrap_or(0);
    trained(sum) + if within { state } else { 0 }
}

/// What a checkpoint has of the weights: an adapter, and those merged before it.
fn trained(sum: &Sum) -> u64 {
    let adapter = 4 * sum.adapter();
    match &sum.config.lora {
        None => sum.weights(),
        Some(lora) if lora.stages == LoraStages::Fresh => adapter * sum.config.stages.len() as u64,
        Some(_) => adapter,
    }
}

/// Of the optimiser in a checkpoint within a stage.
fn state(sum: &Sum, optim: &OptimConfig) -> u64 {
    let trained = sum.trained();
    let moments = match optim.moments {
        MomentsConfig::F32 => 8 * trained,
        MomentsConfig::Int8 => 2 * trained + 2 * trained.div_ceil(BLOCK as u64) * 4,
    };
    let masters = sum.is_bf16() && optim.bf16_weights == Bf16WeightsConfig::Masters;
    moments + if masters { 4 * trained } else { 0 }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::plan::shapes;

    fn gib(settings: &[&str]) -> Vec<(String, f64)> {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        let config = Config::load("riskcue-llama3.1-8b", &settings).unwrap();
        let target = Target { cuda: true, dtype: DType::BF16, answers: 0 };
        let items = needed(&shapes::find("llama-3.1-8b").unwrap(), &config, target);
        let gib = |bytes: u64| (bytes as f64 / (1u64 << 30) as f64 * 100.0).round() / 100.0;
        items.into_iter().map(|item| (item.what, gib(item.bytes))).collect()
    }

    #[test]
    fn a_checkpoint_is_weights_and_moments_and_there_is_one_more_than_are_kept() {
        // 14.96 GiB of weights; moments of a byte and a scale for each block of them: 15.19.
        let all = gib(&["checkpoint.keep_last=2", "grpo.kl_coef=0.1"]);
        let bytes: Vec<f64> = all.iter().map(|(_, gib)| *gib).collect();
        assert_eq!(all[0].0, "3 checkpoints (checkpoint.keep_last + 1)");
        assert_eq!(bytes, [90.45, 14.96, 14.96, 14.96]);
        let few = [
            "checkpoint.every_steps=0",
            "checkpoint.every_minutes=0",
            "checkpoint.keep_last=1",
            "eval.keep_best=\"last\"",
        ];
        assert_eq!(gib(&few).iter().map(|(_, gib)| *gib).collect::<Vec<_>>(), [44.87, 14.96]);
    }

    #[test]
    fn an_adapter_is_small_and_its_merged_model_is_not() {
        let all = gib(&["lora.rank=16", "sft.optim.gradients=f32", "grpo.optim.gradients=f32"]);
        let bytes: Vec<f64> = all.iter().map(|(_, gib)| *gib).collect();
        assert!(bytes[0] < 1.0 && (14.9..15.3).contains(bytes.last().unwrap()), "{all:?}");
    }
}
