//! Where the golden files are: what reference implementations compute, made once (tests/golden/README.md).

use std::path::{Path, PathBuf};

/// `tests/golden`, or the folder that `RLVR_GOLDEN_DIR` names.
///
/// # Panics
/// Where `RLVR_GOLDEN_DIR` names no folder.
pub fn golden_dir() -> PathBuf {
    choose(std::env::var_os("RLVR_GOLDEN_DIR").map(PathBuf::from))
}

fn choose(named: Option<PathBuf>) -> PathBuf {
    let Some(folder) = named else { return Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden") };
    assert!(
        folder.is_dir(),
        "RLVR_GOLDEN_DIR = {}: no such folder. Unset it to use tests/golden",
        folder.display()
    );
    folder
}

#[test]
fn the_projects_own_files_are_used_and_another_folder_where_it_is_named() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(choose(None).join("losses.json").is_file());
    assert_eq!(choose(Some(here.into())), here);
}

#[test]
#[should_panic(expected = "no such folder")]
fn a_named_folder_that_is_missing_fails() {
    choose(Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("no-such-folder")));
}
