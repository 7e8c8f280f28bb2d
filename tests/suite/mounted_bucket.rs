//! A run directory where a rename is no single act, as on a mounted bucket (`tests/doubles/preload/rename.c`): killed in the middle of one, the
//! run goes on, and ends as an unbroken one.

use crate::support::preload::preload;
use crate::support::seed;
use crate::support::small::{Draw, Small, left, said};

#[test]
fn a_run_killed_within_a_rename_that_copies_goes_on_bit_for_bit() {
    let Some(shim) = preload("rename") else { return };
    let times: u64 = std::env::var("RLVR_STOPS").map_or(6, |text| text.parse().unwrap());
    let root = tempfile::tempdir().unwrap();
    let small = Small::new(root.path(), &["checkpoint.every_steps=1", "grpo.reference_sync_steps=2"]);
    assert!(small.train("whole", None).status.success());
    let want = left(&root.path().join("whole"));
    let mut draw = Draw(seed::of_test());
    let (mut killed, mut rounds) = (0, 0);
    while killed < times {
        let run = root.path().join("broken");
        let _ = std::fs::remove_dir_all(&run);
        loop {
            // A whole run has some hundred such places.
            let at = 1 + draw.below(250);
            let mut command = small.command("broken", None);
            command.env("LD_PRELOAD", &shim);
            if killed < times {
                command.env("RLVR_BREAK_AT", at.to_string());
            }
            let output = command.output().unwrap();
            if output.status.success() {
                break;
            }
            assert_eq!(output.status.code(), None, "at place {at}: {}", said(&output));
            killed += 1;
            rounds += 1;
            assert!(rounds < 20 * times, "the run does not come to its end");
        }
        let got = left(&run);
        assert_eq!(got.0, want.0, "metrics after {killed} kills");
        for ((path, got), (other, want)) in got.1.iter().zip(&want.1) {
            assert!(path == other && got == want, "{} after {killed} kills", path.display());
        }
        assert_eq!(got.1.len(), want.1.len());
    }
    let _ = std::fs::remove_file(shim);
    println!("{killed} kills within a rename that copies: no run lost and no bit differs");
}
