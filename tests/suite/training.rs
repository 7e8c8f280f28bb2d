//! Runs through the real binary: stop and resume is bitwise equal, the saved model loads and evaluates, GRPO
//! improves on its warm-up.

use std::path::{Path, PathBuf};

use crate::support::runs::{copy, object, records, rlvr, train};

/// Lines of metrics.jsonl without what depends on the clock and the memory.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut event: serde_json::Value = serde_json::from_str(line).unwrap();
            let map = event.as_object_mut().unwrap();
            map.retain(|key, _| {
                !(key.starts_with("time/")
                    || key.starts_with("memory/")
                    || matches!(key.as_str(), "step_time" | "tokens_per_second"))
            });
            event
        })
        .collect()
}

#[test]
fn a_stopped_run_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    // Every checkpoint is kept, and both a KL reference and old log-probs are in play.
    let extra = ["checkpoint.keep_last=99", "grpo.updates_per_rollout=2", "grpo.minibatches=2"];
    let whole = train(dir.path(), "whole", &extra);
    // 5 SFT steps, 6 GRPO steps: within the warm-up, at its end, within GRPO.
    resumes_bit_for_bit(dir.path(), &whole, &[2, 5, 7, 9], &["model/model.safetensors"]);
}

#[test]
fn a_stopped_run_with_adapters_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let files =
        ["model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"];
    for stages in ["one", "fresh"] {
        let extra = [
            "checkpoint.keep_last=99",
            "lora.rank=4",
            "sft.optim.learning_rate=0.01",
            "grpo.reference_sync_steps=3",
        ];
        let whole =
            train(dir.path(), stages, &[&extra[..], &[format!("lora.stages={stages}").as_str()]].concat());
        let checkpoint = whole.join("checkpoints/step-9");
        assert!(checkpoint.join("adapter/adapter_model.safetensors").is_file());
        assert_eq!(checkpoint.join("merged-0").is_dir(), stages == "fresh");
        assert!(!checkpoint.join("model.safetensors").exists(), "the frozen weights are not stored again");
        resumes_bit_for_bit(dir.path(), &whole, &[2, 5, 9], &files);
        // The adapter beside the weights the run started from is the model that was chosen.
        for (model, adapter) in [("model", None), ("base", Some("adapter"))] {
            let report = evaluate_again(dir.path(), &whole.join(model), adapter.map(|name| whole.join(name)));
            assert_eq!(report["confusion"], chosen_evaluation(&whole)["report"]["confusion"], "{model}");
        }
    }
    // Weights from another seed: nothing to go on from.
    let run = dir.path().join("one");
    let config = std::fs::read_to_string(run.join("config.resolved.toml")).unwrap();
    std::fs::write(run.join("config.resolved.toml"), config.replacen("seed = 1", "seed = 2", 1)).unwrap();
    let output = rlvr(&["train", "--resume", run.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("model.random: holds other weights"), "{text}");
}

