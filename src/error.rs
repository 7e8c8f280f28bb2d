//! Errors a user can act on: each names the place, what is wrong there, and the fix, on one line.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

/// What logits are with a NaN among them, or an infinite largest one.
const NO_DISTRIBUTION: &str = "its logits are no distribution (NaN or infinite)";

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
    /// A model computes what is no number.
    #[error("{model}: {NO_DISTRIBUTION}. Check its weights, and those of its adapter")]
    NoDistribution { model: String },
    /// A run ended where its config says so; it can be gone on with (exit code 75).
    #[error("step {step}: {problem}. {fix}")]
    Halted { step: u64, problem: String, fix: String },
    /// Nobody could say what a completion earns; the run can be gone on with (exit code 75).
    #[error("{place}: {problem}. {fix}")]
    Unrewarded { place: String, problem: String, fix: String },
    /// A file that was written does not hold what was to be written.
    #[error("{}: what was read back is not what is in memory: {problem}. Nothing was kept", path.display())]
    Unfaithful { path: PathBuf, problem: String },
    /// The user or the system asked for an end, and nothing of what was kept is lost.
    #[error("stopped")]
    Stopped,
    /// The device that computes is gone, or what it computes is not to be trusted (exit code 75).
    #[error("the device is lost: {problem}. Check it with nvidia-smi and dmesg, and go on with another one")]
    DeviceLost { problem: String },
    /// Another of the processes that train together is gone (exit code 75).
    #[error("{problem}. All ranks end; start them again with --resume auto")]
    RankLost { problem: String },
    /// A tensor operation failed: out of memory, a device fault, or a fault of ours.
    #[error("tensor operation failed: {0}")]
    Compute(Box<dyn std::error::Error + Send + Sync>),
}

/// Characters of an error's part; a longer one loses its middle.
const MOST_CHARACTERS: usize = 1500;

fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= MOST_CHARACTERS {
        return text.into();
    }
    let head: String = text.chars().take(MOST_CHARACTERS - 300).collect();
    let tail: String = text.chars().skip(count - 200).collect();
    format!("{head} ... ({count} characters) ... {tail}")
}

impl Error {
    /// `place` is a file, `file:line`, key or flag; `problem` and `fix` are clauses without a full stop.
    pub fn input(place: impl ToString, problem: impl ToString, fix: impl ToString) -> Self {
        let line = |s: String| shortened(&s.split_whitespace().collect::<Vec<_>>().join(" "));
        Self::Input {
            place: shortened(&place.to_string()),
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
        Self::Config {
            key: key.into(),
            got: shortened(&got.to_string()),
            want: want.to_string(),
            why: why.to_string(),
        }
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

    /// The same before anything was trained: the user's to mend.
    pub fn as_input(self) -> Self {
        match self {
            Self::Unrewarded { place, problem, fix } => Self::input(place, problem, fix),
            other => other,
        }
    }

    /// The same of a model that training made so, after `step` optimiser steps of a stage.
    pub fn at_step(self, step: u64) -> Self {
        match self {
            Self::NoDistribution { model } if step > 0 => Self::Diverged {
                step,
                problem: format!("{model}: {NO_DISTRIBUTION}"),
                fix: "Lower the learning rate, or resume from an earlier checkpoint".into(),
            },
            other => other,
        }
    }

    /// Whether room on the disk, or in a quota, is what is missing.
    pub fn is_full_disk(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        // Tensors are written by a crate whose error is a text.
        let says = |code: &str| source.to_string().contains(code);
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => true,
            std::io::ErrorKind::Other => says("os error 28") || says("os error 122"),
            _ => false,
        }
    }

    pub fn is_lost_device(&self) -> bool {
        matches!(self, Self::DeviceLost { .. })
    }

    /// Whether the user's input is at fault (exit code 2) rather than the machine or the program (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::Config { .. } | Self::Input { .. } | Self::NoDistribution { .. } => true,
            // Something that was to be read and is not there was named wrongly.
            Self::Io { action, source, .. } => {
                source.kind() == std::io::ErrorKind::NotFound
                    && (action.starts_with("read") || action.starts_with("open"))
            }
            Self::Halted { .. } | Self::DeviceLost { .. } | Self::RankLost { .. } => false,
            Self::Stopped | Self::Unrewarded { .. } => false,
            Self::Diverged { .. } | Self::Unfaithful { .. } | Self::Compute(_) => false,
        }
    }
}
