//! docs/from-trl.md: every key of TRL's configs and what stands for it here. `RLVR_UPDATE=1 cargo test --release --test suite reference` writes
//! it, too.

use std::fmt::Write as _;

use rlvr::config::{foreign, keys};
use serde_json::Value;

use crate::support::golden::golden_dir;
use crate::support::made::hold;

const HEAD: &str = "# From TRL

What stands for each key of TRL VERSION's `GRPOConfig` and `SFTConfig`, and why nothing does where nothing does. Made from the source; a test holds it
current. `rlvr train` says the same where a config has one of these keys.

    rlvr init ROWS                                          # a task file and a config
    rlvr train CONFIG --set model.path=M --set grpo.group_size=8 --set grpo.optim.learning_rate=1e-6

- **Reward functions** are rules of a task file ([tasks.md](tasks.md)); Python ones run beside them through ten lines, one completion at a time ([rewards.md](rewards.md#a-reward-function-written-for-trl)).
- **A step** is `grpo.prompts_per_step` prompts with `grpo.group_size` completions each, in `grpo.minibatches` optimiser steps
  (1), `grpo.updates_per_rollout` times (1): per_device_train_batch_size and gradient_accumulation_steps do not multiply into it. Memory is bounded apart, in
  tokens (`pack.*`), and what it is does not change the result.
- **Warm-up**: step s of W takes (s + 1) / (W + 1) of the peak, so that the first step is not one of rate 0; transformers takes s / W. After it the
  schedules are transformers' (`tests/golden/schedules.json`).
- **A model to start from SFT** is not another run: `stages = [\"sft\", \"grpo\"]` does both, and evaluates before, between and after.
";

/// Our keys of that name, or of that meaning, and what else is to be known.
fn heir(name: &str) -> Option<(Vec<String>, &'static str)> {
    if let Some(found) = foreign::all().find(|key| key.of == "TRL" && key.name == name) {
        return Some((found.ours.iter().map(ToString::to_string).collect(), found.remark));
    }
    let same = keys::all().map(|key| key.path.clone()).filter(|path| path.rsplit('.').next() == Some(name));
    // Enumeration has no counterpart there.
    let same: Vec<String> = same.filter(|path| !path.starts_with("enumerate.")).collect();
    (!same.is_empty()).then_some((same, ""))
}

fn page() -> String {
    let text = std::fs::read_to_string(golden_dir().join("trl-keys.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let mut out = HEAD.replace("VERSION", golden["trl"].as_str().unwrap());
    let parts = [
        ("GRPOConfig", "GRPOConfig"),
        ("SFTConfig", "SFTConfig"),
        ("TrainingArguments", "Of both, from transformers' TrainingArguments"),
    ];
    for (part, title) in parts {
        let _ = write!(out, "\n## {title}\n\n| there | default there | here | |\n|---|---|---|---|\n");
        for (name, default) in golden[part].as_object().unwrap() {
            let Some((ours, remark)) = heir(name) else { panic!("nothing is said of TRL's {name}") };
            let here = ours.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let default = match default {
                Value::Null => String::new(),
                value => format!("`{}`", value.to_string().trim_matches('"')),
            };
            let _ = writeln!(out, "| `{name}` | {default} | {here} | {remark} |");
        }
    }
    out
}

#[test]
fn the_page_of_trls_keys_is_current_in_the_reference() {
    hold("docs/from-trl.md", page());
}
