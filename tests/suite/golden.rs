//! Where the golden files are: values made once by reference implementations, kept outside the project.

use std::path::{Path, PathBuf};

/// The folder of golden files, or `None` (said on stderr) when there is none: the caller then returns.
///
/// `RLVR_GOLDEN_DIR` names it; CI sets that, and a named folder that is missing fails the test.
/// Unset, `../shared/golden` beside the project is used where it exists.
pub fn golden_dir() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let found = choose(std::env::var_os("RLVR_GOLDEN_DIR").map(PathBuf::from), &beside);
    if found.is_none() {
        eprintln!("golden files not found: skipped (set RLVR_GOLDEN_DIR to run this test)");
    }
    found
}

fn choose(named: Option<PathBuf>, beside: &Path) -> Option<PathBuf> {
    match named {
        Some(folder) => {
            assert!(
                folder.is_dir(),
                "RLVR_GOLDEN_DIR = {}: no such folder. Unset it to skip",
                folder.display()
            );
            Some(folder)
        }
        None => beside.is_dir().then(|| beside.to_path_buf()),
    }
}

#[test]
fn a_folder_beside_the_project_is_used_and_a_missing_one_skips() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(choose(None, here), Some(here.to_path_buf()));
    assert_eq!(choose(None, &here.join("no-such-folder")), None);
}

#[test]
#[should_panic(expected = "no such folder")]
fn a_named_folder_that_is_missing_fails() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    choose(Some(here.join("no-such-folder")), here);
}
