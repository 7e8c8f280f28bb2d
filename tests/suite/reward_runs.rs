//! Rewards as programs in whole runs of the real binary: equal to the built-in ones where they compute the same, stopped and
//! gone on with, and never started unless that was allowed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::judges::{Bench, ask, values};
use crate::support::project;
use crate::support::runs::{copy, held_out, rlvr, rows, text, train_command};

/// The demo's task with more rewards.
fn demo_task(folder: &Path, name: &str, extra: &str) -> PathBuf {
    let demo = std::fs::read_to_string(project().join("tasks/demo.toml")).unwrap();
    let (_, demo) = demo.split_once('\n').unwrap();
    let path = folder.join(name);
    std::fs::write(&path, format!("{demo}\n[extra_rewards.judge]\nweight = 0.5\n{extra}\n")).unwrap();
    path
}

const PROGRAM: &str = "program = { command = [\"python3\", \"judge.py\"] }";

/// Says of an outcome what a table does. In step 4 it breaks where a file `broken` lies; where one is called `slow` it never answers
/// but to the probe.
const JUDGE: &str = r#"import json, os, sys, time
with open("pids", "a") as f: f.write(f"{os.getpid()}\n")
EARNS = {"exact_positive": 1.0, "exact_negative": 0.5, "malformed": -0.25}
for line in sys.stdin:
    asked = json.loads(line)
    if asked["id"] != "probe" and os.path.exists("slow"):
        open("asked", "w").close()
        time.sleep(3600)
    if asked["id"].startswith("4.") and os.path.exists("broken"):
        sys.exit("no model is loaded")
    print(json.dumps({"id": asked["id"], "reward": EARNS.get(asked["outcome"], 0.0)}), flush=True)
"#;

/// Steps and evaluations without what depends on the clock and the memory, and without what only asked rewards have.
fn metrics(run: &Path) -> Vec<Value> {
    let mut events = rows(&run.join("metrics.jsonl"));
    events.retain(|event| event["event"] == "step" || event["event"] == "evaluation");
    for event in &mut events {
        event.as_object_mut().unwrap().retain(|key, _| {
            let clock =
                key.starts_with("time/") || key.starts_with("memory/") || key == "rewards/judge/failed";
            !(clock || matches!(key.as_str(), "step_time" | "tokens_per_second"))
        });
    }
    events
}

fn run(root: &Path, name: &str, task: &Path, more: &[&str]) -> Output {
    let task = format!("task={}", task.display());
    let sets = [&[task.as_str(), "checkpoint.keep_last=12", "checkpoint.every_steps=1"], more].concat();
    train_command(root, name, &sets).arg("--allow-programs").output().unwrap()
}

