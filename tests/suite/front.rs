//! The command at its edges: readers that go away, full disks, interrupts, and what a run says first.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::runs::{rlvr, text};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
    command.args(args);
    command
}

#[test]
fn a_reader_that_closes_its_end_ends_a_command_quietly() {
    for args in
        [&["train", "demo", "--dry-run"][..], &["plan", "--model", "smollm2-135m"], &["doctor", "--list"]]
    {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{args:?}: {said}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line() {
    for args in [&["train", "demo", "--dry-run"][..], &["plan", "--model", "smollm2-135m"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            said.starts_with("error: stdout: cannot write: ") && said.lines().count() == 1,
            "{args:?}: {said}"
        );
    }
}

/// A demo of so few and short rows that a step takes no time.
fn tiny(root: &Path, sets: &[&str]) -> Vec<String> {
    let root = format!("run.root={}", root.display());
    let small = [
        "device=cpu",
        "data.synthetic.sft_rows=64",
        "data.synthetic.valid_rows=8",
        "stages=[\"sft\"]",
        "sft.rows_per_step=2",
        "run.name=a",
        root.as_str(),
    ];
    let sets = small.iter().chain(sets).flat_map(|set| ["--set".to_string(), set.to_string()]);
    ["train", "demo"].map(String::from).into_iter().chain(sets).collect()
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_says_what_is_kept_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let args = tiny(dir.path(), &["sft.steps=100000", "checkpoint.every_steps=3"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let run = dir.path().join("a");
    let has_checkpoint = || {
        run.join("checkpoints").read_dir().is_ok_and(|mut found| {
            found.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("step-")))
        })
    };
    let start = Instant::now();
    while !has_checkpoint() && start.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    let words = said.lines().last().unwrap();
    assert!(words.starts_with("stopped: ") && words.contains("checkpoints/step-"), "{said}");
    assert!(words.ends_with(&format!("Go on with: rlvr train --resume {}", run.display())), "{words}");
    // It does, for the little that is left by its config.
    let config = run.join("config.resolved.toml");
    let resolved = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, resolved.replace("steps = 100000", "steps = 3")).unwrap();
    let output = rlvr(&["train", "--resume", text(&run)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_run_says_first_what_it_drops() {
    let dir = tempfile::tempdir().unwrap();
    let train = |sets: &[&str]| {
        let args = tiny(dir.path(), sets);
        let output = rlvr(&args.iter().map(String::as_str).collect::<Vec<_>>());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (fine, said) = train(&["sft.steps=1"]);
    assert!(fine && said.contains("synthetic validation logs: 8 rows, none too long\n"), "{said}");
    let (fine, said) = train(&["sft.steps=1", "run.name=b", "data.max_prompt_tokens=90"]);
    let line = said.lines().find(|line| line.contains("synthetic logs for SFT: ")).unwrap();
    assert!(
        fine && line.starts_with("warning: ") && line.contains(": prompt longer than max_prompt_tokens = 90")
    );
    assert!(line.contains("Safe ") && line.ends_with(" would keep 95%"), "{line}");
}
