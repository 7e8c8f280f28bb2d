//! The machine that a command runs on, as the operating system describes it.

use std::path::Path;

use super::cgroup::{MemoryLimit, memory_limit};

/// What the operating system says about the host; `None` where it does not say.
pub struct Host {
    pub cpu: Option<String>,
    pub cores: usize,
    /// The widest that this processor has of the instruction sets the CPU code uses.
    pub instructions: Vec<&'static str>,
    pub memory_total: Option<u64>,
    /// What new allocations can get without swapping and within [`Self::memory_limit`].
    pub memory_free: Option<u64>,
    /// Of the process's control groups.
    pub memory_limit: Option<MemoryLimit>,
}

impl Host {
    pub fn ask() -> Self {
        Self::of(Path::new("/"))
    }

    /// As the files below `root` describe it, which are those of `/`.
    pub fn of(root: &Path) -> Self {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(root.join(file)).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let memory = |name| -> Option<u64> {
            let kib: u64 = field("proc/meminfo", name)?.strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        let memory_limit = memory_limit(root);
        let room = memory_limit.iter().map(|limit| limit.room);
        Self {
            cpu: field("proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: instructions(),
            memory_total: memory("MemTotal"),
            memory_free: memory("MemAvailable").into_iter().chain(room).min(),
            memory_limit,
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
    free_at(folder)
}

#[cfg(unix)]
fn free_at(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

#[cfg(not(unix))]
fn free_at(_: &Path) -> Option<u64> {
    None
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
    fn a_limit_of_the_group_is_what_is_free() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:  33554432 kB\nMemAvailable:  17825792 kB\n");
        assert_eq!(Host::of(root.path()).memory_free, Some(17 << 30));
        write("proc/self/cgroup", "0::/\n");
        write("proc/self/mountinfo", "31 23 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        write("sys/fs/cgroup/memory.max", "1610612736\n");
        let host = Host::of(root.path());
        assert_eq!((host.memory_free, host.memory_total), (Some(3 << 29), Some(32 << 30)));
        assert_eq!(host.memory_limit.unwrap().most, 3 << 29);
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_has_the_space_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let free = disk_free(folder.path());
        assert!(free > Some(0) && disk_free(&folder.path().join("not/yet")).is_some());
    }
}
