//! `scripts/gpu/run.sh`: what it would run fits the card and its minutes, and it leaves every file and line it promises.
//! docs/gpu.md: its table is the command's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::DType;
use rlvr::config::Config;
use rlvr::plan::{Plan, Target, shapes};
use serde_json::Value;

use crate::support::runs::{stdout, text};

const GIB: f64 = (1u64 << 30) as f64;
/// Of an H100, as it is lent.
const CARD_GIB: f64 = 78.0;
/// For kernels that libraries load when they are first called.
const FREE_GIB: f64 = 1.5;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu").join(name)
}

#[track_caller]
fn bash(script: &Path, args: &[&str]) -> Output {
    let out = Command::new("bash").arg(script).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{} {args:?}: {said}", script.display());
    out
}

/// Name, limit in seconds and command of each stage of a call.
fn stages(call: &str) -> Vec<(String, u64, String)> {
    let out = bash(&script("run.sh"), &["--list", "--run", call]);
    let parts = |line: &str| {
        let parts: Vec<&str> = line.split('\t').collect();
        let [name, limit, command] = parts[..] else { panic!("{line}") };
        (name.into(), limit.parse().unwrap(), command.into())
    };
    String::from_utf8(out.stdout).unwrap().lines().map(parts).collect()
}

/// The value that follows a flag of a command.
fn flag<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    command.split(' ').skip_while(|word| *word != name).nth(1)
}

/// The largest of a step's phases, planned for a command of `rlvr bench step` on a CUDA device.
fn peak_gib(command: &str) -> f64 {
    let mut set = vec!["stages=[\"grpo\"]".to_string(), "device=\"cuda\"".into()];
    for (key, name, default) in [
        ("grpo.prompts_per_step", "--groups", "1"),
        ("grpo.group_size", "--group-size", "8"),
        ("data.max_prompt_tokens", "--prompt-tokens", "1024"),
        ("grpo.max_completion_tokens", "--new-tokens", "48"),
        ("pack.max_tokens_per_pack", "--max-tokens-per-pack", "8192"),
        ("pack.max_rollout_tokens", "--max-rollout-tokens", "32768"),
        ("pack.max_reused_tokens", "--max-reused-tokens", "8192"),
        ("grpo.optim.moments", "--moments", "f32"),
        ("grpo.optim.bf16_weights", "--bf16-weights", "auto"),
        ("grpo.optim.gradients", "--gradients", "f32"),
    ] {
        let value = flag(command, name).unwrap_or(default);
        let quote = if value.parse::<u64>().is_ok() { "" } else { "\"" };
        set.push(format!("{key}={quote}{value}{quote}"));
    }
    let activations = if command.contains("--keep-activations") { "keep" } else { "recompute" };
    set.push(format!("pack.activations=\"{activations}\""));
    let config = Config::load("riskcue-llama3.1-8b", &set).unwrap();
    let model = shapes::find(flag(command, "--preset").unwrap()).unwrap();
    let plan = Plan::new(&model, &config, Target { cuda: true, dtype: DType::BF16, answers: 0 });
    let phases = plan.phases.iter().filter(|phase| phase.name.starts_with("grpo"));
    phases.map(|phase| phase.bytes()).max().unwrap() as f64 / GIB
}

#[test]
fn every_stage_fits_the_card_and_the_minutes() {
    for (call, seconds) in [("1", 330), ("2", 350)] {
        let stages = stages(call);
        let all: u64 = stages.iter().map(|(_, limit, _)| limit).sum();
        assert!(all <= seconds, "call {call}: {all} s of {seconds}: {stages:?}");
        let mut large = 0;
        for (name, _, command) in stages.iter().filter(|(.., command)| command.contains("bench step")) {
            let peak = peak_gib(command);
            assert!(peak <= CARD_GIB - FREE_GIB, "{name}: {peak:.1} GiB: {command}");
            large += usize::from(peak > 40.0);
        }
        assert!(large > 0, "no stage of the size that it is about: {stages:?}");
    }
    // The masters that an earlier plan kept would not fit.
    let too_much = "rlvr bench step --preset llama-3.1-8b --groups 32 --prompt-tokens 1500 --new-tokens 40 --moments int8 \
                    --bf16-weights masters --gradients bf16 --max-reused-tokens 0";
    assert!(peak_gib(too_much) > CARD_GIB - FREE_GIB, "{}", peak_gib(too_much));
}

/// The flags of the listed commands are those that rlvr knows.
#[test]
fn every_flag_is_known() {
    for call in ["1", "2"] {
        for (name, _, command) in stages(call) {
            let Some(at) = command.find("rlvr ") else { continue };
            let words: Vec<&str> = command[at..].split(' ').skip(1).collect();
            let mut asked: Vec<&str> =
                words.iter().copied().take_while(|word| !word.starts_with("--")).collect();
            asked.push("--help");
            let help = stdout(&asked);
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                assert!(
                    help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")),
                    "{name}: {flag}"
                );
            }
        }
    }
}

