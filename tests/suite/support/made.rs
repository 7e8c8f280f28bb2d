//! Files of the project that are made from its source.

use std::path::PathBuf;

/// The file is what it would be made to be now, or is made so.
pub fn hold(name: &str, now: String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("RLVR_UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = there.lines().zip(now.lines()).find(|(a, b)| a != b);
    assert!(
        there == now,
        "{name} is not what the source says (first difference: {differs:?}); write it with\n    \
         RLVR_UPDATE=1 cargo test --release --test suite reference"
    );
}
