//! Several processes that train together: what they make is what one makes, whoever is stopped, killed or hangs, and whatever number of
//! them goes on.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::support::ranks::{as_one, by_hand, cut, ended, lively, train};
use crate::support::runs::{rows, stdout, text};
use crate::support::seed;
use crate::support::small::{Draw, Small, left, said, steps};

/// One thread a rank, so that sums are cut the same way however many there are.
const ONE_THREAD: &str = "threads=1";

#[test]
fn any_number_of_ranks_trains_as_one() {
    for (kind, sets) in [
        ("full", &["grpo.updates_per_rollout=2", "grpo.minibatches=2", "grpo.kl_coef=0.1"][..]),
        // Two or more passes on some ranks, fewer on others.
        (
            "zero2",
            &[
                "pack.shard=zero2",
                "pack.max_tokens_per_pack=230",
                "pack.max_reused_tokens=0",
                "grpo.kl_coef=0.1",
            ],
        ),
        ("lora", &["lora.rank=4", "lora.stages=fresh", "grpo.kl_coef=0.1"]),
        (
            "reward",
            &[
                "grpo.loss.type=dapo",
                "grpo.kl_coef=0.05",
                "grpo.kl_in=reward",
                "grpo.max_resamples=2",
                "grpo.top_entropy_quantile=0.5",
            ],
        ),
        (
            "enumerate",
            &["stages=[\"sft\", \"enumerate\"]", "enumerate.steps=3", "enumerate.prompts_per_step=5"],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // Five prompts are no multiple of any number of ranks, and three rows are fewer than four ranks.
        let task = if kind == "enumerate" { "task=demo".into() } else { lively(dir.path()) };
        let sets = [sets, &[ONE_THREAD, "sft.rows_per_step=3", "grpo.prompts_per_step=5", &task]].concat();
        let small = Small::new(dir.path(), &sets);
        assert!(small.train("one", None).status.success());
        for ranks in 2..=4 {
            let name = format!("of-{ranks}");
            let output = train(&small, &name, ranks);
            assert!(output.status.success(), "{kind}, {ranks} ranks: {}", said(&output));
            as_one(&dir.path().join("one"), &dir.path().join(&name), 2e-4);
            let log = std::fs::read_to_string(dir.path().join(&name).join("ranks/1/log.txt")).unwrap();
            assert!(log.contains("sft step 1") && log.contains("loss"), "{log}");
        }
        let again = train(&small, "again", 3);
        assert!(again.status.success(), "{}", said(&again));
        let (a, b) = (left(&dir.path().join("of-3")), left(&dir.path().join("again")));
        assert!(a == b, "{kind}: three ranks twice are not the same to the bit");
    }
}

#[test]
fn a_run_goes_on_with_any_number_of_ranks() {
    // A moment in one byte that rounds the other way moves a weight by more than rounding.
    for (sets, bound) in [
        (&["grpo.kl_coef=0.1"][..], 1e-4),
        (&["sft.optim.moments=int8", "grpo.optim.moments=int8"], 0.02),
        (&["lora.rank=4"], 1e-4),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let task = lively(dir.path());
        let every = [ONE_THREAD, "checkpoint.every_steps=1", "checkpoint.keep_last=99", &task];
        let small = Small::new(dir.path(), &[sets, &every].concat());
        assert!(small.train("one", None).status.success());
        let output = train(&small, "moved", 3);
        assert!(output.status.success(), "{}", said(&output));
        let whole = left(&dir.path().join("moved"));
        // Within the warm-up, at its end, within GRPO: three wrote it, so many go on.
        for (step, ranks) in [(2, 3), (6, 3), (2, 1), (4, 2), (5, 4), (6, 1)] {
            cut(&dir.path().join("moved"), step);
            let output = train(&small, "moved", ranks);
            assert!(output.status.success(), "{sets:?} from {step} with {ranks}: {}", said(&output));
            as_one(&dir.path().join("one"), &dir.path().join("moved"), bound);
            if ranks == 3 {
                assert!(left(&dir.path().join("moved")) == whole, "{sets:?} from {step}: a bit differs");
            }
        }
    }
}

#[test]
fn a_program_judges_for_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("length.py");
    std::fs::write(
        &program,
        "import json, sys\nfor line in sys.stdin:\n    q = json.loads(line)\n    print(json.dumps({'id': q['id'], 'reward': len(q['completion']) / 100}), flush=True)\n",
    )
    .unwrap();
    let demo = std::fs::read_to_string(crate::support::project().join("tasks/demo.toml")).unwrap();
    let task = dir.path().join("task.toml");
    let with = format!(
        "{demo}\n[extra_rewards.length]\nweight = 0.5\n[extra_rewards.length.program]\ncommand = [\"python3\", \"{}\"]\n",
        program.display()
    );
    std::fs::write(&task, with).unwrap();
    let small =
        Small::new(dir.path(), &[ONE_THREAD, "grpo.prompts_per_step=3", &format!("task={}", text(&task))]);
    for (name, ranks) in [("one", 1), ("two", 2)] {
        let mut command = small.command(name, None);
        let output = command.args(["--allow-programs", "--ranks", &ranks.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    as_one(&dir.path().join("one"), &dir.path().join("two"), 2e-4);
    let line =
        rows(&dir.path().join("two/metrics.jsonl")).into_iter().find(|line| line["stage"] == "grpo").unwrap();
    assert!(line["rewards/length/mean"].as_f64().unwrap() > 0.0, "{line}");
}

/// Stops or kills one of three ranks at visits that the seed draws, until so many runs were broken; then a run goes on and is compared.
fn one_of_three(signal: u32, times: u64) {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &[ONE_THREAD, "checkpoint.every_steps=1", "grpo.kl_coef=0.1"]);
    let output = train(&small, "whole", 3);
    assert!(output.status.success(), "{}", said(&output));
    let want = left(&dir.path().join("whole"));
    let visits = small.visits("alone") / 3;
    let mut draw = Draw(seed::of_test());
    let run = dir.path().join("broken");
    for _ in 0..times {
        let (rank, visit) = (draw.below(3) as usize, 1 + draw.below(visits));
        let before = steps(&run);
        let all = ended(by_hand(&small, "broken", 3, |of, command| {
            if of == rank {
                command.env("RLVR_SIGNAL_AT", format!("{signal}:{visit}"));
            }
        }));
        let what = format!("signal {signal} to rank {rank} at visit {visit}: {all:#?}");
        match signal {
            // Rank 0 may have ended its work before the wish came.
            15 => assert!(all.iter().all(|(code, _)| matches!(code, Some(0 | 75))), "{what}"),
            _ => {
                for (of, (code, said)) in all.iter().enumerate() {
                    match of == rank {
                        true => assert!(matches!(code, None | Some(0)), "{what}"),
                        false if all[rank].0 == Some(0) => assert_eq!(*code, Some(0), "{what}"),
                        false => {
                            assert_eq!(*code, Some(75), "{what}");
                            assert!(said.contains("rank ") && said.contains(" is gone"), "{what}");
                        }
                    }
                }
            }
        }
        assert!(signal != 15 || steps(&run) >= before, "a stop lost a step: {what}");
    }
    let output = train(&small, "broken", 3);
    assert!(output.status.success(), "{}", said(&output));
    let got = left(&run);
    assert_eq!(got.0, want.0, "metrics after {times} breaks");
    assert!(got == want, "files after {times} breaks");
}

#[test]
fn a_signal_to_one_rank_stops_all_and_loses_no_step() {
    one_of_three(15, 6);
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_goes_on() {
    one_of_three(9, 6);
}

#[test]
fn a_rank_that_hangs_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &[ONE_THREAD]);
    // SIGSTOP, within the first steps.
    let mut ranks = by_hand(&small, "run", 3, |rank, command| {
        if rank == 2 {
            command.env("RLVR_SIGNAL_AT", "19:40");
        }
    });
    let mut stopped = ranks.pop().unwrap();
    for (code, said) in ended(ranks) {
        assert_eq!(code, Some(75), "{said}");
        assert!(said.contains("rank 2 on ") && said.contains("no sign of life"), "{said}");
    }
    stopped.kill().unwrap();
    stopped.wait().unwrap();
}

#[test]
fn the_wish_to_stop_reaches_ranks_that_rlvr_started() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &[ONE_THREAD, "grpo.steps=100000", "eval.every_steps=0"]);
    let mut command = small.command("run", None);
    command.args(["--ranks", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    while steps(&dir.path().join("run")) < 6 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(said(&output).contains("rlvr train --resume "), "{}", said(&output));
}

#[test]
fn what_ranks_cannot_do_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &[ONE_THREAD]);
    let says = |env: &[(&str, &str)], more: &[&str], parts: &[&str]| {
        let mut command = small.command("run", None);
        let output = command.args(more).envs(env.iter().copied()).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{env:?} {more:?}: {text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{env:?} {more:?}: {text}");
    };
    says(&[("RANK", "2"), ("WORLD_SIZE", "2")], &[], &["rank 2 of 2"]);
    says(&[("RANK", "0")], &[], &["WORLD_SIZE", "not set"]);
    says(
        &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")],
        &["--ranks", "2"],
        &["--ranks", "Leave it out"],
    );
    says(&[], &["--ranks", "0"], &["--ranks"]);
    says(
        &[
            ("SKYPILOT_NODE_RANK", "1"),
            ("SKYPILOT_NUM_NODES", "2"),
            ("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2"),
        ],
        &[],
        &["node 1 of 2", "--ranks N"],
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    says(
        &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)],
        &[],
        &["cannot listen", "MASTER_PORT"],
    );
    for command in ["eval", "predict", "ablate"] {
        let words = if command == "ablate" { vec![command, "x"] } else { vec![command, "x", "y"] };
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        let output = command
            .args(&words)
            .env("RANK", "0")
            .env("WORLD_SIZE", "2")
            .env("MASTER_ADDR", "h")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", said(&output));
        assert!(said(&output).contains("this is rank 0 of 2"), "{words:?}: {}", said(&output));
    }
}

