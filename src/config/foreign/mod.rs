//! What other trainers call our keys.

mod trl;

/// A key of another trainer.
pub struct Foreign {
    pub of: &'static str,
    /// Its name, or the end of its dotted path.
    pub name: &'static str,
    /// Our keys that decide the same.
    pub ours: &'static [&'static str],
    /// What else is to be known.
    pub remark: &'static str,
}

const TRL: &str = "TRL";
const VERL: &str = "verl";
const UNSLOTH: &str = "Unsloth";

const fn of(
    of: &'static str,
    name: &'static str,
    ours: &'static [&'static str],
    remark: &'static str,
) -> Foreign {
    Foreign { of, name, ours, remark }
}

const RATE: &[&str] = &["sft.optim.learning_rate", "grpo.optim.learning_rate"];
const BATCH: &[&str] = &["sft.rows_per_step", "grpo.prompts_per_step"];
const BATCH_REMARK: &str = "a step is not cut by hand: pack.max_tokens_per_pack bounds its memory";
const LENGTH: &[&str] = &["sft.steps", "grpo.steps"];
const WARMUP: &[&str] = &["sft.optim.warmup_steps", "grpo.optim.warmup_steps"];
const WARMUP_RATIO: &[&str] = &["sft.optim.warmup_ratio", "grpo.optim.warmup_ratio"];
const BETAS: &[&str] = &["sft.optim.betas", "grpo.optim.betas"];
const CLIP: &[&str] = &["sft.optim.max_grad_norm", "grpo.optim.max_grad_norm"];
const SCHEDULE: &[&str] = &["sft.optim.schedule.type", "grpo.optim.schedule.type"];
const LOW_HIGH: &[&str] = &["grpo.loss.epsilon_low", "grpo.loss.epsilon_high"];
const COMPLETION: &[&str] = &["grpo.max_completion_tokens"];

/// verl's trainer file, Unsloth's and PEFT's arguments.
const OTHERS: [Foreign; 47] = [
    of(UNSLOTH, "model_name", &["model.path"], ""),
    of(UNSLOTH, "max_seq_length", &["model.max_positions"], ""),
    of(UNSLOTH, "max_lora_rank", &["lora.rank"], ""),
    of(UNSLOTH, "use_gradient_checkpointing", &["pack.activations"], "true is \"recompute\""),
    of(UNSLOTH, "random_state", &["seed"], ""),
    of("PEFT", "r", &["lora.rank"], ""),
    of("PEFT", "lora_r", &["lora.rank"], ""),
    of("PEFT", "lora_rank", &["lora.rank"], ""),
    of("PEFT", "lora_alpha", &["lora.alpha"], ""),
    of("PEFT", "lora_dropout", &["lora.dropout"], ""),
    of("PEFT", "target_modules", &["lora.targets"], ""),
    of("PEFT", "use_rslora", &["lora.rslora"], ""),
    of(VERL, "rollout.n", &["grpo.group_size"], ""),
    of(VERL, "train_batch_size", &["grpo.prompts_per_step"], ""),
    of(VERL, "max_response_length", COMPLETION, ""),
    of(VERL, "train_files", &["data.train"], "a data file"),
    of(VERL, "val_files", &["data.valid"], "a data file"),
    of(VERL, "kl_loss_coef", &["grpo.kl_coef"], ""),
    of(VERL, "kl_loss_type", &["grpo.kl_estimator"], ""),
    of(VERL, "use_kl_loss", &["grpo.kl_coef"], "0 switches it off"),
    of(VERL, "use_kl_in_reward", &["grpo.kl_in"], "true is \"reward\""),
    of(VERL, "clip_ratio", LOW_HIGH, ""),
    of(VERL, "clip_ratio_low", &["grpo.loss.epsilon_low"], ""),
    of(VERL, "clip_ratio_high", &["grpo.loss.epsilon_high"], ""),
    of(VERL, "clip_ratio_c", &["grpo.loss.delta"], ""),
    of(VERL, "entropy_coeff", &["grpo.entropy_coef"], ""),
    of(VERL, "ppo_epochs", &["grpo.updates_per_rollout"], ""),
    of(VERL, "ppo_mini_batch_size", &["grpo.minibatches"], "how many of them make a step"),
    of(VERL, "ppo_max_token_len_per_gpu", &["pack.max_tokens_per_pack"], ""),
    of(VERL, "loss_agg_mode", &["grpo.loss.type"], ""),
    of(VERL, "norm_adv_by_std_in_grpo", &["grpo.scale_rewards"], "false is \"none\""),
    of(VERL, "adv_estimator", &["grpo.baseline"], "\"rloo\" is \"leave_one_out\""),
    of(VERL, "ppo_micro_batch_size_per_gpu", &["pack.max_tokens_per_pack"], "counted in tokens"),
    of(VERL, "log_prob_micro_batch_size_per_gpu", &["pack.max_tokens_per_pack"], "counted in tokens"),
    of(VERL, "optim.lr", RATE, ""),
    of(VERL, "lr", RATE, ""),
    of(VERL, "lr_warmup_steps", WARMUP, ""),
    of(VERL, "lr_warmup_steps_ratio", WARMUP_RATIO, ""),
    of(VERL, "warmup_style", SCHEDULE, ""),
    of(VERL, "grad_clip", CLIP, ""),
    of(VERL, "clip_grad", CLIP, ""),
    of(VERL, "total_epochs", &["sft.epochs", "grpo.epochs"], ""),
    of(VERL, "total_training_steps", &["grpo.steps"], ""),
    of(VERL, "save_freq", &["checkpoint.every_steps"], ""),
    of(VERL, "test_freq", &["eval.every_steps"], ""),
    of(VERL, "experiment_name", &["run.name"], ""),
    of(VERL, "default_local_dir", &["run.root"], ""),
];

/// Every one; TRL's first.
pub fn all() -> impl Iterator<Item = &'static Foreign> {
    trl::KEYS.iter().chain(&OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn every_heir_is_a_key_and_no_name_is_ours() {
        for Foreign { of, name, ours, remark } in all() {
            assert!(!ours.is_empty() || !remark.is_empty(), "{of}'s {name} says nothing");
            for heir in *ours {
                assert!(keys::all().any(|key| key.path == *heir), "{of}'s {name}: {heir} is no key");
            }
            assert!(keys::all().all(|key| key.path != *name), "{name} is ours");
        }
    }
}