#[test]
fn what_was_changed_between_stop_and_resume_is_kept_with_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &["stages=[\"sft\"]", "checkpoint.keep_last=9"]);
    std::fs::remove_dir_all(run.join("model")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/step-5")).unwrap();
    let config = std::fs::read_to_string(run.join("config.resolved.toml")).unwrap();
    std::fs::write(run.join("config.resolved.toml"), config.replace("group_size = 8", "group_size = 4"))
        .unwrap();
    std::fs::write(run.join("metrics.jsonl"), "").unwrap();
    let output = rlvr(&["train", "--resume", run.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let warnings: Vec<String> = metrics(&run)
        .into_iter()
        .filter(|event| event["event"] == "warning")
        .map(|event| event["text"].as_str().unwrap().to_string())
        .collect();
    let [edit, lost] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(edit.ends_with("grpo.group_size was 8, is 4") && text.contains(edit.as_str()), "{edit} {text}");
    assert!(lost.contains("it has 0"), "{lost}");
}

/// Stops the run `whole` after each of `stops` steps, goes on, and compares `files` and the metrics.
fn resumes_bit_for_bit(root: &Path, whole: &Path, stops: &[u64], files: &[&str]) {
    let read = |run: &Path| -> Vec<Vec<u8>> {
        files.iter().map(|file| std::fs::read(run.join(file)).unwrap()).collect()
    };
    let weights = read(whole);
    let want = metrics(whole);
    for &stop in stops {
        let stopped = root.join(format!("stopped-{stop}"));
        let _ = std::fs::remove_dir_all(&stopped);
        copy(whole, &stopped);
        std::fs::remove_dir_all(stopped.join("model")).unwrap();
        for late in ["adapter", "model-last", "adapter-last"] {
            let _ = std::fs::remove_dir_all(stopped.join(late));
        }
        for entry in std::fs::read_dir(stopped.join("checkpoints")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            let step: u64 = name.strip_prefix("step-").unwrap().parse().unwrap();
            if step > stop {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        // What a killed write leaves behind.
        std::fs::create_dir_all(stopped.join("checkpoints/step-99.partial")).unwrap();
        let output = rlvr(&["train", "--resume", stopped.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for ((file, got), want) in files.iter().zip(read(&stopped)).zip(&weights) {
            // The config names a folder of its own run.
            assert!(&got == want || file.ends_with("config.json"), "{file} from {stop}");
        }
        assert_eq!(metrics(&stopped), want, "from {stop}");
        // The version, the config, and a record a line: no step is there twice.
        let records = records(&stopped.join("events.out.tfevents.rlvr"));
        assert_eq!(records.len(), want.len() + 2, "from {stop}");
    }
}

#[test]
fn a_run_with_a_state_of_its_own_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let extra = [
        "checkpoint.keep_last=2",
        "grpo.order=difficulty",
        "grpo.max_resamples=2",
        "grpo.kl_in=reward",
        "grpo.reference_sync_steps=2",
        "grpo.entropy_coef=0.001",
        "grpo.adaptive_entropy.target=9",
        "grpo.top_entropy_quantile=0.6",
        "grpo.baseline=leave_one_out",
        "grpo.truncated=mask",
        "grpo.importance_cap=2.0",
        "grpo.loss.type=cispo",
    ];
    let whole = train(dir.path(), "whole", &extra);
    let weights = std::fs::read(whole.join("model/model.safetensors")).unwrap();
    let want = metrics(&whole);
    for event in want.iter().filter(|event| event["event"] == "step" && event["stage"] == "grpo") {
        let number = |name: &str| event[name].as_f64().unwrap_or_else(|| panic!("{name} in {event}"));
        let (groups, missing) = (number("dynamic_sampling/groups"), number("dynamic_sampling/missing"));
        let live = groups * (1.0 - number("frac_reward_zero_std"));
        assert_eq!(missing, (4.0 - live).round().max(0.0), "{event}");
        assert!(missing == 0.0 || number("dynamic_sampling/rounds") == 2.0, "{event}");
        assert!(number("kl").is_finite() && number("cispo_clip_ratio") == 0.0);
        let coef = 0.001 + 0.005 * number("step");
        assert!(
            (number("entropy_coef") - coef).abs() < 1e-12 && number("entropy_threshold") > 0.0,
            "{event}"
        );
    }
    // 5 SFT steps, 6 GRPO steps; the checkpoint of step 9 is GRPO's fourth, right after a sync.
    let stopped = dir.path().join("stopped");
    copy(&whole, &stopped);
    std::fs::remove_dir_all(stopped.join("model")).unwrap();
    let steps: Vec<_> =
        std::fs::read_dir(stopped.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    for path in steps.iter().filter(|path| !path.ends_with("step-9")) {
        std::fs::remove_dir_all(path).unwrap();
    }
    let output = rlvr(&["train", "--resume", stopped.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(stopped.join("model/model.safetensors")).unwrap() == weights);
    assert_eq!(metrics(&stopped), want);
}

#[test]
fn an_enumerated_run_lifts_the_expected_reward_without_sampling() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(
        dir.path(),
        "enumerated",
        &[
            "stages=[\"sft\", \"enumerate\"]",
            "sft.epochs=4",
            "enumerate.steps=30",
            "enumerate.prompts_per_step=16",
            "eval.every_steps=0",
        ],
    );
    let events = metrics(&run);
    let steps: Vec<_> = events.iter().filter(|e| e["event"] == "step" && e["stage"] == "enumerate").collect();
    let mean = |of: &[&serde_json::Value]| {
        of.iter().map(|e| e["reward"].as_f64().unwrap()).sum::<f64>() / of.len() as f64
    };
    let (first, last) = (mean(&steps[..8]), mean(&steps[22..]));
    assert!(last > first + 0.03, "{first} {last}");
    assert!(steps[0].get("sampling/sampling_logp_difference/mean").is_none(), "nothing was sampled");
    let root = format!("run.root={}", dir.path().display());
    let sets = ["task=riskcue", "stages=[\"enumerate\"]", &root].map(|set| ["--set", set]).concat();
    let refused = rlvr(&[&["train", "demo"], sets.as_slice()].concat());
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("stages = enumerate") && text.contains("no closed set"), "{text}");
    assert_eq!(refused.status.code(), Some(2), "{text}");
}

/// A step token by token: what the sampler drew, what the loss saw of it and which way it went.
#[test]
fn a_step_that_is_dumped_shows_every_token_as_the_loss_saw_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "dumped", &["run.dump_steps=[2]", "sft.epochs=2", "grpo.steps=2"]);
    let lines = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(run.join("samples").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (dumped, mut samples) = (lines("grpo-tokens.jsonl"), lines("grpo-rollouts.jsonl"));
    assert!(dumped.iter().all(|line| line["step"] == 2), "the other step was not to be dumped");
    samples.retain(|line| line["step"] == 2);
    samples.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("step")));
    // There is a KL penalty: dead groups are in the loss too.
    assert_eq!(dumped.len(), samples.len());
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    for (line, sample) in dumped.iter().zip(&samples) {
        assert_eq!(&line["sample"], sample);
        let tokens = line["tokens"].as_array().unwrap();
        let text: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
        assert!(text.starts_with(sample["completion"].as_str().unwrap()), "{text}");
        for token in tokens {
            let (old, logp) = (number(&token["old_logp"]), number(&token["logp"]));
            assert!(
                (number(&token["sampler_logp"]) - old).abs() < 1e-4 && old == logp,
                "one update a rollout"
            );
            // At ratio 1 the policy's part of the slope has the sign of -A; what is left is the KL's.
            let kl = -0.2 * ((number(&token["ref_logp"]) - logp).exp() - 1.0);
            let (slope, advantage) = (number(&token["slope"]), number(&line["advantage"]));
            let weight = slope / (kl - advantage);
            assert!(
                weight > 0.0 && weight < 1.0 || (slope == 0.0 && advantage == 0.0),
                "{token} {advantage}"
            );
        }
    }
}

/// On a GPU, or on the twin of the driver; `support/cuda.rs` says how.
#[cfg(feature = "cuda")]
#[test]
fn a_run_on_a_device_trains_saves_and_resumes_bit_for_bit() {
    if let Err(error) = rlvr::ops::cuda::device(0) {
        eprintln!("CUDA is not checked here: {error}");
        return;
    }
    let mixed = ["grpo.optim.moments=int8", "grpo.optim.gradients=bf16", "sft.optim.bf16_weights=masters"];
    for (dtype, extra) in [("f32", &[][..]), ("bf16", &mixed)] {
        let raw = trains_saves_and_resumes("device=cuda", dtype, extra);
        assert!(raw.contains("memory/device_peak_gib"), "the steps ran on the device");
    }
}

#[test]
fn a_run_in_bf16_on_the_cpu_trains_saves_and_resumes_bit_for_bit() {
    trains_saves_and_resumes("device=cpu", "bf16", &["grpo.optim.gradients=bf16"]);
    trains_saves_and_resumes("device=cpu", "bf16", &["sft.optim.bf16_weights=masters"]);
}

/// A tiny run with weights of `dtype`, and the same run stopped within GRPO and resumed. Returns its metrics.
fn trains_saves_and_resumes(device: &str, dtype: &str, extra: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let dtype_key = format!("model.dtype={dtype}");
    let tiny = [
        device,
        &dtype_key,
        "checkpoint.keep_last=99",
        "data.synthetic.valid_rows=4",
        "sft.epochs=0.08",
        "grpo.steps=3",
        "grpo.prompts_per_step=2",
        "grpo.group_size=4",
        "model.random.hidden_size=32",
        "model.random.intermediate_size=48",
        "model.random.attention_heads=2",
        "model.random.key_value_heads=1",
    ];
    let whole = train(dir.path(), "run", &[&tiny[..], extra].concat());
    let weights = std::fs::read(whole.join("model/model.safetensors")).unwrap();
    let stored = weights.windows(6).any(|w| w == br#""BF16""#);
    assert_eq!(stored, dtype == "bf16", "the weights are stored as what they are");
    let want = metrics(&whole);
    let raw = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let difference =
        |event: &serde_json::Value| event["sampling/sampling_logp_difference/max"].as_f64().unwrap_or(0.0);
    let worst = want.iter().map(difference).fold(0.0, f64::max);
    assert!(worst < if dtype == "f32" { 1e-4 } else { 0.05 }, "sampler and trainer differ by {worst}");
    std::fs::remove_dir_all(whole.join("model")).unwrap();
    // Two SFT steps; the last checkpoint within GRPO is of the whole run's step 4.
    for late in ["step-5", "step-6"] {
        let _ = std::fs::remove_dir_all(whole.join("checkpoints").join(late));
    }
    let output = rlvr(&["train", "--resume", whole.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(whole.join("model/model.safetensors")).unwrap() == weights, "{dtype}");
    assert_eq!(metrics(&whole), want, "{dtype}");
    raw
}

#[test]
fn the_final_model_loads_and_evaluates_as_in_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let report = evaluate_again(dir.path(), &run.join("model"), None);
    assert_eq!(report["confusion"], chosen_evaluation(&run)["report"]["confusion"]);
    assert_eq!(report["count"], 20);
}

/// The evaluation that `model/best.json` names.
fn chosen_evaluation(run: &Path) -> serde_json::Value {
    let note = object(&run.join("model/best.json"));
    let is_it = |event: &serde_json::Value| {
        event["event"] == "evaluation" && event["stage"] == note["stage"] && event["step"] == note["step"]
    };
    metrics(run).into_iter().find(is_it).unwrap()
}

/// `rlvr eval` of a run's model on the run's held-out rows.
fn evaluate_again(root: &Path, model: &Path, adapter: Option<PathBuf>) -> serde_json::Value {
    let data = root.join("data");
    // The run's seed is 1: these are its held-out rows.
    let made = rlvr(&["data", "synth", "--out", data.to_str().unwrap(), "--seed", "1", "--valid-rows", "20"]);
    assert!(made.status.success());
    let rows = data.join("valid.jsonl");
    let mut args = vec![
        "eval",
        model.to_str().unwrap(),
        rows.to_str().unwrap(),
        "--task",
        "demo",
        "--max-completion-tokens",
        "12",
        "--max-prompt-tokens",
        "200",
        "--device",
        "cpu",
        "--json",
    ];
    if let Some(adapter) = &adapter {
        args.extend(["--adapter", adapter.to_str().unwrap()]);
    }
    let output = rlvr(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn grpo_lifts_strict_accuracy_over_a_warm_up_that_over_flags() {
    let dir = tempfile::tempdir().unwrap();
    // About a third of the demo.
    let output = rlvr(&[
        "train",
        "demo",
        "--set",
        "device=cpu",
        "--set",
        "data.synthetic.valid_rows=200",
        "--set",
        "grpo.steps=70",
        "--set",
        "eval.every_steps=0",
        "--set",
        "run.name=demo",
        "--set",
        &format!("run.root={}", dir.path().display()),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events = metrics(&dir.path().join("demo"));
    let evaluations: Vec<_> = events.iter().filter(|event| event["event"] == "evaluation").collect();
    let number = |i: usize, name: &str| evaluations[i][name].as_f64().unwrap();
    let strict = |i| number(i, "verdict/accuracy_strict");
    assert_eq!(evaluations.len(), 3);
    assert_eq!(number(0, "verdict/malformed_rate"), 1.0, "untrained weights write noise");
    assert!(number(1, "verdict/malformed_rate") < 0.05, "the warm-up teaches the form");
    assert!(number(1, "verdict/false_positive_rate") > 0.3, "and over-flags");
    assert!(strict(2) > strict(1) + 0.05, "SFT {} GRPO {}", strict(1), strict(2));
    assert!(number(2, "verdict/false_positive_rate") < number(1, "verdict/false_positive_rate"));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("SFT+GRPO") && table.contains("run:"), "{table}");
}
