//! The demo's first steps are those on file: what moves the numbers of training is seen here before anywhere else.

use serde_json::Value;

use crate::support::golden::golden_dir;
use crate::support::runs::rlvr;

/// Metrics that no arithmetic touches, so that they are the same on every machine.
const EXACT: [&str; 5] = ["learning_rate", "epoch", "verdict/count", "verdict/base_rate", "step"];

/// How far a metric may lie from the one on file. Sums in another order (AVX2, AVX-512, NEON) differ in the last bits,
/// and 200 steps of SFT make a few 1e-4 of that. In GRPO a completion whose draw falls on the other side of a bound
/// is another completion: some of a step's 256 may differ.
fn tolerance(stage: &str, name: &str, want: f64) -> f64 {
    match (stage, name) {
        (_, name) if EXACT.contains(&name) => 0.0,
        ("sft", "num_tokens") => 0.0,
        ("sft", _) => 2e-3 * want.abs().max(0.1),
        (_, "grad_norm" | "kl" | "loss") => 0.1 * want.abs().max(0.02),
        (_, "num_tokens" | "num_tokens_reused") => 0.01 * want,
        (_, "completions/max_length" | "completions/min_length") => 2.0,
        (_, "sampling/sampling_logp_difference/max" | "sampling/sampling_logp_difference/mean") => 1e-4,
        _ => 0.03 * want.abs().max(1.0),
    }
}

#[test]
fn golden_first_steps_of_the_demo() {
    let dir = tempfile::tempdir().unwrap();
    let run = train_demo(dir.path());
    let read = |path: std::path::PathBuf| -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let got = read(run.join("metrics.jsonl"));
    let golden = read(golden_dir().join("demo-curve.jsonl"));
    assert_eq!(golden.len(), 20);
    let mut worst = (0.0, String::new());
    for want in golden {
        let key = |event: &Value| (event["event"].clone(), event["stage"].clone(), event["step"].clone());
        let got = got.iter().find(|event| key(event) == key(&want)).expect("the step was made");
        let stage = want["stage"].as_str().unwrap();
        for (name, value) in want.as_object().unwrap() {
            // Once the mean deviation within groups, now TRL's over all completions.
            if name == "reward_std" {
                continue;
            }
            let Some(value) = value.as_f64() else { continue };
            let found = got[name].as_f64().unwrap_or_else(|| panic!("{stage} {}: no {name}", want["step"]));
            let (off, most) = ((found - value).abs(), tolerance(stage, name, value));
            assert!(
                off <= most,
                "{stage} {}: {name} is {found}, on file {value}, {most} apart at most",
                want["step"]
            );
            if off > worst.0 * most {
                worst = (off / most.max(f64::MIN_POSITIVE), format!("{stage} {} {name}", want["step"]));
            }
        }
    }
    println!("nearest to its bound: {} at {:.2} of it", worst.1, worst.0);
}

fn train_demo(root: &std::path::Path) -> std::path::PathBuf {
    // The curve is of a build that divided by the population's deviation.
    let (root_key, settings) = (
        format!("run.root={}", root.display()),
        [
            "device=cpu",
            "grpo.scale_std=population",
            "data.synthetic.valid_rows=4",
            "sft.steps=200",
            "grpo.steps=5",
            "eval.every_steps=0",
        ],
    );
    let mut args = vec!["train", "demo", "--set", "run.name=demo", "--set", &root_key];
    settings.iter().for_each(|setting| args.extend(["--set", setting]));
    let output = rlvr(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    root.join("demo")
}
