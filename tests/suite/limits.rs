//! Numbers at their ends: refused with exit code 2, or heard out; never a panic and never a hang.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rlvr::config::keys;

/// A command's exit code and what it says; none where it had to be ended.
fn within(seconds: u64, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = child.try_wait().unwrap().is_some();
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().filter(|_| ended), says)
}

#[test]
fn a_config_at_the_upper_ends_of_its_numbers_is_refused_or_planned() {
    let few = ["sft_rows", "grpo_rows", "valid_rows"].map(|name| format!("data.synthetic.{name}=64"));
    // Of the others none sizes anything; that they are refused or taken, a unit test says.
    for key in keys::all().filter(|key| key.range.is_some() && key.takes.contains("whole number")) {
        let most = key.range.unwrap().most;
        let list = key.takes.starts_with("list");
        let value = if list { format!("[{most:.0}]") } else { format!("{most:.0}") };
        let set = format!("{}={value}", key.path);
        let mut args = vec!["train", "demo", "--dry-run"];
        few.iter().chain([&set]).for_each(|set| args.extend(["--set", set.as_str()]));
        let (code, says) = within(120, &args);
        assert!(matches!(code, Some(0 | 2)) && !says.contains("panicked"), "{set}: {code:?} {says}");
    }
}

#[test]
fn flags_beyond_their_ranges_are_refused_by_every_command() {
    for args in [
        &["doctor", "--threads", "4294967295"][..],
        &["eval", "x", "y", "--threads", "4294967295"],
        &["eval", "x", "y", "--samples", "18446744073709551615", "--temperature", "1"],
        &["eval", "x", "y", "--max-completion-tokens", "9223372036854775807"],
        &["eval", "x", "y", "--temperature", "nan"],
        &["predict", "x", "y", "--max-completion-tokens", "4294967296"],
        &["predict", "x", "y", "--max-prompt-tokens", "18446744073709551615"],
        &["export", "x", "y", "--format", "hf", "--probe-rows", "18446744073709551615"],
        &["data", "synth", "--out", "x", "--rows", "4000000000"],
        &["data", "split", "x", "--task", "demo", "--out", "y", "--near", "inf"],
        &["plan", "--memory-gib=-1"],
        &["bench", "step", "--group-size", "18446744073709551615"],
        &["ablate", "ablate-demo", "--price-per-hour", "1e300"],
    ] {
        let (code, says) = within(60, args);
        let named = says.contains("must be from ") || says.contains("too large");
        assert!(code == Some(2) && named, "{args:?}: {code:?} {says}");
    }
    let (code, says) = within(60, &["train", "demo", "--set", "data.synthetic.sft_rows=4000000000"]);
    assert!(code == Some(2) && says.contains("sft_rows = 4000000000: must be from 0 to 100000,"), "{says}");
}
