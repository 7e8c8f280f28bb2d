//! Runs whose work hangs for ever: the watchdog says where, and ends them to be gone on with.
//!
//! `RLVR_HANG_AT=OP:TIME` (src/main.rs) lets a beginning of an op, or of a tensor's reading or writing, be the last.

use crate::support::small::{Small, left, said};

#[test]
fn a_run_that_hangs_anywhere_says_where_ends_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let small = |background| {
        let background = format!("checkpoint.background={background}");
        Small::new(dir.path(), &["checkpoint.every_steps=1", "run.stall_minutes=0.4", &background])
    };
    assert!(small(true).train("whole", None).status.success());
    let want = left(&dir.path().join("whole"));
    // Of sampling, the first is in the evaluation before any training. Beside a checkpoint that is written in the background one
    // more step is made, and the next one waits.
    let places = [
        (true, "sampling:1", "stage none yet, phase evaluating vanilla (", "after step 0, last op sampling"),
        (true, "adamw:1", "stage sft, phase sft (", "in step 1, last op adamw"),
        (
            false,
            "write a tensor:1",
            "stage sft, phase writing a checkpoint (",
            "after step 1, last op write a tensor",
        ),
        (true, "write a tensor:1", "stage sft, phase writing a checkpoint (", "after step 2, last op "),
        (true, "read a tensor:1", "phase writing the final model (", "last op read a tensor"),
    ];
    std::thread::scope(|scope| {
        for (number, (background, at, phase, op)) in places.into_iter().enumerate() {
            let (small, want, dir) = (&small, &want, dir.path());
            scope.spawn(move || {
                let (small, name) = (small(background), format!("hung-{number}"));
                let output = small.command(&name, None).env("RLVR_HANG_AT", at).output().unwrap();
                let text = said(&output);
                assert_eq!(output.status.code(), Some(75), "{at}: {text}");
                let line = text.lines().find(|line| line.starts_with("error: nothing has happened for 0:"));
                let line = line.unwrap_or_else(|| panic!("{at}: {text}"));
                assert!(line.contains("(run.stall_minutes): ") && line.contains(phase), "{at}: {line}");
                assert!(line.contains(op), "{at}: {line}");
                let kept = text.lines().rfind(|line| line.starts_with("stopped: "));
                assert!(kept.is_some_and(|line| line.contains("rlvr train --resume ")), "{at}: {text}");
                let again = small.train(&name, None);
                assert!(again.status.success(), "{at}: {}", said(&again));
                assert!(
                    left(&dir.join(&name)) == *want,
                    "{at}: a run that hung comes out as one that did not"
                );
            });
        }
    });
}
