//! A task: how a row becomes a conversation with a gold label, how an answer becomes a verdict, and what each
//! outcome earns. All of it comes from a TOML file (docs/tasks.md), so a new label set needs no Rust.

mod answers;
mod check;
mod confusion;
mod conversation;
mod file;
mod gold;
mod grounded;
mod mcp;
mod metrics;
mod outcome;
mod paper;
mod reward;
mod reward_file;
mod row;
mod verdict;
mod words;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

pub use answers::Answer;
pub use confusion::Confusion;
pub use conversation::Converted;
pub use gold::GoldLabels;
pub use grounded::{Bound, Evidence};
pub use metrics::{Attacks, Binary, EvalReport, Interval, LabelScores, Parsed};
pub use outcome::{Outcome, Reward};
pub use reward::{Answered, HttpReward, NamedReward, OnError, ProgramReward, RewardKind};
pub use verdict::{LabelId, PaperReading, Verdict};

use crate::disk;
use crate::error::{Error, Result};
use crate::types::{FinishReason, Sample, Trusted};
use row::{LabelText, RowPath, Template};
use verdict::{LabelSet, Rules};

/// The task files inside the binary.
const BUILT_IN: [(&str, &str); 8] = [
    ("riskcue", include_str!("../../tasks/riskcue.toml")),
    ("riskcue-short", include_str!("../../tasks/riskcue-short.toml")),
    ("riskcue-verdict", include_str!("../../tasks/riskcue-verdict.toml")),
    ("demo", include_str!("../../tasks/demo.toml")),
    ("mcip", include_str!("../../tasks/mcip.toml")),
    ("llama-guard", include_str!("../../tasks/llama-guard.toml")),
    ("safemcp", include_str!("../../tasks/safemcp.toml")),
    ("mcp-safetybench", include_str!("../../tasks/mcp-safetybench.toml")),
];

/// A checked task file.
#[derive(Clone, Debug)]
pub struct Task {
    name: String,
    labels: LabelSet,
    input: Input,
    gold: Gold,
    target: Option<Target>,
    answers: Option<answers::Answers>,
    rules: Rules,
    /// `[reward]` by the task's name, then the extra ones.
    rewards: Vec<NamedReward>,
    retries: u32,
    has_paper: bool,
    attack_succeeded: Option<RowPath>,
    grounding: Option<grounded::Grounding>,
}

#[derive(Clone, Debug)]
struct Input {
    messages: Messages,
    /// Replaces the row's system message, or goes before the first message.
    system: Option<String>,
    tools: Option<RowPath>,
    /// Whether the last message may be the assistant's.
    judge_assistant: bool,
    trusted: Trusted,
}

#[derive(Clone, Debug)]
enum Messages {
    Listed(RowPath),
    /// A transcript, and the user's request that it followed.
    Mcp(RowPath, Option<RowPath>),
    /// One user message.
    Template(Template),
}

#[derive(Clone, Debug)]
struct Gold {
    path: RowPath,
    map: BTreeMap<String, LabelId>,
}

#[derive(Clone, Debug)]
enum Target {
    Text(RowPath),
    Templates { negative: Template, positive: Template },
}

impl Task {
    /// `source` is the name of a built-in task (`riskcue`, `demo`) or the path of a task file.
    pub fn load(source: &str) -> Result<Self> {
        let is_built_in = BUILT_IN.iter().any(|(name, _)| *name == source);
        let place = if is_built_in { format!("built-in task {source}") } else { source.into() };
        file::parse(&Self::text(source)?, &place)
    }