fn resume(run: &Path, more: &[&str]) -> Output {
    rlvr(&[&["train", "--resume", text(run)], more].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_program_that_computes_what_the_table_does_trains_the_same_weights_stopped_or_not() {
    let bench = Bench::new();
    let root = bench.dir.path();
    std::fs::write(bench.path("judge.py"), JUDGE).unwrap();
    let table = "exact_positive = 1.0\nexact_negative = 0.5\nmalformed = -0.25";
    let (built_in, program) =
        (demo_task(root, "table.toml", table), demo_task(root, "program.toml", PROGRAM));
    for (name, task) in [("table", &built_in), ("program", &program)] {
        let output = run(root, name, task, &["grpo.combine_rewards=normalize_then_sum"]);
        assert!(output.status.success(), "{}", said(&output));
    }
    let weights = |name: &str| std::fs::read(root.join(name).join("model/model.safetensors")).unwrap();
    let want = metrics(&root.join("table"));
    assert_eq!(metrics(&root.join("program")), want);
    assert!(weights("program") == weights("table"));
    let step = want.iter().rfind(|event| event["event"] == "step").unwrap();
    assert!(step["rewards/judge/mean"].is_number() && step["rewards/demo/std"].is_number(), "{step}");
    let asked = rows(&root.join("program/metrics.jsonl"));
    let asked = asked.iter().rfind(|event| event["event"] == "step").unwrap();
    assert!(asked["rewards/judge/failed"] == 0.0 && asked["time/reward"].as_f64().unwrap() > 0.0, "{asked}");

    // Stopped after the second step of GRPO, and gone on with.
    copy(&root.join("program"), &root.join("resumed"));
    std::fs::remove_dir_all(root.join("resumed/model")).unwrap();
    for step in 8..=11 {
        std::fs::remove_dir_all(root.join(format!("resumed/checkpoints/step-{step}"))).unwrap();
    }
    let output = resume(&root.join("resumed"), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("add --allow-programs"), "{}", said(&output));
    let output = resume(&root.join("resumed"), &["--allow-programs"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(metrics(&root.join("resumed")), want);
    assert!(weights("resumed") == weights("table"));

    // It breaks in the fourth step: the third is kept. Once it is mended nothing shows.
    std::fs::write(bench.path("broken"), "").unwrap();
    let output = run(root, "broken-run", &program, &["grpo.combine_rewards=normalize_then_sum"]);
    let error = said(&output);
    assert_eq!(output.status.code(), Some(75), "{error}");
    assert!(
        error.contains("error: extra_rewards.judge, synthetic logs:") && error.contains("no model is loaded"),
        "{error}"
    );
    assert!(
        error.contains("checkpoints/step-8 has the run after 8 steps. Go on with: rlvr train --resume "),
        "{error}"
    );
    assert!(error.trim_end().ends_with("--allow-programs"), "{error}");
    bench.assert_all_gone();
    std::fs::remove_file(bench.path("broken")).unwrap();
    let output = resume(&root.join("broken-run"), &["--allow-programs"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(metrics(&root.join("broken-run")), want);
    assert!(weights("broken-run") == weights("table"));

    // Another program is another reward.
    std::fs::write(bench.path("judge.py"), format!("{JUDGE}# as before\n")).unwrap();
    std::fs::remove_dir_all(root.join("resumed/model")).unwrap();
    let output = resume(&root.join("resumed"), &["--allow-programs"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("extra_rewards.judge/judge.py"), "{}", said(&output));
    bench.assert_all_gone();
}

#[test]
fn nothing_starts_unless_it_is_allowed_and_what_is_allowed_is_tried_first() {
    let bench = Bench::new();
    let root = bench.dir.path();
    std::fs::write(bench.path("judge.py"), JUDGE).unwrap();
    let task = demo_task(root, "task.toml", PROGRAM);
    let set = format!("task={}", task.display());
    let train = |flags: &[&str]| {
        let output = train_command(root, "run", &[&set]).args(flags).output().unwrap();
        (output.status.code(), said(&output), String::from_utf8(output.stdout).unwrap())
    };
    let (code, error, _) = train(&[]);
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains(
            "task `demo`: its rewards run what somebody wrote: judge runs `python3 judge.py`. Read it"
        ),
        "{error}"
    );
    let (code, _, out) = train(&["--dry-run"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("judge runs `python3 judge.py`: not tried; add --allow-programs"), "{out}");
    let data = held_out(root);
    let check = ["data", "check", text(&data), "--task", text(&task)];
    assert!(
        String::from_utf8(rlvr(&check).stdout)
            .unwrap()
            .contains("reward      judge runs `python3 judge.py`: not tried")
    );
    let audit = ["data", "audit", text(&data), "--task", text(&task), "--reward-rows", "4"];
    assert_eq!(rlvr(&audit).status.code(), Some(2));
    assert!(bench.pids().is_empty() && !root.join("run").exists(), "a program was started");

    let (code, _, out) = train(&["--dry-run", "--allow-programs"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("judge says ") && out.contains(" of the answer to synthetic logs:1"), "{out}");
    let output = rlvr(&[&check[..], &["--allow-programs"]].concat());
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("reward      judge says ") && out.contains("valid.jsonl:1"), "{out}");
    let output = rlvr(&[&audit[..], &["--allow-programs"]].concat());
    let out = String::from_utf8(output.stdout).unwrap();
    let part = out.split("all rewards, on the first 4 rows").nth(1).unwrap_or_else(|| panic!("{out}"));
    let cell = |name: &str| -> Vec<f64> {
        let line =
            part.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {part}"));
        line.split_whitespace().map(|cell| cell.parse().unwrap()).collect()
    };
    // The sum, the table's, the program's.
    let right = cell("the right answers ");
    assert!(right[1] == 1.0 && (right[0] - (right[1] + 0.5 * right[2])).abs() < 1e-3, "{part}");
    assert_eq!(cell("silence "), [-0.125, 0.0, -0.25]);

    // A program that does not answer ends the run before it has begun, whatever on_error says.
    std::fs::write(bench.path("judge.py"), "raise SystemExit('no key')").unwrap();
    demo_task(root, "task.toml", "program = { command = [\"python3\", \"judge.py\"], on_error = 0.0 }");
    for flags in [&["--allow-programs"][..], &["--allow-programs", "--dry-run"]] {
        let (code, error, _) = train(flags);
        assert_eq!(code, Some(2), "{error}");
        assert!(
            error.contains("error: extra_rewards.judge, synthetic logs:1: it ended (exit status: 1)"),
            "{error}"
        );
        assert!(error.contains("no key") && !root.join("run").exists(), "{error}");
    }
    let enumerate = ["stages=[\"enumerate\"]", &set];
    let output = train_command(root, "run", &enumerate).arg("--allow-programs").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("no table of outcomes"), "{}", said(&output));
    bench.assert_all_gone();
}

#[test]
fn a_run_that_is_killed_or_stopped_leaves_no_process_behind() {
    for (signal, code) in [("-KILL", None), ("-TERM", Some(75))] {
        let bench = Bench::new();
        let root = bench.dir.path();
        // A child that outlives its parent, too.
        let child = "import subprocess\nwith open('pids', 'a') as f: f.write(f\"{subprocess.Popen(['sleep', '3600']).pid}\\n\")\n";
        std::fs::write(bench.path("judge.py"), format!("{child}{JUDGE}")).unwrap();
        std::fs::write(bench.path("slow"), "").unwrap();
        let task = demo_task(root, "task.toml", PROGRAM);
        let mut command = train_command(root, "run", &[&format!("task={}", task.display())]);
        command.arg("--allow-programs").stdout(Stdio::null()).stderr(Stdio::null());
        let mut run = command.spawn().unwrap();
        while !bench.path("asked").exists() {
            assert!(run.try_wait().unwrap().is_none(), "the run ended before it asked");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let pid = run.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(run.wait().unwrap().code(), code, "{signal}");
        assert!(bench.pids().len() >= 4, "{signal}");
        bench.assert_all_gone();
    }
}

#[test]
fn a_reward_function_of_trl_is_a_program() {
    let bench = Bench::new();
    std::fs::copy(project().join("examples/reward_trl.py"), bench.path("reward_trl.py")).unwrap();
    let function = "def longer(prompts, completions, number, **kwargs) -> list[float]:\n    \
                    print('this is no answer')\n    \
                    return [len(c[0]['content']) + n / 4 for c, n in zip(completions, number)]\n";
    std::fs::write(bench.path("mine.py"), function).unwrap();
    let task = bench.task("program = { command = [\"python3\", \"reward_trl.py\", \"mine\", \"longer\"] }");
    let (said, warnings) = ask(&task, &["no", "yes", "?"]).unwrap();
    assert_eq!((values(&said), warnings), (vec![2.0, 3.25, 1.5], Vec::new()));
    // TRL's word for "not for this row" is no number.
    std::fs::write(bench.path("mine.py"), "def longer(prompts, completions, **kwargs):\n    return [None]\n")
        .unwrap();
    let error = ask(&task, &["no"]).unwrap_err().to_string();
    assert!(error.contains("the reward null is no finite number"), "{error}");
}
