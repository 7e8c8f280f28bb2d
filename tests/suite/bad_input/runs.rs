//! Runs that cannot go on, and runs that did not start.

use std::path::Path;

use rlvr::run::RunDirectory;

use crate::support::room::{INPUT, Room, no_faults};

#[test]
fn a_run_that_cannot_go_on_says_why() {
    const RUN: &str = "train config.toml --set run.name=a";
    const RESUME: &str = "train --resume runs/a";
    type Spoil = fn(&Path);
    let checkpoint = |file: &str| format!("runs/a/checkpoints/step-1/{file}");
    let [manifest, state, weights] = ["manifest.json", "state.json", "model.safetensors"].map(checkpoint);
    let cases: [(&str, Spoil, &[&str]); 7] = [
        (RUN, |_| (), &["runs/a: is not empty", "another run.name", "--resume"]),
        ("train --resume runs", |_| (), &["runs: is not a run", "Name the directory"]),
        ("train --resume good.jsonl", |_| (), &["good.jsonl: is not a run", "Name the directory"]),
        (
            RESUME,
            |run| std::fs::remove_dir_all(run.join("checkpoints")).unwrap(),
            &["runs/a: has its model and no checkpoint", "another run.name"],
        ),
        (
            RESUME,
            |run| std::fs::write(run.join("checkpoints/step-1/manifest.json"), "{").unwrap(),
            &[&manifest, "is damaged", "Remove this checkpoint"],
        ),
        (
            RESUME,
            |run| std::fs::write(run.join("checkpoints/step-1/state.json"), "{}").unwrap(),
            &[&state, "is truncated: 2 of", "Remove this checkpoint"],
        ),
        (
            RESUME,
            |run| {
                let path = run.join("checkpoints/step-1/model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(path, bytes).unwrap();
            },
            &[&weights, "SHA-256", "Remove this checkpoint"],
        ),
    ];
    no_faults(cases.into_iter().map(|(words, spoil, says)| {
        let room = Room::new();
        assert_eq!(room.rlvr(RUN).0, Some(0));
        spoil(&room.at("runs/a"));
        room.fault(words, INPUT, says)
    }));
    let room = Room::new();
    assert_eq!(room.rlvr(RUN).0, Some(0));
    let _held = RunDirectory::open_for_resume(&room.at("runs/a")).unwrap();
    let process = format!("process {} is working in this run", std::process::id());
    no_faults([room.fault(RESUME, INPUT, &["runs/a: ", &process, "Wait for it"])].into_iter());
}

#[test]
fn a_run_that_did_not_start_leaves_its_name_free() {
    let room = Room::new();
    let words = "train config.toml --set run.name=a";
    no_faults(
        [room.fault(&format!("{words} --set data.valid=model"), INPUT, &["model: is a folder"])].into_iter(),
    );
    assert!(!room.at("runs/a").exists());
    let (code, stderr) = room.rlvr(words);
    assert_eq!(code, Some(0), "{stderr}");
}
