//! Runs of several ranks, and what they leave held against what one process leaves.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use candle_core::{DType, Device};
use serde_json::Value;

use super::runs::{rows, text};
use super::small::{Small, left, said};

/// Of the first step, where one process and several have the same weights.
const FIRST: f64 = 1e-6;

/// Runs the small demo with so many ranks.
pub fn train(small: &Small, name: &str, ranks: usize) -> Output {
    let mut command = small.command(name, None);
    command.args(["--ranks", &ranks.to_string()]);
    command.output().unwrap()
}

/// Numbers within `bound` of each other, relative to the larger or to 0.1, and all else equal: differences of log-probs are rounding alone.
fn near(at: &str, a: &Value, b: &Value, bound: f64) {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            let scale = a.abs().max(b.abs()).max(0.1);
            assert!((a - b).abs() <= bound * scale, "{at}: {a} and {b}");
        }
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{at}");
            a.iter().for_each(|(key, value)| near(&format!("{at}.{key}"), value, &b[key], bound));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| near(&format!("{at}[{i}]"), a, b, bound));
        }
        _ => assert_eq!(a, b, "{at}"),
    }
}

/// The numbers of a safetensors file, name by name.
fn tensors(path: &Path) -> Vec<(String, Vec<f32>)> {
    let found = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut all: Vec<_> = found
        .into_iter()
        .map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap()))
        .map(|(name, tensor)| (name, tensor.to_vec1::<f32>().unwrap()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// The demo's task with a reward by length, under which the answers of an untrained model differ: a gradient that is no rounding.
pub fn lively(dir: &Path) -> String {
    let demo = std::fs::read_to_string(super::project().join("tasks/demo.toml")).unwrap();
    let reward = "[extra_rewards.long]\nweight = 1.0\n[extra_rewards.long.length]\nunit = \"characters\"\nfrom = 2\nto = 60\nat_to = 1.0\n";
    let path = dir.join("lively.toml");
    std::fs::write(&path, format!("{demo}\n{reward}")).unwrap();
    format!("task={}", text(&path))
}

/// Metrics of every step and evaluation, and what was sampled; `bound` for metrics, five times that for weights. Metrics of the very first
/// step within a millionth: from then on Adam and quotients by small deviations make rounding larger.
pub fn as_one(one: &Path, several: &Path, bound: f64) {
    let (mut want, mut got) = (left(one), left(several));
    for line in want.0.iter_mut().chain(&mut got.0).filter(|line| line["stage"] == "enumerate") {
        // Quotients by the probability of any listed answer, which is nearly nothing here.
        line.as_object_mut()
            .unwrap()
            .retain(|key, _| !["completions/mean_length", "entropy"].contains(&key.as_str()));
    }
    assert_eq!(want.0.len(), got.0.len(), "lines of metrics.jsonl");
    for (line, (want, got)) in want.0.iter().zip(&got.0).enumerate() {
        let is_first = want["event"] == "step" && want["stage"] == "sft" && want["step"] == 1;
        let bound = if is_first { FIRST.min(bound) } else { bound };
        near(&format!("line {}", line + 1), want, got, bound);
    }
    let sampled = |run: &Path| -> Vec<(String, Value)> {
        let files = std::fs::read_dir(run.join("samples")).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = files
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), rows(&path).into()))
            .collect();
        all.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
        all
    };
    for ((file, want), (other, got)) in sampled(one).iter().zip(&sampled(several)) {
        assert_eq!(file, other);
        near(file, want, got, bound);
    }
    let file = ["model-last/model.safetensors", "model/model.safetensors"];
    let file = file.into_iter().find(|file| one.join(file).is_file()).unwrap();
    for ((name, want), (_, got)) in tensors(&one.join(file)).iter().zip(tensors(&several.join(file))) {
        let worst = want.iter().zip(&got).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(f64::from(worst) < 5.0 * bound, "{name} differs by {worst:e}");
    }
}

/// Takes away what came after `step` steps.
pub fn cut(run: &Path, step: usize) {
    for folder in ["model", "model-last", "adapter", "adapter-last"] {
        let _ = std::fs::remove_dir_all(run.join(folder));
    }
    for entry in std::fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        let of: usize =
            path.file_name().unwrap().to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap();
        if of > step {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

/// The ranks of a run, each started by hand as a launcher does; `change` sees each command with its rank.
pub fn by_hand(small: &Small, name: &str, size: usize, change: impl Fn(usize, &mut Command)) -> Vec<Child> {
    // Free a moment ago; nothing else of this machine takes ports of this range in between.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (0..size)
        .map(|rank| {
            let mut command = small.command(name, None);
            // Another test may have found the same port free.
            command.env("TORCHELASTIC_RUN_ID", format!("{} {port} {name}", std::process::id()));
            change(rank, &mut command);
            for (key, value) in
                [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size), ("LOCAL_WORLD_SIZE", size)]
            {
                command.env(key, value.to_string());
            }
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect()
}

/// Exit code and words of each.
pub fn ended(ranks: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let outputs = ranks.into_iter().map(|child| child.wait_with_output().unwrap());
    outputs.map(|output| (output.status.code(), said(&output))).collect()
}
