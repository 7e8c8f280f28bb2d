//! `scripts/node`: what a Slurm job makes of each exit code, and that the lines of the other files are lines of rlvr.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::project;
use crate::support::runs::rlvr;

/// `rlvr.sbatch` with stand-ins for Slurm's commands and an rlvr that ends with `code`: its own code, and what was called.
fn job(code: u8) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let stand_in = |name: &str, body: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\" >>{}\n{body}\n", calls.display()))
            .unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    stand_in("srun", "exec \"$@\"");
    stand_in("scontrol", "");
    let binary = stand_in("rlvr", &format!("exit {code}"));
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.arg(project().join("scripts/node/rlvr.sbatch")).args(["demo", "--set", "seed=3"]);
    command.env("PATH", path).env("RLVR", binary).env("SLURM_JOB_ID", "417").current_dir(dir.path());
    let status = command.status().unwrap();
    (status.code(), std::fs::read_to_string(&calls).unwrap())
}

#[test]
fn a_slurm_job_that_was_stopped_is_requeued_and_every_other_end_is_its_own() {
    for code in [0, 1, 2, 75, 137] {
        let (ended, calls) = job(code);
        let requeued = calls.contains("scontrol requeue 417");
        assert_eq!((ended, requeued), if code == 75 { (Some(0), true) } else { (Some(code.into()), false) });
        assert!(
            calls.contains("rlvr train demo --set seed=3 --set run.name=job-417 --resume auto"),
            "{calls}"
        );
    }
}

#[test]
fn what_kubernetes_and_skypilot_start_is_a_command_of_this_rlvr() {
    let read = |name: &str| std::fs::read_to_string(project().join("scripts/node").join(name)).unwrap();
    let job = read("kubernetes-job.yaml");
    let lines = job.lines().map(str::trim).skip_while(|line| *line != "args:").skip(1);
    let args: Vec<&str> = lines.map_while(|line| line.strip_prefix("- ")).collect();
    let sky = read("sky.yaml");
    let run = sky.lines().find_map(|line| line.trim().strip_prefix("exec rlvr ")).unwrap();
    let run = run.replace("\"$CONFIG\"", "riskcue-llama3.1-8b").replace("\"$SKYPILOT_TASK_ID\"", "sky-1");
    for args in [args, run.split(' ').collect()] {
        assert!(
            args[..2] == ["train", "riskcue-llama3.1-8b"] && args.join(" ").contains("resume"),
            "{args:?}"
        );
        // Everything is read before the model, which is not here, is missed.
        let root = tempfile::tempdir().unwrap();
        let root = format!("run.root={}", root.path().display());
        let mut args = [&args[..], &["--set", "model.path=/none", "--set", &root]].concat();
        // The other one is of a GPU alone.
        args[1] = "riskcue-smollm2-135m";
        let out = rlvr(&args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains("/none"), "{args:?}: {said}");
    }
}

/// `scripts/node/try-stops.py` in small; in a mount namespace of its own where one may be had, for its full disks.
#[test]
fn stops_full_disks_and_little_memory_lose_nothing() {
    let python = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !python(&["python3", "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]) {
        eprintln!("python3 is not here: scripts/node/try-stops.py is not tried");
        return;
    }
    let spaces: [&[&str]; 3] = [&["unshare", "-m"], &["unshare", "-Urm"], &[]];
    let space = spaces.into_iter().find(|space| space.is_empty() || python(&[space, &["true"][..]].concat()));
    let script = project().join("scripts/node/try-stops.py");
    let mut words: Vec<&str> = space.unwrap_or_default().to_vec();
    words.extend(["python3", script.to_str().unwrap(), env!("CARGO_BIN_EXE_rlvr")]);
    words.extend(["--stops", "2", "--disks", "3", "--gib", "0", "--limited-gib", "0.02"]);
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("2 SIGTERM: stops that lost a step 0, bits that differ 0"), "{out}");
    for what in ["full disks", "limited memory: "] {
        assert!(out.contains(what), "{out}");
    }
    print!("{out}");
}