/// The JSON objects of a file, one a line.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Packs this build as it would travel, runs both calls small, and looks at what they left.
fn rehearse(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (pack, out) = (dir.path().join("pack"), dir.path().join("out"));
    bash(&script("build.sh"), &["--into", text(&pack), "--binary", env!("CARGO_BIN_EXE_rlvr")]);
    let run = pack.join("run.sh");
    for call in ["1", "2"] {
        let said = bash(&run, &[text(&out), "--quick", "--device", device, "--run", call]);
        let files = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<String> = files.collect();
        let mut wanted = vec!["machine.txt", "stages.tsv", "log.txt", "smi.txt", "steps.jsonl", "ops.jsonl"];
        wanted.extend((call == "1").then_some("doctor.jsonl"));
        assert_eq!(files, wanted.into_iter().map(String::from).collect(), "call {call}");
        let about = std::fs::read_to_string(out.join("machine.txt")).unwrap();
        assert!(
            about.contains("\ncommit   ") && about.contains(&format!("call {call}, device {device}")),
            "{about}"
        );
        assert!(String::from_utf8(said.stdout).unwrap().contains(" ops of tiny"));

        let ran = std::fs::read_to_string(out.join("stages.tsv")).unwrap();
        let ran: Vec<Vec<&str>> = ran.lines().map(|line| line.split('\t').collect()).collect();
        for stage in &ran {
            assert!(stage[1] == "0" || stage[1].starts_with("not run: no "), "{stage:?}");
        }
        // In the order that is listed: what the first lines hold is known first.
        let peers = |name: &&str| !(name.starts_with("peer") || *name == "kernels" && device == "cpu");
        let listed = stages(call);
        let listed: Vec<&str> = listed.iter().map(|(name, ..)| name.as_str()).filter(peers).collect();
        assert_eq!(ran.iter().map(|stage| stage[0]).filter(peers).collect::<Vec<_>>(), listed);

        let steps = lines(&out.join("steps.jsonl"));
        let done = ran.iter().filter(|stage| stage[0].starts_with("step-") || stage[0] == "best").count();
        let of_rlvr: Vec<&Value> = steps.iter().filter(|line| line.get("peer").is_none()).collect();
        let sums = of_rlvr.iter().filter(|line| line.get("mean_step_seconds").is_some());
        assert_eq!(sums.count(), done);
        for name in ["loss", "grad_norm", "sampling/sampling_logp_difference/max"] {
            let mut metrics = of_rlvr.iter().filter_map(|line| line.get("metrics"));
            assert!(metrics.all(|m| m[name].as_f64().is_some_and(f64::is_finite)), "{name}: {steps:?}");
        }
        assert!(of_rlvr.iter().filter(|line| line.get("metrics").is_some()).count() >= 2 * done);

        let ops = lines(&out.join("ops.jsonl"));
        let mut ops = ops.iter().filter(|line| line.get("peer").is_none());
        assert!(
            ops.clone()
                .filter(|line| line.get("failed").is_some())
                .all(|line| line["failed"] == serde_json::json!([]))
        );
        let known: BTreeSet<&str> =
            ops.clone().filter_map(|line| line.get("op")).filter_map(Value::as_str).collect();
        let mut wanted = vec!["linear.backward_weight.head", "linear.few_rows.down", "attention.backward"];
        wanted.extend((call == "1").then_some("adamw.update_int8"));
        assert!(wanted.iter().all(|op| known.contains(op)), "{known:?}");
        assert!(ops.any(|line| line.get("ceilings_after").is_some()));
        if call == "1" {
            let findings = lines(&out.join("doctor.jsonl"));
            let checked: BTreeSet<&str> =
                findings.iter().filter_map(|line| line.get("op")).filter_map(Value::as_str).collect();
            assert_eq!(checked.into_iter().collect::<Vec<_>>(), ["linear", "rope", "swiglu"]);
        }
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn both_calls_leave_every_file_and_line() {
    rehearse("cpu");
}

/// As on a machine with a GPU: the stripped program, on the twin of the driver.
#[cfg(feature = "cuda")]
#[test]
fn cuda_calls_leave_every_file_and_line() {
    let Some(device) = crate::support::cuda::device() else { return };
    if crate::support::cuda::on_twin(&device) {
        rehearse("cuda");
    }
}

#[test]
fn kernels_are_added_up_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ncu.csv");
    let head =
        "==PROF== Connected\n\"ID\",\"Kernel Name\",\"Metric Name\",\"Metric Unit\",\"Metric Value\"\n";
    let row = |name: &str, ns: &str| format!("\"0\",\"{name}\",\"gpu__time_duration.sum\",\"ns\",\"{ns}\"\n");
    let rows =
        row("rope_bf16(int, float)", "1,200") + &row("gemm", "300") + &row("rope_bf16(int, float)", "800");
    std::fs::write(&path, head.to_string() + &rows).unwrap();
    let out =
        Command::new("python3").arg(script("summary.py")).args(["--kernels", text(&path)]).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let found: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = found
        .iter()
        .map(|k| (k["kernel"].as_str(), k["launches"].as_u64(), k["nanoseconds"].as_f64()))
        .collect();
    assert_eq!(shown, [(Some("rope_bf16"), Some(2), Some(2000.0)), (Some("gemm"), Some(1), Some(300.0))]);
}

#[test]
fn the_page_says_what_the_plan_says() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/gpu.md")).unwrap();
    let command = page.lines().find_map(|line| line.strip_prefix("    rlvr plan --cards")).unwrap();
    let args: Vec<&str> = ["plan", "--cards"].into_iter().chain(command.split_whitespace()).collect();
    let table = stdout(&args);
    assert!(
        table.lines().count() > 10 && page.contains(&table),
        "docs/gpu.md has another table than this:\n{table}"
    );
}
