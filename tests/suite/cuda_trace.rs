//! What a step asks of a GPU is on file: launches, products, copies, allocations, bytes, FLOP, the peak, and the time
//! that they add up to. A change that makes any of them grow is seen here, on a machine without a GPU.

use std::path::Path;
use std::process::Command;

use rlvr::config::Config;
use rlvr::plan::{Plan, Target, shapes};
use serde_json::Value;

use crate::support::cuda::{device, on_twin};
use crate::support::golden::golden_dir;

fn steps() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(golden_dir().join("gpu-steps.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The summary of `scripts/gpu/predict.py` for a step with these flags.
fn trace(flags: &str, into: &Path) -> Value {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu");
    let mut traced = Command::new(scripts.join("trace.sh"));
    traced.arg(into).args(flags.split(' ')).env("RLVR_CUDA_BINARY", env!("CARGO_BIN_EXE_rlvr"));
    let traced = traced.output().unwrap();
    assert!(traced.status.success(), "{flags}: {}", String::from_utf8_lossy(&traced.stderr));
    let summary =
        Command::new("python3").arg(scripts.join("predict.py")).arg(into).arg("--json").output().unwrap();
    assert!(summary.status.success(), "{flags}: {}", String::from_utf8_lossy(&summary.stderr));
    serde_json::from_slice(&summary.stdout).unwrap()
}

#[test]
fn a_step_asks_of_a_gpu_what_is_on_file() {
    let Some(device) = device() else { return };
    if !on_twin(&device) {
        return; // a GPU is measured, not traced
    }
    let dir = tempfile::tempdir().unwrap();
    let mut now = steps();
    for (name, step) in &mut now {
        step["asks"] = trace(step["flags"].as_str().unwrap(), &dir.path().join(name));
    }
    if now != steps() {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-steps.json");
        std::fs::write(&file, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
        let (was, is) =
            (serde_json::to_string_pretty(&steps()).unwrap(), serde_json::to_string_pretty(&now).unwrap());
        let changed = was.lines().zip(is.lines()).filter(|(was, is)| was != is);
        let changed: Vec<String> =
            changed.map(|(was, is)| format!("{} -> {}", was.trim(), is.trim())).collect();
        panic!(
            "a step asks other things of a GPU than are on file:\n{}\nWhere that is meant, {} becomes \
             tests/golden/gpu-steps.json, and docs/kernels.md says what was gained",
            changed.join("\n"),
            file.display()
        );
    }
}

/// The plan's peak is the one that the step really has, to .5% below and 6% above.
#[test]
fn the_plan_of_an_8b_step_is_what_the_step_takes() {
    let target = Target { cuda: true, dtype: candle_core::DType::BF16, answers: 0 };
    for (name, settings) in [
        ("llama-3.1-8b recomputed", &["pack.activations=\"recompute\"", "pack.max_reused_tokens=0"][..]),
        ("llama-3.1-8b kept", &["pack.activations=\"keep\"", "pack.max_reused_tokens=0"]),
        (
            "llama-3.1-8b adapter",
            &[
                "lora.rank=16",
                "pack.activations=\"recompute\"",
                "pack.max_reused_tokens=0",
                "grpo.optim.moments=\"f32\"",
                "grpo.optim.gradients=\"f32\"",
            ],
        ),
        ("llama-3.1-8b taped", &["pack.activations=\"recompute\"", "pack.max_reused_tokens=65536"]),
    ] {
        let traced = steps()[name]["asks"]["peak_gib"].as_f64().unwrap();
        let step = [
            "stages=[\"grpo\"]",
            "data.max_prompt_tokens=1500",
            "grpo.max_completion_tokens=40",
            "grpo.prompts_per_step=32",
            "grpo.group_size=8",
            "pack.max_tokens_per_pack=7248",
            "pack.max_rollout_tokens=65536",
        ];
        let settings: Vec<String> = step.iter().chain(settings).map(|setting| setting.to_string()).collect();
        let config = Config::load("riskcue-llama3.1-8b", &settings).unwrap();
        let plan = Plan::new(&shapes::find("llama-3.1-8b").unwrap(), &config, target);
        let step = plan.phases.iter().filter(|phase| phase.name.starts_with("grpo"));
        let planned = step.map(|phase| phase.bytes()).max().unwrap() as f64 / (1u64 << 30) as f64;
        assert!(
            (0.995..1.06).contains(&(planned / traced)),
            "{name}: planned {planned:.2} GiB, traced {traced:.2}"
        );
    }
}
