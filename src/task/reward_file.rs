//! `[reward]` and `[extra_rewards]` of a task file.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::check::Check;
use super::outcome::Reward;
use super::reward::{
    HttpReward, LengthReward, LengthUnit, NamedReward, OnError, ProgramReward, RegexReward, RewardKind,
    folder_of,
};
use crate::error::Result;

/// What each outcome earns. The default is 1 for exactly the gold label, and nothing else.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MainReward {
    /// What it counts in the sum; 0 only shows it in the metrics.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    weight: f32,
    /// Gold positive, the same label in the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    exact_positive: f32,
    /// Gold negative, and so is the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    exact_negative: f32,
    /// Gold positive, another positive label in the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    wrong_label: f32,
    /// Gold negative, any positive label in the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    false_positive: f32,
    /// Gold positive, a negative answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    false_negative: f32,
    /// An answer that says nothing of the task, whatever the gold label is.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    malformed: f32,
    // Where a reader of `[extra_rewards]` may put them.
    #[schemars(skip)]
    program: Option<IgnoredAny>,
    #[schemars(skip)]
    http: Option<IgnoredAny>,
    #[schemars(skip)]
    regex: Option<IgnoredAny>,
    #[schemars(skip)]
    length: Option<IgnoredAny>,
}

impl Default for MainReward {
    fn default() -> Self {
        let Reward { exact_positive, exact_negative, wrong_label, false_positive, false_negative, malformed } =
            Reward::default();
        let (program, http, regex, length) = (None, None, None, None);
        Self {
            weight: 1.0,
            exact_positive,
            exact_negative,
            wrong_label,
            false_positive,
            false_negative,
            malformed,
            program,
            http,
            regex,
            length,
        }
    }
}

/// A reward beside `[reward]`: what outcomes earn (those left out: nothing), or exactly one of program, http, regex and length.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtraReward {
    /// What it counts in the sum.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    weight: f32,
    /// Gold positive, the same label in the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    exact_positive: Option<f32>,
    /// Gold negative, and so is the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    exact_negative: Option<f32>,
    /// Gold positive, another positive label in the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    wrong_label: Option<f32>,
    /// Gold negative, any positive label in the answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    false_positive: Option<f32>,
    /// Gold positive, a negative answer.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    false_negative: Option<f32>,
    /// An answer that says nothing of the task, whatever the gold label is.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    malformed: Option<f32>,
    program: Option<ProgramSection>,
    http: Option<HttpSection>,
    regex: Option<RegexSection>,
    length: Option<LengthSection>,
}

/// A program that reads a JSON object a line and prints one with what it earns (docs/rewards.md). It starts with `--allow-programs` only.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ProgramSection {
    /// The program and its arguments. It runs in the task file's folder.
    command: Vec<String>,
    /// Processes.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 256))]
    workers: usize,
    /// Completions that a process is given at once; it may answer them in any order.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 4096))]
    batch: usize,
    /// Seconds for the next answer.
    #[serde(default = "thirty")]
    #[schemars(range(min = 0.01, max = 86400.0))]
    timeout_seconds: f64,
    /// Seconds for the first answer of a process, which may have a model to load.
    #[serde(default = "sixty")]
    #[schemars(range(min = 0.01, max = 86400.0))]
    start_timeout_seconds: f64,
    /// Fresh processes that are tried for a completion on which one failed.
    #[serde(default = "one_restart")]
    #[schemars(range(min = 0, max = 100))]
    restarts: u32,
    #[serde(default)]
    on_error: OnErrorValue,
}

/// An address that gets the same object by POST and answers in the same form. It is asked with `--allow-programs` only.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpSection {
    /// Of http or https. Redirects are not followed.
    url: String,
    /// From a header's name to that of the environment variable that has its value, as in `{ Authorization = "JUDGE_AUTH" }`.
    #[serde(default)]
    headers_from_env: BTreeMap<String, String>,
    /// Requests at once.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 256))]
    workers: usize,
    /// Seconds for one try.
    #[serde(default = "thirty")]
    #[schemars(range(min = 0.01, max = 86400.0))]
    timeout_seconds: f64,
    /// How often it is tried: after 429, 5xx, a timeout, a connection that fails or breaks off.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    tries: u32,
    /// Seconds before the second try, twice as many before each further one, 60 at most; a Retry-After counts instead.
    #[serde(default = "half")]
    #[schemars(range(min = 0.0, max = 60.0))]
    wait_seconds: f64,
    #[serde(default)]
    on_error: OnErrorValue,
}

