//! Errors a user can act on: each names the place, what is wrong there, and the fix, on one line.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A config key with a value that cannot work.
    #[error("{key} = {got}: must be {want}, because {why}. Set it in the TOML or with --set {key}=VALUE")]
    Config { key: String, got: String, want: String, why: String },
    /// Anything else the user gave us: a file, a line of it, a tensor, a flag.
    #[error("{place}: {problem}. {fix}")]
    Input { place: String, problem: String, fix: String },
    /// The operating system said no.
    #[error("{}: cannot {action}: {source}. {fix}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error, fix: &'static str },
    /// Training produced a number that is not finite, or a weight without a gradient.
    #[error("step {step}: {problem}. {fix}")]
    Diverged { step: u64, problem: String, fix: String },
    /// A file that was written does not hold what was to be written.
    #[error("{}: what was read back is not what is in memory: {problem}. Nothing was kept", path.display())]
    Unfaithful { path: PathBuf, problem: String },
    /// A tensor operation failed: out of memory, a device fault, or a fault of ours.
    #[error("tensor operation failed: {0}")]
    Compute(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// `place` is a file, `file:line`, key or flag; `problem` and `fix` are clauses without a full stop.
    pub fn input(place: impl ToString, problem: impl ToString, fix: impl ToString) -> Self {
        let line = |s: String| s.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Input {
            place: place.to_string(),
            problem: line(problem.to_string()),
            fix: line(fix.to_string()),
        }
    }

    /// Use as `.map_err(Error::io(path, "read"))`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| {
            let fix = match source.kind() {
                std::io::ErrorKind::NotFound => "Check the path",
                std::io::ErrorKind::PermissionDenied => "Check the permissions, or choose another path",
                std::io::ErrorKind::StorageFull => "Free some disk space, or choose another path",
                _ => "Check the path and the disk",
            };
            Self::Io { path, action, source, fix }
        }
    }

    pub fn config(key: &str, got: impl ToString, want: impl ToString, why: impl ToString) -> Self {
        Self::Config { key: key.into(), got: got.to_string(), want: want.to_string(), why: why.to_string() }
    }

    /// The same of what the config's `key` names.
    pub fn of_key(self, key: &str) -> Self {
        match self {
            Self::Input { place, problem, fix } => {
                Self::Input { place: format!("{key} = {place}"), problem, fix }
            }
            other => other,
        }
    }

    /// Whether the user's input is at fault (exit code 2) rather than the machine or the program (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::Config { .. } | Self::Input { .. } => true,
            // Something that was to be read and is not there was named wrongly.
            Self::Io { action, source, .. } => {
                source.kind() == std::io::ErrorKind::NotFound
                    && (action.starts_with("read") || action.starts_with("open"))
            }
            Self::Diverged { .. } | Self::Unfaithful { .. } | Self::Compute(_) => false,
        }
    }
}
