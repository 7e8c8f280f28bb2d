//! Runs that are stopped or killed anywhere, and go on: bit for bit what an unbroken run is, and no step lost to a stop.
//!
//! `RLVR_SIGNAL_AT=SIGNAL:VISIT` (src/main.rs) sends the binary a signal at a visit of `rlvr::stop`: a layer of a pass, a decode step,
//! a step of a checkpoint's write. `RLVR_STOPS=50` tries that many of each kind instead of a few.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::runs::{rlvr, stdout, text};
use crate::support::seed;
use crate::support::small::{Draw, Small, left, said, steps};

const TERM: u32 = 15;
const KILL: u32 = 9;

/// Breaks runs `times` times at visits that the seed draws, in one run after another, until each is done.
fn broken_runs_are_as_unbroken(small: &Small, root: &Path, signal: u32, times: u64) {
    let visits = small.visits("whole");
    let want = left(&root.join("whole"));
    let mut draw = Draw(seed::of_test());
    let mut broken = 0;
    while broken < times {
        let run = root.join("broken");
        let _ = std::fs::remove_dir_all(&run);
        loop {
            let at = 1 + draw.below(visits);
            let before = steps(&run);
            let output = small.train("broken", Some((signal, at)));
            let said = said(&output);
            if output.status.success() {
                break;
            }
            broken += 1;
            match signal {
                TERM => {
                    assert_eq!(output.status.code(), Some(75), "at visit {at}: {said}");
                    let line = said.lines().rfind(|line| line.starts_with("stopped: ")).unwrap();
                    assert!(line.contains("rlvr train --resume ") && !line.contains("lost"), "{line}");
                    assert!(steps(&run) >= before, "a stop lost a step: {said}");
                    let kept = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
                    assert!(kept > 0 || steps(&run) == 0, "at visit {at} of {} steps: {said}", steps(&run));
                }
                _ => assert_eq!(output.status.code(), None, "at visit {at}: {said}"),
            }
            // Rather many short runs than one that hardly ever ends.
            if broken >= times {
                let output = small.train("broken", None);
                assert!(output.status.success(), "{}", self::said(&output));
                break;
            }
        }
        let got = left(&run);
        assert_eq!(got.0, want.0, "metrics after {broken} breaks");
        let names =
            |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&got.1), names(&want.1), "after {broken} breaks");
        for ((path, got), (_, want)) in got.1.iter().zip(&want.1) {
            assert!(got == want, "{} after {broken} breaks", path.display());
        }
        let again = small.train("broken", None);
        assert!(
            again.status.success() && self::said(&again).contains("done already: "),
            "{}",
            self::said(&again)
        );
        assert!(left(&run) == got, "a run that is done is left alone");
    }
    println!("{broken} times signal {signal}, of {visits} visits: no step and no bit lost");
}

fn times() -> u64 {
    std::env::var("RLVR_STOPS").map_or(5, |text| text.parse().unwrap())
}

#[test]
fn a_run_stopped_anywhere_is_bit_for_bit_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(
        dir.path(),
        &["checkpoint.every_minutes=0", "grpo.updates_per_rollout=2", "grpo.order=difficulty"],
    );
    broken_runs_are_as_unbroken(&small, dir.path(), TERM, times());
}

#[test]
fn a_run_killed_anywhere_is_bit_for_bit_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["checkpoint.every_steps=1", "grpo.reference_sync_steps=2"]);
    broken_runs_are_as_unbroken(&small, dir.path(), KILL, times());
}

#[test]
fn a_run_with_adapters_stopped_anywhere_is_bit_for_bit_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let stages = "stages=[\"sft\", \"enumerate\"]";
    let more =
        [stages, "enumerate.steps=3", "enumerate.prompts_per_step=2", "lora.rank=2", "lora.stages=fresh"];
    let small = Small::new(dir.path(), &more);
    broken_runs_are_as_unbroken(&small, dir.path(), TERM, times().div_ceil(2));
}

