//! The machine that a command runs on, as the operating system describes it.

use std::path::Path;
use std::process::Command;

/// What the operating system says about the host; `None` where it does not say.
pub struct Host {
    pub cpu: Option<String>,
    pub cores: usize,
    /// The widest that this processor has of the instruction sets the CPU code uses.
    pub instructions: Vec<&'static str>,
    pub memory_total: Option<u64>,
    /// What new allocations can get without swapping.
    pub memory_free: Option<u64>,
}

impl Host {
    pub fn ask() -> Self {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let memory = |name| -> Option<u64> {
            let kib: u64 = field("/proc/meminfo", name)?.strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: instructions(),
            memory_total: memory("MemTotal"),
            memory_free: memory("MemAvailable"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// Bytes free for this user in the file system of `path`, or of its nearest folder that exists.
pub fn disk_free(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let folder = path.ancestors().find(|folder| folder.is_dir())?;
    // The standard library cannot ask this; POSIX df can: line 2, column 4, in KiB.
    let out = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kib << 10)
}

/// Versions of the libraries that compute, from the lock file this program was built with.
pub fn libraries() -> Vec<(&'static str, &'static str)> {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let value = |line: &'static str| line.split('"').nth(1);
    let packages = LOCK.split("[[package]]").filter_map(|package| {
        let mut lines = package.trim().lines();
        Some((lines.next().and_then(value)?, lines.next().and_then(value)?))
    });
    let names = ["candle-core", "cudarc", "gemm", "pulp", "rayon", "safetensors", "tokenizers"];
    packages.filter(|(name, _)| names.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_lock_file() {
        let found = libraries();
        assert!(found.iter().any(|(name, version)| *name == "candle-core" && version.starts_with("0.")));
        assert!(found.iter().any(|(name, _)| *name == "gemm"), "{found:?}");
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_has_the_space_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let free = disk_free(folder.path());
        assert_eq!(free.is_some(), disk_free(&folder.path().join("not/yet")).is_some());
    }
}