    /// The text that [`Self::load`] reads.
    pub fn text(source: &str) -> Result<Cow<'static, str>> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(name, _)| *name == source) {
            return Ok(Cow::Borrowed(text));
        }
        let path = Path::new(source);
        if !path.exists() && path.extension().is_none() {
            let names = BUILT_IN.map(|(name, _)| name).join(", ");
            let fix = format!("Use one of: {names}; or give the path of a task file");
            return Err(Error::input(format!("task `{source}`"), "no built-in task has this name", fix));
        }
        if path.is_dir() {
            return Err(Error::input(source, "is a folder, not a task file", "Name a TOML file in it"));
        }
        Ok(Cow::Owned(disk::read_text(path)?))
    }

    /// JSON schema of a task file.
    pub fn schema() -> Value {
        file::schema()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The negative label first, then the positive ones in the order of the task file.
    pub fn labels(&self) -> &[String] {
        &self.labels.names
    }

    pub fn label_id(&self, label: &str) -> Option<LabelId> {
        self.labels.find(label)
    }

    /// The label as answers write it; of a set all of its labels, with commas.
    pub fn label_text(&self, label: LabelId) -> String {
        self.labels.text(label)
    }

    /// The label of a verdict, or `malformed`.
    pub fn verdict_text(&self, verdict: Verdict) -> String {
        match verdict {
            Verdict::Positive(label) => self.label_text(label),
            Verdict::Negative => self.label_text(LabelId::NEGATIVE),
            Verdict::Malformed(_) | Verdict::Ungrounded => "malformed".into(),
        }
    }

    /// Whether the task file says how a paper counts: `[paper]`, or `paper` of a rule. Where it does not, the paper's rule
    /// takes a malformed answer for "not flagged", and nobody asked for its scores.
    pub fn has_paper(&self) -> bool {
        self.has_paper
    }

    /// How often an evaluation asks again where an answer is malformed.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Whether answers may be left out of the paper's scores.
    pub fn drops_answers(&self) -> bool {
        self.rules.drop_answers()
    }

    fn label_for<T>(&self, gold: LabelId, then: impl FnOnce(LabelText) -> T) -> T {
        let label = self.label_text(gold);
        let words: Vec<&str> =
            gold.members().filter_map(|index| self.labels.words.get(index).map(String::as_str)).collect();
        let name = words.join(", ");
        then(LabelText { label: &label, name: (!words.is_empty()).then_some(name.as_str()) })
    }

    /// `completion` is the decoded answer without stop token. `finish` matters only to tasks that set
    /// `truncated = "malformed"`. By its form alone: [`Self::judge_in`] asks `[grounded]` too.
    pub fn judge(&self, completion: &str, finish: FinishReason) -> Verdict {
        self.rules.judge(&self.labels, completion, finish)
    }

    /// The weighted sum of what outcomes earn; where it is all that counts, see [`Self::is_by_outcome`].
    pub fn reward(&self, outcome: Outcome) -> f32 {
        let of = |r: &NamedReward| match &r.kind {
            RewardKind::Outcomes(reward) => Some(r.weight * reward.of(outcome)),
            _ => None,
        };
        self.rewards.iter().filter_map(of).sum()
    }

    /// The weighted sum of all rewards that need nobody's word.
    pub fn own_reward(&self, answer: Answered) -> f32 {
        self.rewards.iter().filter_map(|r| Some(r.weight * r.of(answer)?)).sum()
    }

    /// Whether an answer earns by its outcome alone.
    pub fn is_by_outcome(&self) -> bool {
        self.rewards.iter().all(|r| matches!(r.kind, RewardKind::Outcomes(_)))
    }

    /// Whether a program or an address is asked what an answer earns.
    pub fn asks(&self) -> bool {
        self.rewards.iter().any(NamedReward::is_asked)
    }

    /// `[reward]` first, by the task's name, then `[extra_rewards]`.
    pub fn rewards(&self) -> &[NamedReward] {
        &self.rewards
    }

    /// Reads one row of a data file. Errors begin with `file:line`.
    pub fn sample(&self, row: &Value, file: &Path, line: usize) -> Result<Sample> {
        let at = Place { task: self, file, line };
        if !row.is_object() {
            return Err(at.error(
                format!("the row is {}, not an object", describe(row)),
                "Write one JSON object a line",
            ));
        }
        let conversation = at.conversation(row)?;
        let gold = at.gold(row)?;
        let target = at.target(row, gold)?;
        let attack_succeeded = at.attack_succeeded(row)?;
        Ok(Sample { line, conversation, gold: self.label_text(gold), target, attack_succeeded })
    }
}

/// One row's place, for errors.
struct Place<'a> {
    task: &'a Task,
    file: &'a Path,
    line: usize,
}