#[test]
fn ranks_that_do_not_belong_together_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &[ONE_THREAD]);
    // Another job at the port of this one.
    let mut ranks = by_hand(&small, "run", 2, |rank, command| {
        if rank == 1 {
            command.env("TORCHELASTIC_RUN_ID", "other");
        }
    });
    let other = ranks.pop().unwrap().wait_with_output().unwrap();
    assert_eq!(other.status.code(), Some(2), "{}", said(&other));
    assert!(said(&other).contains("another job"), "{}", said(&other));
    // Rank 0 waits for a rank 1 that belongs to it.
    let mut first = ranks.pop().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    // The same path, other rows.
    let mut sets = vec!["device=cpu", ONE_THREAD, "stages=[\"sft\"]", "sft.steps=2", "sft.rows_per_step=4"];
    sets.extend(["data.train=data/train.jsonl", "data.valid=data/valid.jsonl"]);
    for (place, seed) in [("here", "1"), ("there", "2")] {
        let folder = dir.path().join(place).join("data");
        let words =
            ["data", "synth", "--out", text(&folder), "--seed", seed, "--rows", "32", "--valid-rows", "8"];
        stdout(&words);
    }
    let all = ended(by_hand(&small, "rows", 2, |rank, command| {
        *command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        command.args([
            "train",
            "demo",
            "--set",
            "run.name=rows",
            "--set",
            &format!("run.root={}", dir.path().display()),
        ]);
        for set in &sets {
            command.args(["--set", set]);
        }
        command.current_dir(dir.path().join(if rank == 0 { "here" } else { "there" }));
    }));
    for (code, said) in &all {
        assert_eq!(*code, Some(2), "{all:#?}");
        assert!(said.contains("rank 1 on ") && said.contains("data.train"), "{all:#?}");
    }
}
