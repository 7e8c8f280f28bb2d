//! What the control groups of this process let it have of the machine's memory, versions 1 and 2.

use std::path::{Path, PathBuf};

/// The tightest of all limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes that the group can have in all.
    pub most: u64,
    /// Bytes that it can still have: files that it only reads give way.
    pub room: u64,
    /// Where the limit stands.
    pub file: PathBuf,
}

/// A hierarchy as mountinfo has it.
struct Mount {
    /// Version 2.
    unified: bool,
    /// The group that is seen at `point`.
    root: PathBuf,
    point: PathBuf,
}

/// The limit with the least room on the path from the process's group to the top. `root` is `/`, or a folder that has
/// `proc` and `sys` in its place.
pub fn memory_limit(root: &Path) -> Option<MemoryLimit> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = mounts(&std::fs::read_to_string(root.join("proc/self/mountinfo")).ok()?);
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let unified = number == "0" && controllers.is_empty();
        if !unified && controllers.split(',').all(|name| name != "memory") {
            continue;
        }
        for mount in mounts.iter().filter(|mount| mount.unified == unified) {
            // A group above what is mounted here is not seen; its limits are those of the mount's root at least.
            let inside = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
            let inside: PathBuf = inside.components().filter(|c| c.as_os_str() != "..").collect();
            let point = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
            for folder in inside.ancestors().map(|group| point.join(group)) {
                limits.extend(if unified { unified_limits(&folder) } else { first_limits(&folder) });
            }
        }
    }
    limits.into_iter().min_by_key(|limit| limit.room)
}

fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let (mut mount, mut kind) = (mount.split(' ').skip(3), kind.split(' '));
        let (root, point) = (mount.next()?.into(), mount.next()?.into());
        match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Some(Mount { unified: true, root, point }),
            ("cgroup", options) if options.split(',').any(|o| o == "memory") => {
                Some(Mount { unified: false, root, point })
            }
            _ => None,
        }
    };
    text.lines().filter_map(mount).collect()
}

/// "max" and what is no number are no limit.
fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Of memory.stat.
fn stat(folder: &Path, names: [&str; 2]) -> u64 {
    let text = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    names.into_iter().map(value).sum()
}

fn unified_limits(folder: &Path) -> Vec<MemoryLimit> {
    let used = number(&folder.join("memory.current")).unwrap_or(0);
    let kept = used.saturating_sub(stat(folder, ["inactive_file", "active_file"]));
    let limit = |name: &str| {
        let file = folder.join(name);
        let most = number(&file)?;
        Some(MemoryLimit { most, room: most.saturating_sub(kept), file })
    };
    // Above memory.high the kernel slows the group down until it hardly moves.
    ["memory.max", "memory.high"].into_iter().filter_map(limit).collect()
}

fn first_limits(folder: &Path) -> Vec<MemoryLimit> {
    let file = folder.join("memory.limit_in_bytes");
    let used = number(&folder.join("memory.usage_in_bytes")).unwrap_or(0);
    let kept = used.saturating_sub(stat(folder, ["total_inactive_file", "total_active_file"]));
    // Without a limit there stands the largest number of pages.
    let most = number(&file).filter(|most| *most < 1 << 60);
    most.map(|most| MemoryLimit { most, room: most.saturating_sub(kept), file }).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A root with these files.
    fn root(files: &[(&str, String)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn mib(mib: u64) -> String {
        format!("{}\n", mib * MIB)
    }

    const UNIFIED: &str =
        "25 1 0:22 / /proc rw - proc proc rw\n31 23 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    fn unified(group: &str, files: &[(&str, String)]) -> tempfile::TempDir {
        let first = [("proc/self/cgroup", format!("0::{group}\n")), ("proc/self/mountinfo", UNIFIED.into())];
        root(&first.into_iter().chain(files.iter().cloned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_tightest_limit_on_the_path_counts_whichever_file_it_is_in() {
        let stat = format!("anon 1\ninactive_file {}\nactive_file {}\n", 100 * MIB, 50 * MIB);
        let files = [
            ("sys/fs/cgroup/a/memory.max", mib(1500)),
            ("sys/fs/cgroup/a/memory.current", mib(400)),
            ("sys/fs/cgroup/a/memory.stat", stat),
            ("sys/fs/cgroup/a/b/memory.max", "max\n".to_string()),
            ("sys/fs/cgroup/a/b/memory.high", "max\n".to_string()),
            ("sys/fs/cgroup/a/b/memory.current", mib(300)),
        ];
        let root = unified("/a/b", &files);
        let found = memory_limit(root.path()).unwrap();
        // 400 MiB are used, 150 of them by files that give way.
        assert_eq!((found.most, found.room), (1500 * MIB, 1250 * MIB));
        assert!(found.file.ends_with("sys/fs/cgroup/a/memory.max"), "{found:?}");
        std::fs::write(root.path().join("sys/fs/cgroup/a/b/memory.high"), mib(1000)).unwrap();
        let found = memory_limit(root.path()).unwrap();
        assert_eq!((found.most, found.room), (1000 * MIB, 700 * MIB));
        assert!(found.file.ends_with("a/b/memory.high"));
    }

    #[test]
    fn a_group_that_is_full_has_no_room_and_one_without_a_limit_says_nothing() {
        let full = [("sys/fs/cgroup/memory.max", mib(100)), ("sys/fs/cgroup/memory.current", mib(120))];
        assert_eq!(memory_limit(unified("/", &full).path()).unwrap().room, 0);
        assert_eq!(memory_limit(unified("/a", &[]).path()), None);
        assert_eq!(memory_limit(root(&[]).path()), None);
    }

    #[test]
    fn version_1_is_read_beside_an_empty_version_2() {
        let mountinfo = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                         34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let files = [
            ("proc/self/cgroup", "4:memory:/job/7\n3:cpuset:/\n0::/\n".to_string()),
            ("proc/self/mountinfo", mountinfo.into()),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n".into()),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", mib(2000)),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", mib(1900)),
            ("sys/fs/cgroup/memory/job/memory.stat", format!("total_inactive_file {}\n", 900 * MIB)),
            ("sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", mib(1500)),
            ("sys/fs/cgroup/memory/job/7/memory.usage_in_bytes", mib(100)),
        ];
        let found = memory_limit(root(&files).path()).unwrap();
        // The parent has less left than the group's own limit.
        assert_eq!((found.most, found.room), (2000 * MIB, 1000 * MIB));
    }

    /// Docker without a namespace of groups: the group's own folder is what is mounted.
    #[test]
    fn a_container_sees_its_group_as_the_root_of_the_mount() {
        let files = [
            ("proc/self/cgroup", "0::/docker/1f\n".to_string()),
            ("proc/self/mountinfo", "31 23 0:29 /docker/1f /sys/fs/cgroup rw - cgroup2 cgroup rw\n".into()),
            ("sys/fs/cgroup/memory.max", mib(512)),
        ];
        assert_eq!(memory_limit(root(&files).path()).unwrap().most, 512 * MIB);
        let outside = [
            ("proc/self/cgroup", "0::/../other\n".to_string()),
            ("proc/self/mountinfo", UNIFIED.into()),
            ("sys/fs/cgroup/memory.max", mib(256)),
        ];
        assert_eq!(memory_limit(root(&outside).path()).unwrap().most, 256 * MIB);
    }
}
