//! What other trainers call our keys.

/// A key of another trainer.
pub(super) struct Foreign {
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

/// TRL 1.x with what its `GRPOConfig` has of transformers' `TrainingArguments`, verl's trainer file, Unsloth's and PEFT's
/// arguments; names that are ours too in some section are found without this list.
pub(super) const FOREIGN: [Foreign; 84] = [
    of(TRL, "num_generations", &["grpo.group_size"], ""),
    of(TRL, "num_generations_eval", &["eval.samples_per_prompt"], ""),
    of(TRL, "max_completion_length", COMPLETION, ""),
    of(TRL, "max_prompt_length", &["data.max_prompt_tokens"], "longer rows are dropped, not cut"),
    of(TRL, "max_length", &["model.max_positions"], ""),
    of(TRL, "beta", &["grpo.kl_coef"], ""),
    of(TRL, "num_iterations", &["grpo.updates_per_rollout"], ""),
    of(TRL, "epsilon", LOW_HIGH, ""),
    of(TRL, "importance_sampling_level", &["grpo.loss.ratio"], ""),
    of(TRL, "loss_type", &["grpo.loss.type"], ""),
    of(TRL, "mask_truncated_completions", &["grpo.truncated"], "true is \"mask\""),
    of(TRL, "multi_objective_aggregation", &["grpo.combine_rewards"], ""),
    of(TRL, "reward_weights", &[], "weights of rewards are the task file's, [extra_rewards]"),
    of(TRL, "reward_funcs", &["task"], "rewards are rules of a task file"),
    of(TRL, "sync_ref_model", &["grpo.reference_sync_steps"], ""),
    of(TRL, "ref_model_sync_steps", &["grpo.reference_sync_steps"], ""),
    of(TRL, "vllm_importance_sampling_cap", &["grpo.importance_cap"], ""),
    of(TRL, "use_vllm", &[], "rollouts have an engine of their own, there is nothing to switch on"),
    of(TRL, "steps_per_generation", &["grpo.updates_per_rollout"], ""),
    of(TRL, "generation_batch_size", &["grpo.prompts_per_step"], "counted in prompts, not completions"),
    of(TRL, "per_device_train_batch_size", BATCH, BATCH_REMARK),
    of(TRL, "gradient_accumulation_steps", BATCH, BATCH_REMARK),
    of(TRL, "per_device_eval_batch_size", &["pack.max_rollout_tokens"], ""),
    of(TRL, "num_train_epochs", &["sft.epochs"], ""),
    of(TRL, "max_steps", LENGTH, ""),
    of(TRL, "lr_scheduler_type", SCHEDULE, ""),
    of(TRL, "lr_scheduler_kwargs", SCHEDULE, ""),
    of(TRL, "adam_beta1", BETAS, "a list of two"),
    of(TRL, "adam_beta2", BETAS, "a list of two"),
    of(TRL, "adam_epsilon", &["sft.optim.eps", "grpo.optim.eps"], ""),
    of(TRL, "optim", &["sft.optim.moments", "grpo.optim.moments"], "adamw_8bit is moments = \"int8\""),
    of(TRL, "bf16", &["model.dtype"], ""),
    of(TRL, "fp16", &["model.dtype"], "nothing trains in f16"),
    of(TRL, "torch_dtype", &["model.dtype"], ""),
    of(TRL, "gradient_checkpointing", &["pack.activations"], "true is \"recompute\""),
    of(TRL, "save_steps", &["checkpoint.every_steps"], ""),
    of(TRL, "save_total_limit", &["checkpoint.keep_last"], ""),
    of(TRL, "eval_steps", &["eval.every_steps"], ""),
    of(TRL, "logging_steps", &[], "every step is written to metrics.jsonl"),
    of(TRL, "log_completions", &[], "samples/ has every judged completion of an evaluation"),
    of(TRL, "output_dir", &["run.root", "run.name"], ""),
    of(TRL, "run_name", &["run.name"], ""),
    of(TRL, "report_to", &["run.tensorboard"], ""),
    of(TRL, "resume_from_checkpoint", &[], "it is a flag: rlvr train --resume RUN_DIR"),
    of(TRL, "model_name_or_path", &["model.path"], ""),
    of(TRL, "train_dataset", &["data.train"], ""),
    of(TRL, "eval_dataset", &["data.valid"], ""),
    of(TRL, "dataset_name", &["data.train"], "a data file"),
    of(TRL, "chat_template_kwargs", &["model.template_args"], ""),
    of(TRL, "chat_template_path", &["model.chat_template"], ""),
    of(TRL, "lora_target_modules", &["lora.targets"], ""),
    of(TRL, "load_in_4bit", &[], "frozen weights stay f32 or bf16"),
    of(TRL, "use_peft", &["lora.rank"], ""),
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
    of(VERL, "ppo_mini_batch_size", &["grpo.prompts_per_step", "grpo.updates_per_rollout"], ""),
    of(VERL, "ppo_max_token_len_per_gpu", &["pack.max_tokens_per_pack"], ""),
    of(VERL, "loss_agg_mode", &["grpo.loss.type"], ""),
    of(VERL, "norm_adv_by_std_in_grpo", &["grpo.scale_rewards"], "false is \"none\""),
];

/// The same of evaluation, optimiser and trainer.
pub(super) const FOREIGN_TRAINER: [Foreign; 19] = [
    of(TRL, "metric_for_best_model", &["eval.keep_best"], ""),
    of(TRL, "load_best_model_at_end", &["eval.keep_best"], ""),
    of(TRL, "early_stopping_patience", &["eval.patience"], ""),
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
    of(VERL, "total_epochs", &["sft.epochs"], "the length of GRPO is grpo.steps"),
    of(VERL, "total_training_steps", &["grpo.steps"], ""),
    of(VERL, "save_freq", &["checkpoint.every_steps"], ""),
    of(VERL, "test_freq", &["eval.every_steps"], ""),
    of(VERL, "experiment_name", &["run.name"], ""),
    of(VERL, "default_local_dir", &["run.root"], ""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn every_heir_is_a_key_and_no_name_is_ours() {
        for Foreign { of, name, ours, remark } in FOREIGN.iter().chain(&FOREIGN_TRAINER) {
            assert!(!ours.is_empty() || !remark.is_empty(), "{of}'s {name} says nothing");
            for heir in *ours {
                assert!(keys::all().any(|key| key.path == *heir), "{of}'s {name}: {heir} is no key");
            }
            assert!(keys::all().all(|key| key.path != *name), "{name} is ours");
        }
    }
}