impl Place<'_> {
    fn error(&self, problem: impl ToString, fix: impl ToString) -> Error {
        Error::input(format!("{}:{}", self.file.display(), self.line), problem, fix)
    }

    fn absent(&self, path: &RowPath, key: &str) -> Error {
        let fix = format!("Add it, or correct {key} in task `{}`", self.task.name);
        self.error(format!("nothing at `{path}`"), fix)
    }

    /// None when the row has no target: it can still be used for GRPO and evaluation.
    fn target(&self, row: &Value, gold: LabelId) -> Result<Option<String>> {
        let path = match &self.task.target {
            None => return Ok(None),
            Some(Target::Text(path)) => path,
            Some(Target::Templates { negative, positive }) => {
                let template = if gold.is_negative() { negative } else { positive };
                let rendered = self.task.label_for(gold, |label| template.render(row, Some(label)));
                return match rendered {
                    Ok(text) => Ok(Some(text)),
                    Err(path) => Err(self.absent(path, "sft.target_template")),
                };
            }
        };
        // The last message is an answer only where the assistant says it.
        if let Messages::Listed(list) = &self.task.input.messages
            && self.ends_with_target(list)
        {
            let last = list.get(row).and_then(Value::as_array).and_then(|messages| messages.last());
            if last.and_then(|last| last.get("role")).and_then(Value::as_str) != Some("assistant") {
                return Ok(None);
            }
        }
        match path.get(row) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => {
                Err(self
                    .error(format!("`{path}` is empty"), "Give the answer to imitate, or leave the key out"))
            }
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => {
                let fix = "Give the answer to imitate as a text, or leave the key out";
                Err(self.error(format!("`{path}` is {}, not a text", describe(other)), fix))
            }
        }
    }
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// At most 60 characters of `text`, for an error line.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Message;
    use serde_json::json;

    #[test]
    fn built_in_tasks_have_the_ten_labels() {
        for name in ["riskcue", "demo"] {
            let task = Task::load(name).unwrap();
            assert_eq!((task.name(), task.labels().len(), task.labels()[0].as_str()), (name, 10, "Safe"));
            assert_eq!(task.label_id("Log Explosion Attacks"), Some(LabelId(9)));
            let paid = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
            let RewardKind::Outcomes(reward) = &task.rewards()[0].kind else { panic!() };
            assert_eq!(reward.entries().map(|(_, value)| value), paid);
        }
    }

    #[test]
    fn every_shipped_task_file_is_built_in_and_loads_by_path() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tasks");
        // The folder is absent where the room is compiled outside the project.
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let task = Task::load(path.to_str().unwrap()).unwrap();
            assert!(BUILT_IN.iter().any(|(name, _)| *name == task.name()), "{}", path.display());
        }
    }

    #[test]
    fn unknown_sources_say_what_there_is() {
        let error = Task::load("riskque").unwrap_err();
        let want = "task `riskque`: no built-in task has this name. Use one of: riskcue, riskcue-short, riskcue-verdict, demo, mcip, ";
        assert!(error.is_input() && error.to_string().starts_with(want), "{error}");
        let error = Task::load("absent/x.toml").unwrap_err().to_string();
        assert!(
            error.starts_with("absent/x.toml: cannot read") && error.ends_with("Check the path"),
            "{error}"
        );
    }

    fn row() -> Value {
        json!({
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "chosen": "Your mail is sent.",
            "security_type": ["Safe", "Denial-of-Service"],
            "metadata": {"query": "u"},
        })
    }

    #[test]
    fn a_row_becomes_a_sample() {
        let task = Task::load("riskcue").unwrap();
        let sample = task.sample(&row(), Path::new("a.jsonl"), 3).unwrap();
        assert_eq!((sample.line, sample.gold.as_str()), (3, "Denial-of-Service"));
        assert_eq!(sample.conversation.messages[1], Message::new("user", "u"));
        assert_eq!(sample.target.as_deref(), Some("Your mail is sent."));
        let mut bare = row();
        bare["chosen"] = Value::Null;
        assert_eq!(task.sample(&bare, Path::new("a.jsonl"), 3).unwrap().target, None);
    }

    #[test]
    fn bad_rows_name_file_line_and_fix() {
        let task = Task::load("riskcue").unwrap();
        for (key, value, want) in [
            (
                "security_type",
                json!(null),
                "nothing at `security_type[-1]`. Add it, or correct gold.path in task",
            ),
            ("security_type", json!([]), "nothing at `security_type[-1]`"),
            (
                "security_type",
                json!(["safe"]),
                "`security_type[-1]` is `safe`, which is no label of task `riskcue`. Use one of: Safe, Sens",
            ),
            ("security_type", json!([["Safe"]]), "`security_type[-1]` is a list, not a label"),
            ("prompt", json!(null), "nothing at `prompt`. Add it, or correct input.messages"),
            ("prompt", json!("hello"), "`prompt` is a text, not a list"),
            ("prompt", json!([]), "`prompt` is empty"),
            ("prompt", json!(["hello"]), "`prompt[0]` has no role"),
            ("prompt", json!([{"role": "user"}]), "`prompt[0]` has no content"),
            (
                "prompt",
                json!([{"role": "user", "content": 3}]),
                "`prompt[0].content` is a number, not a text",
            ),
            (
                "prompt",
                json!([{"role": "bot", "content": "x"}]),
                "`prompt[0].role` is `bot`. Use one of: system, developer, user",
            ),
            (
                "prompt",
                json!([{"role": "assistant", "content": "x"}]),
                "the last message of `prompt` is from the assistant",
            ),
            ("prompt", json!([{"role": "user", "content": " "}]), "the last message of `prompt` is empty"),
            ("chosen", json!(["x"]), "`chosen` is a list, not a text"),
            ("chosen", json!("  "), "`chosen` is empty. Give the answer to imitate, or leave the key out"),
        ] {
            let mut row = row();
            row[key] = value;
            let error = task.sample(&row, Path::new("a.jsonl"), 7).unwrap_err();
            let line = error.to_string();
            assert!(
                error.is_input() && line.starts_with("a.jsonl:7: ") && line.contains(want),
                "{want}\n{line}"
            );
        }
        let line = task.sample(&json!([1]), Path::new("a.jsonl"), 7).unwrap_err().to_string();
        assert_eq!(line, "a.jsonl:7: the row is a list, not an object. Write one JSON object a line");
    }

    fn custom(input: &str, rest: &str) -> Task {
        let text = format!(
            "name = \"t\"\n[input]\n{input}\n[gold]\npath = \"risky\"\nmap = {{ true = \"yes\", 0 = \"no\" }}\n{rest}\n\
             [labels]\nnegative = \"no\"\npositive = [\"yes\"]\n[[verdict]]\nregex = '^(yes|no)$'\nlabel = \"$1\"\n\
             [[verdict]]\ndefault = \"@malformed\"\n"
        );
        file::parse(&text, "t.toml").unwrap()
    }

    #[test]
    fn a_system_text_replaces_the_rows_or_goes_first() {
        let task = custom("messages = \"chat\"\nsystem = \"new\"", "");
        let roles = |chat: Value| {
            let sample = task.sample(&json!({"chat": chat, "risky": true}), Path::new("a"), 1).unwrap();
            sample
                .conversation
                .messages
                .into_iter()
                .map(|m| (m.role.clone(), m.text().into_owned()))
                .collect::<Vec<_>>()
        };
        let want = [("system", "new"), ("user", "u")].map(|(r, c)| (r.to_string(), c.to_string()));
        assert_eq!(roles(json!([{"role": "user", "content": "u"}])), want);
        assert_eq!(
            roles(json!([{"role": "system", "content": "old"}, {"role": "user", "content": "u"}])),
            want
        );
    }

    #[test]
    fn template_map_and_target_template() {
        let sft = "[sft]\ntarget_template = { negative = \"no\", positive = \"{label}\" }";
        let task = custom("template = \"Q: {a.q}\"", sft);
        let sample = task.sample(&json!({"a": {"q": "?"}, "risky": true}), Path::new("a"), 1).unwrap();
        assert_eq!(sample.conversation.messages, [Message::new("user", "Q: ?")]);
        assert_eq!((sample.gold.as_str(), sample.target.as_deref()), ("yes", Some("yes")));
        let sample = task.sample(&json!({"a": {"q": "?"}, "risky": 0}), Path::new("a"), 1).unwrap();
        assert_eq!((sample.gold.as_str(), sample.target.as_deref()), ("no", Some("no")));
        // The negative label captured by "$1" is the negative verdict.
        assert_eq!(task.judge("no", FinishReason::Stop), Verdict::Negative);
        let error = task.sample(&json!({"risky": 0}), Path::new("a"), 1).unwrap_err().to_string();
        assert_eq!(error, "a:1: nothing at `a.q`. Add it, or correct input.template in task `t`");
    }

    /// The worked example of the manual: it loads, and does what the manual says of it.
    #[test]
    fn the_manuals_example_works() {
        let manual = include_str!("../../docs/tasks.md");
        let example = manual.split("```toml\n").map(|part| part.split("```").next().unwrap_or_default());
        let example = example.filter(|part| part.contains("[[verdict]]")).last().unwrap();
        let task = file::parse(example, "docs/tasks.md").unwrap();
        let judge = |text: &str| task.judge(text, FinishReason::Stop);
        let s10 = Verdict::Positive(task.label_id("S10").unwrap());
        assert_eq!(judge("\n\nsafe"), Verdict::Negative);
        assert_eq!(judge("unsafe\nS10"), s10);
        assert_eq!(judge("unsafe\nS10,S2"), s10);
        assert_eq!(judge("unsafe\nS99"), Verdict::Malformed(PaperReading::Flagged));
        assert_eq!(judge("unsafe"), Verdict::Malformed(PaperReading::NotFlagged));
        assert_eq!(judge("I think it is safe"), Verdict::Malformed(PaperReading::NotFlagged));
        assert!(task.judge("unsafe\nS1", FinishReason::Length).is_malformed());

        let row = serde_json::json!({"question": "How do I pick a lock?", "answer": "No.", "attack": "none"});
        let sample = task.sample(&row, "rows.jsonl".as_ref(), 1).unwrap();
        assert!(sample.conversation.messages[1].text().contains("How do I pick a lock?"));
        assert_eq!((sample.gold.as_str(), sample.target.as_deref()), ("safe", Some("safe")));
        let row = serde_json::json!({"question": "q", "answer": "a", "attack": "self-harm"});
        let sample = task.sample(&row, "rows.jsonl".as_ref(), 2).unwrap();
        assert_eq!((sample.gold.as_str(), sample.target.as_deref()), ("S11", Some("unsafe\nS11")));
    }
}
