//! Shared objects that stand between a program and the system (`tests/doubles/preload`).

use std::path::{Path, PathBuf};
use std::process::Command;

/// To be named by LD_PRELOAD. `None`, said on stderr, where there is no C compiler.
pub fn preload(name: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/doubles/preload/{name}.c"));
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.so", std::process::id()));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let flags = ["-shared", "-fPIC", "-O1", "-o"];
    let Ok(compiled) = Command::new(&compiler).args(flags).arg(&made).arg(source).arg("-ldl").status() else {
        eprintln!("left out: no C compiler ({compiler})");
        return None;
    };
    assert!(compiled.success());
    Some(made)
}