/// What a match of a pattern earns.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RegexSection {
    /// Pattern of the Rust `regex` crate; it matches anywhere unless anchored.
    pattern: String,
    /// What each match earns.
    #[serde(default = "whole")]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    value: f32,
    /// Matches that count.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000000))]
    most: usize,
    /// What an answer without a match earns.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    otherwise: f32,
}

/// Linear between two lengths, constant beyond them. By default DAPO's soft overlong punishment.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LengthSection {
    #[serde(default)]
    unit: LengthUnit,
    /// The shorter length.
    #[schemars(range(min = 0, max = 10000000))]
    from: usize,
    /// The longer length.
    #[schemars(range(min = 1, max = 10000000))]
    to: usize,
    /// What an answer of the shorter length or less earns.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    at_from: f32,
    /// What an answer of the longer length or more earns.
    #[serde(default = "minus")]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    at_to: f32,
}

/// What becomes of a completion whose reward cannot be had: `"stop"` ends the run, resumably; a number is what it earns.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number, or \"stop\"")]
enum OnErrorValue {
    Word(StopWord),
    Number(#[schemars(range(min = -1_000_000, max = 1_000_000))] f32),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StopWord {
    Stop,
}

impl Default for OnErrorValue {
    fn default() -> Self {
        Self::Word(StopWord::Stop)
    }
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn four() -> usize {
    4
}
fn five() -> u32 {
    5
}
fn one_restart() -> u32 {
    1
}
fn thirty() -> f64 {
    30.0
}
fn sixty() -> f64 {
    60.0
}
fn half() -> f64 {
    0.5
}
fn whole() -> f32 {
    1.0
}
fn minus() -> f32 {
    -1.0
}

/// All rewards of a task file, `[reward]` first by the task's name.
pub(super) fn rewards(
    check: &Check,
    task: &str,
    main: MainReward,
    extra: BTreeMap<String, ExtraReward>,
) -> Result<Vec<NamedReward>> {
    let beside = [
        ("program", main.program.is_some()),
        ("http", main.http.is_some()),
        ("regex", main.regex.is_some()),
        ("length", main.length.is_some()),
    ];
    if let Some((kind, _)) = beside.into_iter().find(|(_, is_there)| *is_there) {
        let fix = format!("Write [extra_rewards.<name>.{kind}], and the weight under [extra_rewards.<name>]");
        return Err(check.at(&format!("reward.{kind}"), "[reward] is what outcomes earn", fix));
    }
    let reward = Reward {
        exact_positive: main.exact_positive,
        exact_negative: main.exact_negative,
        wrong_label: main.wrong_label,
        false_positive: main.false_positive,
        false_negative: main.false_negative,
        malformed: main.malformed,
    };
    let mut all =
        vec![NamedReward { name: task.into(), weight: main.weight, kind: RewardKind::Outcomes(reward) }];
    for (name, section) in extra {
        let key = format!("extra_rewards.{name}");
        if name.trim().is_empty() || name.contains('/') || name == task || name == "overlong" {
            let problem = "the name is empty, has a `/`, or is the task's or that of the overlong penalty";
            return Err(check.at(&key, problem, "Choose another: metrics are called rewards/NAME/mean"));
        }
        let weight = section.weight;
        all.push(NamedReward { kind: section.kind(check, &key)?, name, weight });
    }
    for (at, named) in all.iter().enumerate() {
        let key = if at == 0 { "reward".into() } else { format!("extra_rewards.{}", named.name) };
        if let RewardKind::Outcomes(reward) = &named.kind {
            outcomes(check, &key, reward, named.weight)?;
        }
    }
    if all.iter().all(|named| named.weight == 0.0) {
        let fix = "Give one of them a weight";
        return Err(check.at(
            "reward.weight",
            "every reward has the weight 0, so nothing can be learned",
            fix,
        ));
    }
    Ok(all)
}

fn outcomes(check: &Check, key: &str, reward: &Reward, weight: f32) -> Result<()> {
    let entries = reward.entries();
    if weight != 0.0 && entries.iter().all(|(_, value)| *value == entries[0].1) {
        let fix = "Give exact_positive and exact_negative more than the others";
        return Err(check.at(key, "all six rewards are equal, so nothing can be learned", fix));
    }
    Ok(())
}

impl ExtraReward {
    fn kind(self, check: &Check, key: &str) -> Result<RewardKind> {
        let values = [
            self.exact_positive,
            self.exact_negative,
            self.wrong_label,
            self.false_positive,
            self.false_negative,
            self.malformed,
        ];
        let has_outcomes = values.iter().any(Option::is_some);
        match (self.program, self.http, self.regex, self.length) {
            (None, None, None, None) => {
                let [a, b, c, d, e, f] = values.map(Option::unwrap_or_default);
                Ok(RewardKind::Outcomes(Reward {
                    exact_positive: a,
                    exact_negative: b,
                    wrong_label: c,
                    false_positive: d,
                    false_negative: e,
                    malformed: f,
                }))
            }
            (Some(section), None, None, None) if !has_outcomes => {
                section.check(check, &format!("{key}.program"))
            }
            (None, Some(section), None, None) if !has_outcomes => {
                section.check(check, &format!("{key}.http"))
            }
            (None, None, Some(section), None) if !has_outcomes => section.check(check, key),
            (None, None, None, Some(section)) if !has_outcomes => {
                section.check(check, &format!("{key}.length"))
            }
            _ => {
                let fix = "Give each a name of its own: [extra_rewards.<name>]";
                Err(check.at(key, "outcomes, program, http, regex and length are five kinds of reward", fix))
            }
        }
    }
}

impl OnErrorValue {
    fn on_error(self) -> OnError {
        match self {
            Self::Word(StopWord::Stop) => OnError::Stop,
            Self::Number(value) => OnError::Value(value),
        }
    }
}

impl ProgramSection {
    fn check(self, check: &Check, key: &str) -> Result<RewardKind> {
        if self.command.first().is_none_or(|name| name.trim().is_empty()) {
            let fix = "Give the program and its arguments, as in command = [\"python3\", \"judge.py\"]";
            return Err(check.at(&format!("{key}.command"), "names no program", fix));
        }
        Ok(RewardKind::Program(ProgramReward {
            folder: folder_of(check.place),
            workers: self.workers,
            batch: self.batch,
            timeout: Duration::from_secs_f64(self.timeout_seconds),
            start_timeout: Duration::from_secs_f64(self.start_timeout_seconds),
            restarts: self.restarts,
            on_error: self.on_error.on_error(),
            command: self.command,
        }))
    }
}

impl HttpSection {
    fn check(self, check: &Check, key: &str) -> Result<RewardKind> {
        let host = ["http://", "https://"].iter().find_map(|scheme| self.url.strip_prefix(scheme));
        if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            let fix = "Give an address that begins with http:// or https://";
            return Err(check.at(&format!("{key}.url"), format!("`{}` is no address", self.url), fix));
        }
        let token = |c: char| c.is_ascii_alphanumeric() || "-_.!#$%&'*+^`|~".contains(c);
        if let Some(name) =
            self.headers_from_env.keys().find(|name| name.is_empty() || !name.chars().all(token))
        {
            let fix = "Give a header's name, as in { Authorization = \"JUDGE_AUTH\" }";
            return Err(check.at(&format!("{key}.headers_from_env"), format!("`{name}` is no header"), fix));
        }
        Ok(RewardKind::Http(HttpReward {
            url: self.url,
            headers: self.headers_from_env,
            workers: self.workers,
            timeout: Duration::from_secs_f64(self.timeout_seconds),
            tries: self.tries,
            wait: Duration::from_secs_f64(self.wait_seconds),
            on_error: self.on_error.on_error(),
        }))
    }
}

impl RegexSection {
    /// `key`: of the reward.
    fn check(self, check: &Check, key: &str) -> Result<RewardKind> {
        let pattern = check.regex(key, &self.pattern)?;
        let (value, otherwise) = (self.value, self.otherwise);
        if value == otherwise && self.most == 1 {
            let fix = "Give value and otherwise two numbers";
            return Err(check.at(&format!("{key}.regex"), "every answer earns the same", fix));
        }
        Ok(RewardKind::Regex(RegexReward { pattern, value, most: self.most, otherwise }))
    }
}

impl LengthSection {
    fn check(self, check: &Check, key: &str) -> Result<RewardKind> {
        let Self { unit, from, to, at_from, at_to } = self;
        if from >= to {
            let problem = format!("from = {from} is not below to = {to}");
            return Err(check.at(key, problem, "Give the shorter length as from, the longer as to"));
        }
        if at_from == at_to {
            return Err(check.at(key, "every length earns the same", "Give at_from and at_to two numbers"));
        }
        Ok(RewardKind::Length(LengthReward { unit, from, to, at_from, at_to }))
    }
}
