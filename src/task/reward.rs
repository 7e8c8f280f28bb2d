//! What an answer earns: by its outcome, by its text, or by what a program or an address says of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use super::outcome::{Outcome, Reward};

/// One of a task's rewards.
#[derive(Clone, Debug)]
pub struct NamedReward {
    pub name: String,
    pub weight: f32,
    pub kind: RewardKind,
}

/// Where a reward comes from.
#[derive(Clone, Debug)]
pub enum RewardKind {
    Outcomes(Reward),
    Regex(RegexReward),
    Length(LengthReward),
    Program(ProgramReward),
    Http(HttpReward),
}

/// An answer as rewards see it.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// Without stop token.
    pub text: &'a str,
    /// With it. Absent where nothing counts tokens.
    pub tokens: Option<usize>,
    pub outcome: Outcome,
}

impl NamedReward {
    /// Without the weight. `None`: somebody else has to say, or the tokens are not known.
    pub fn of(&self, answer: Answered) -> Option<f32> {
        match &self.kind {
            RewardKind::Outcomes(reward) => Some(reward.of(answer.outcome)),
            RewardKind::Regex(reward) => Some(reward.of(answer.text)),
            RewardKind::Length(reward) => reward.of(answer),
            RewardKind::Program(_) | RewardKind::Http(_) => None,
        }
    }

    /// Whether a program or an address is asked.
    pub fn is_asked(&self) -> bool {
        matches!(self.kind, RewardKind::Program(_) | RewardKind::Http(_))
    }
}

/// How often a pattern matches.
#[derive(Clone, Debug)]
pub struct RegexReward {
    pub(super) pattern: Regex,
    /// Of each match.
    pub(super) value: f32,
    /// Matches that count.
    pub(super) most: usize,
    /// Without a match.
    pub(super) otherwise: f32,
}

impl RegexReward {
    fn of(&self, text: &str) -> f32 {
        match self.pattern.find_iter(text).take(self.most).count() {
            0 => self.otherwise,
            matches => self.value * matches as f32,
        }
    }
}

/// Linear between two lengths and constant beyond them. With 0 at L_max - L_cache and -1 at L_max it is DAPO's soft overlong
/// punishment, arXiv:2503.14476, equation 13.
#[derive(Clone, Debug, PartialEq)]
pub struct LengthReward {
    pub(super) unit: LengthUnit,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) at_from: f32,
    pub(super) at_to: f32,
}

/// What a length is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Of the model, the end token among them.
    #[default]
    Tokens,
    /// Of Unicode.
    Characters,
}

impl LengthReward {
    fn of(&self, answer: Answered) -> Option<f32> {
        let length = match self.unit {
            LengthUnit::Tokens => answer.tokens?,
            LengthUnit::Characters => answer.text.chars().count(),
        };
        let share = (length.clamp(self.from, self.to) - self.from) as f64 / (self.to - self.from) as f64;
        let (start, end) = (f64::from(self.at_from), f64::from(self.at_to));
        Some((start + share * (end - start)) as f32)
    }
}

/// A program that reads completions and says what they earn (docs/rewards.md).
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramReward {
    /// At least its name.
    pub command: Vec<String>,
    /// The task file's, absolute: the program runs there.
    pub folder: PathBuf,
    /// Processes.
    pub workers: usize,
    /// Completions that a process is given at once.
    pub batch: usize,
    /// For the next answer.
    pub timeout: Duration,
    /// For the first answer of a process.
    pub start_timeout: Duration,
    /// Fresh processes that are tried for a completion on which one failed.
    pub restarts: u32,
    pub on_error: OnError,
}

impl ProgramReward {
    /// The program as the system is to find it: by PATH where its name has no slash, else from the task file's folder.
    pub fn executable(&self) -> PathBuf {
        let name = self.command.first().map_or("", String::as_str);
        if name.contains('/') { self.folder.join(name) } else { name.into() }
    }

    /// Words of the command that are files of the task file's folder, or are named from it.
    pub fn files(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        let from_path = |at: usize, word: &str| at == 0 && !word.contains('/');
        let named = self.command.iter().enumerate().filter(move |(at, word)| !from_path(*at, word));
        named.map(|(_, word)| (word.as_str(), self.folder.join(word))).filter(|(_, path)| path.is_file())
    }
}

/// An address that is asked by POST (docs/rewards.md).
#[derive(Clone, Debug, PartialEq)]
pub struct HttpReward {
    pub url: String,
    /// From a header's name to that of the environment variable with its value.
    pub headers: BTreeMap<String, String>,
    /// Requests at once.
    pub workers: usize,
    /// Of one try.
    pub timeout: Duration,
    pub tries: u32,
    /// Before the second try; twice as long before each further one.
    pub wait: Duration,
    pub on_error: OnError,
}

/// What becomes of a completion whose reward nobody could say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OnError {
    /// The run ends and can be gone on with.
    Stop,
    /// It earns this.
    Value(f32),
}

impl ProgramReward {
    /// The command in one line, for messages.
    pub fn line(&self) -> String {
        self.command.join(" ")
    }
}

/// The folder of a task file, absolute.
pub(super) fn folder_of(place: &str) -> PathBuf {
    let folder = Path::new(place).parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    std::path::absolute(folder).unwrap_or_else(|_| folder.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str, tokens: usize) -> Answered<'_> {
        Answered { text, tokens: Some(tokens), outcome: Outcome::Malformed }
    }

    #[test]
    fn matches_are_counted_up_to_a_cap() {
        let pattern = Regex::new(r"\bsteps?\b").unwrap();
        let reward = RegexReward { pattern, value: 0.25, most: 2, otherwise: -1.0 };
        let earned = ["no", "a step", "step steps", "step step step"].map(|text| reward.of(text));
        assert_eq!(earned, [-1.0, 0.25, 0.5, 0.5]);
    }

    /// Equation 13 with L_max = 20 and L_cache = 4.
    #[test]
    fn lengths_earn_linearly_between_the_bounds() {
        let mut reward =
            LengthReward { unit: LengthUnit::Tokens, from: 16, to: 20, at_from: 0.0, at_to: -1.0 };
        let earned = [0, 16, 17, 18, 20, 99].map(|tokens| reward.of(answered("", tokens)).unwrap());
        assert_eq!(earned, [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]);
        assert_eq!(reward.of(Answered { tokens: None, ..answered("", 0) }), None);
        (reward.unit, reward.from, reward.to) = (LengthUnit::Characters, 0, 4);
        assert_eq!(reward.of(answered("häh", 99)), Some(-0.75));
    }

    #[test]
    fn a_command_is_found_from_the_task_files_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["judge.py", "python3"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let program = |command: &[&str]| ProgramReward {
            command: command.iter().map(ToString::to_string).collect(),
            folder: folder_of(dir.path().join("task.toml").to_str().unwrap()),
            workers: 1,
            batch: 1,
            timeout: Duration::ZERO,
            start_timeout: Duration::ZERO,
            restarts: 0,
            on_error: OnError::Stop,
        };
        let by_path = program(&["python3", "judge.py", "--strict"]);
        assert_eq!(by_path.executable(), Path::new("python3"));
        let files: Vec<_> = by_path.files().map(|(word, _)| word.to_string()).collect();
        assert_eq!(files, ["judge.py"], "the python3 of PATH is not the one that lies there");
        let own = program(&["./judge.py"]);
        assert_eq!(own.executable(), dir.path().join("./judge.py"));
        assert_eq!(own.files().count(), 1);
    }
}