/// The files that hold tensors of all checkpoints of a run.
fn tensors(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut folders = vec![run.join("checkpoints")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "safetensors") {
                files.push((path.strip_prefix(run).unwrap().into(), std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn checkpoints_written_while_the_run_goes_on_are_bit_for_bit_those_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let lora = ["lora.rank=2", "lora.stages=fresh"];
    for (name, more) in [("all", &[][..]), ("adapter", &lora)] {
        let run = |background: bool| {
            let background = format!("checkpoint.background={background}");
            let sets = ["checkpoint.every_steps=1", "checkpoint.keep_last=99", &background];
            let small = Small::new(dir.path(), &[&sets[..], more].concat());
            let name = format!("{name}-{background}");
            let output = small.train(&name, None);
            assert!(output.status.success(), "{}", said(&output));
            dir.path().join(name)
        };
        let (beside, between) = (run(true), run(false));
        let (got, want) = (tensors(&beside), tensors(&between));
        assert!(want.len() > 14, "{name}: {} files", want.len());
        assert!(got == want, "{name}");
        assert!(left(&beside) == left(&between), "{name}");
    }
}

/// A run over files that stopped after its first checkpoint within GRPO, and what it reads.
struct Stopped {
    root: tempfile::TempDir,
    run: PathBuf,
}

impl Stopped {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let data = at("data");
        stdout(&["data", "synth", "--out", text(&data), "--seed", "1", "--valid-rows", "8"]);
        let task = Path::new(env!("CARGO_MANIFEST_DIR")).join("tasks/demo.toml");
        std::fs::copy(task, at("task.toml")).unwrap();
        let config = format!(
            "preset = \"demo\"\ntask = {:?}\n[data]\ntrain = {:?}\nvalid = {:?}\nmax_train_rows = 32\n",
            at("task.toml"),
            data.join("train.jsonl"),
            data.join("valid.jsonl"),
        );
        std::fs::write(at("config.toml"), config).unwrap();
        let run = at("a");
        let runs = format!("run.root={}", root.path().display());
        let sets = [
            "device=cpu",
            "threads=2",
            "sft.rows_per_step=4",
            "sft.steps=2",
            "grpo.steps=3",
            "grpo.prompts_per_step=2",
            "grpo.group_size=4",
            "checkpoint.every_steps=1",
            "checkpoint.keep_last=9",
            "eval.every_steps=0",
            "run.name=a",
            &runs,
        ]
        .map(|set| ["--set", set])
        .concat();
        let output = rlvr(&[&["train", text(&at("config.toml"))], sets.as_slice()].concat());
        assert!(output.status.success(), "{}", said(&output));
        std::fs::remove_dir_all(run.join("model")).unwrap();
        std::fs::remove_dir_all(run.join("checkpoints/step-5")).unwrap();
        Self { root, run }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Flips the lowest bit of the last byte.
    fn flip(&self, name: &str) {
        let path = self.at(name);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    fn resume(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = rlvr(&[&["train", "--resume", text(&self.run)], more].concat());
        (output.status.code(), said(&output))
    }

    fn refuses(&self, words: &str) {
        let (code, said) = self.resume(&[]);
        assert!(code == Some(2) && said.contains(words), "{words}: {code:?} {said}");
    }
}

#[test]
fn what_a_run_reads_is_known_again() {
    let stopped = Stopped::new();
    let path = |name: &str| stopped.at(name);
    let train = std::fs::read_to_string(path("data/train.jsonl")).unwrap();
    let fewer: String = train.split_inclusive('\n').take(20).collect();
    std::fs::write(path("data/train.jsonl"), fewer).unwrap();
    let task = std::fs::read_to_string(path("task.toml")).unwrap();
    std::fs::write(path("task.toml"), format!("{task}\n# Another reward.\n")).unwrap();
    stopped.refuses("what it reads has changed since the checkpoint: data.train, task. Put it back");
    // What is refused is left as it was.
    std::fs::write(path("data/train.jsonl"), &train).unwrap();
    std::fs::write(path("task.toml"), &task).unwrap();
    let template = path("a/tokenizer/tokenizer_config.json");
    let before = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, format!("{before} ")).unwrap();
    stopped.refuses("tokenizer/tokenizer_config.json");
    let (code, said) = stopped.resume(&["--allow-changed"]);
    assert_eq!(code, Some(0), "{said}");
    let metrics = std::fs::read_to_string(path("a/metrics.jsonl")).unwrap();
    assert!(
        metrics.contains("what it reads has changed since the checkpoint: tokenizer/tokenizer_config.json")
    );
}

#[test]
fn a_reference_with_a_flipped_bit_is_refused_and_a_flipped_manifest_passed_over() {
    let stopped = Stopped::new();
    stopped.flip("a/reference/model.safetensors");
    stopped.refuses("a/reference: holds other weights than when the checkpoint was written");
    stopped.flip("a/reference/model.safetensors");
    let manifest = stopped.at("a/checkpoints/step-4/manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let line = text.lines().find(|line| line.contains("metrics_bytes")).unwrap();
    let (key, number) = line.split_once(": ").unwrap();
    let digit = if number.starts_with('1') { 2 } else { 1 };
    let fewer = format!("{key}: {digit}{}", &number[1..]);
    std::fs::write(&manifest, text.replace(line, &fewer)).unwrap();
    let (code, said) = stopped.resume(&[]);
    let damaged =
        said.lines().find(|line| line.contains("passed over a damaged checkpoint")).unwrap_or_default();
    assert!(code == Some(0) && damaged.contains("manifest.json: is damaged"), "{said}");
}

#[test]
fn a_checkpoint_of_before_digests_is_gone_on_with_and_that_is_said() {
    let stopped = Stopped::new();
    let checkpoint = stopped.at("a/checkpoints/step-4");
    let rewrite = |name: &str, edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let path = checkpoint.join(name);
        let mut object: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(object.as_object_mut().unwrap());
        std::fs::write(&path, object.to_string()).unwrap();
        path
    };
    let state = rewrite("state.json", &|state| {
        assert!(state.remove("inputs").is_some() && state.remove("reference").is_some());
    });
    let (bytes, digest) = (std::fs::metadata(&state).unwrap().len(), rlvr::run::sha256(&state).unwrap());
    rewrite("manifest.json", &|manifest| {
        manifest.remove("seal");
        manifest.insert("format".into(), 1.into());
        for file in manifest["files"].as_array_mut().unwrap().iter_mut().filter(|f| f["path"] == "state.json")
        {
            (file["bytes"], file["sha256"]) = (bytes.into(), digest.clone().into());
        }
    });
    let (code, said) = stopped.resume(&[]);
    assert!(code == Some(0) && said.contains("knows no digests"), "{said}");
}

#[test]
fn a_run_is_named_to_be_found_again_and_its_config_stays_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["stages=[\"sft\"]", "sft.steps=2"]);
    let nameless = rlvr(&["train", "demo", "--resume", "auto"]);
    let text = said(&nameless);
    assert!(
        nameless.status.code() == Some(2) && text.contains("run.name = absent") && text.contains("--set"),
        "{text}"
    );
    // Before the first step: there is nothing to keep, and the same command starts it again.
    let stopped = small.train("a", Some((TERM, 6)));
    let text = said(&stopped);
    assert!(
        stopped.status.code() == Some(75) && text.contains("has no checkpoint yet. Start it again with"),
        "{text}"
    );
    let again = small.train("a", None);
    assert!(again.status.success() && said(&again).contains("it starts at step 0"), "{}", said(&again));
    let longer = Small::new(dir.path(), &["stages=[\"sft\"]", "sft.steps=3"]).train("a", None);
    let text = said(&longer);
    assert!(longer.status.code() == Some(2) && text.contains("sft.steps was 2, is 3"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_terminal_that_closes_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["stages=[\"sft\"]"]);
    let mut command = small.command("a", Some((1, 40)));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Nobody reads what it says, either.
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(dir.path().join("a/model").is_dir());
}

#[test]
fn answers_that_were_stopped_or_killed_are_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["stages=[\"sft\"]", "sft.steps=30", "data.synthetic.valid_rows=60"]);
    assert!(small.train("a", None).status.success());
    let data = dir.path().join("data");
    stdout(&["data", "synth", "--out", text(&data), "--seed", "1", "--valid-rows", "60"]);
    let (model, rows) = (dir.path().join("a/model"), data.join("valid.jsonl"));
    let answer = |name: &str, out: &Path, at: Option<(u32, u64)>, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        command.args([
            name,
            text(&model),
            text(&rows),
            "--task",
            "demo",
            "--device",
            "cpu",
            "--threads",
            "2",
        ]);
        let flag = if name == "eval" { "--answers" } else { "-o" };
        command.args(["--max-completion-tokens", "12", "--resume", "auto", flag, text(out)]).args(more);
        if let Some((signal, visit)) = at {
            command.env("RLVR_SIGNAL_AT", format!("{signal}:{visit}"));
        }
        command.output().unwrap()
    };
    for name in ["predict", "eval"] {
        let whole = dir.path().join(format!("{name}.jsonl"));
        let output = answer(name, &whole, Some((0, 0)), &[]);
        assert!(output.status.success(), "{}", said(&output));
        let visits = said(&output)
            .lines()
            .find_map(|line| line.strip_prefix("visits: ")?.parse::<u64>().ok())
            .unwrap();
        let report = output.stdout;
        let want = std::fs::read_to_string(&whole).unwrap();
        assert_eq!(want.lines().count(), 60);
        for (signal, code) in [(TERM, Some(75)), (KILL, None)] {
            let out = dir.path().join(format!("{name}-{signal}.jsonl"));
            let output = answer(name, &out, Some((signal, visits * 3 / 4)), &[]);
            assert_eq!(output.status.code(), code, "{}", said(&output));
            if signal == TERM {
                assert!(
                    said(&output).contains("answers are written: the same command goes on"),
                    "{}",
                    said(&output)
                );
            }
            assert!(!out.exists() && dir.path().join(format!("{name}-{signal}.jsonl.partial")).is_file());
            let refused = answer(name, &out, None, &["--max-prompt-tokens", "999"]);
            assert!(
                refused.status.code() == Some(2) && said(&refused).contains("other flags"),
                "{}",
                said(&refused)
            );
            let output = answer(name, &out, None, &[]);
            let said = said(&output);
            let already = [" rows are answered already", " answers are there already"];
            let kept =
                said.lines().find_map(|line| already.iter().find_map(|words| line.strip_suffix(words)));
            assert!(output.status.success() && kept.is_some_and(|count| count != "0"), "{said}");
            assert!(std::fs::read_to_string(&out).unwrap() == want);
            assert_eq!(output.stdout, report, "{name}");
            assert!(!dir.path().join(format!("{name}-{signal}.jsonl.partial.json")).exists());
        }
    }
    let again =
        stdout(&["eval", "--predictions", text(&dir.path().join("eval.jsonl")), "--task", "demo", "--json"]);
    let first: Value =
        serde_json::from_slice(&answer("eval", &dir.path().join("json.jsonl"), None, &["--json"]).stdout)
            .unwrap();
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), first, "the answers, judged again");
}
