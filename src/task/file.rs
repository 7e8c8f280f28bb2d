//! The task file: TOML in, checked `Task` out. Every mistake is one line with the file, the key and the fix.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::answers::AnswersSection;
use super::check::Check;
use super::grounded::GroundedSection;
use super::paper::PaperSection;
use super::reward_file::{self, ExtraReward, MainReward};
use super::verdict::{LabelSet, PaperReading, Rule, RuleLabel, Rules, Take, Truncated, Verdict};
use super::{Gold, LabelId, Messages, Outcome, Target, Task, shorten};
use crate::config::range::{Outside, outside};
use crate::config::schema;
use crate::error::{Error, Result};
use crate::types::{FinishReason, Trusted};

const MANUAL: &str = "docs/tasks.md lists every key";

/// A task: how a row becomes a conversation with a gold label, how an answer becomes a verdict, and what it earns.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskFile {
    /// The task's name in reports.
    name: String,
    /// What an answer is that the completion budget cut off.
    #[serde(default)]
    truncated: Truncated,
    /// How often an evaluation asks again where an answer is malformed (temperature above 0).
    #[serde(default)]
    #[schemars(range(max = 1000))]
    retries: u32,
    /// Path to true or false: whether the row's attack went through without a guard.
    attack_succeeded: Option<String>,
    input: InputSection,
    gold: GoldSection,
    sft: Option<SftSection>,
    answers: Option<AnswersSection>,
    labels: LabelsSection,
    /// The first rule whose regex matches an answer decides. The last one is the default.
    verdict: Vec<RuleEntry>,
    paper: Option<PaperSection>,
    grounded: Option<GroundedSection>,
    #[serde(default)]
    reward: MainReward,
    /// Rewards beside `[reward]`, by name.
    #[serde(default)]
    extra_rewards: BTreeMap<String, ExtraReward>,
}

/// How a row becomes a conversation: exactly one of messages, mcp and template.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InputSection {
    /// Path to a list of messages in OpenAI's form: `role` and `content`, and `tool_calls`, `tool_call_id`, `name`,
    /// `reasoning_content` and what else the chat template may write. The last message is the user's or a tool's.
    messages: Option<String>,
    /// Path to a transcript of MCP: a list of JSON-RPC messages, or a text with one a line. Calls of tools become the
    /// assistant's, results and logs the tool's messages.
    mcp: Option<String>,
    /// With mcp: path to the user's request, which comes first.
    question: Option<String>,
    /// Text of one user message; `{path}` is the row's value there, `{{` and `}}` are braces.
    template: Option<String>,
    /// System text: replaces the row's first system message, or is put before the first message.
    system: Option<String>,
    /// Path to the tools that the row says there are, for the chat template: a list in OpenAI's form or in that of MCP's
    /// tools/list. A row without it has none.
    tools: Option<String>,
    /// The last message may be the assistant's, which is then what is judged.
    #[serde(default)]
    judge_assistant: bool,
    /// Tokens of the tokenizer that texts of a row may write: a list, or `"all"`. Any other that stands in a text is text.
    trusted_tokens: Option<TrustedTokens>,
}

/// Tokens that are meant where a row writes them.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a list of tokens, or \"all\"")]
enum TrustedTokens {
    /// Only `all`.
    Word(AllTokens),
    Tokens(Vec<String>),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum AllTokens {
    All,
}

/// Where a row's gold label is.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GoldSection {
    /// Path to a text, number or boolean, or to a list of them where labels.multi is true.
    path: String,
    /// From raw value to label. A value that is not here has to be a label itself.
    #[serde(default)]
    map: BTreeMap<String, String>,
}

/// The answer that SFT imitates: exactly one of target and target_template.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SftSection {
    /// Path to the text. Where it is the content of the last of `input.messages` (`messages[-1].content`) and that message is the
    /// assistant's, it is the answer and no part of the prompt.
    target: Option<String>,
    target_template: Option<TargetTemplates>,
}

/// `{label}` is the gold label, `{name}` its name in words, any other `{path}` the row's value.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetTemplates {
    /// Text of the negative answer.
    negative: String,
    /// Text of a positive answer.
    positive: String,
}

/// The labels of the task.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LabelsSection {
    /// The label of "nothing to flag".
    negative: String,
    /// All other labels.
    positive: Vec<String>,
    /// Compare labels without regard to case.
    #[serde(default)]
    ignore_case: bool,
    /// Gold label and answer may be several positive labels, in answers with commas between them.
    #[serde(default)]
    multi: bool,
    /// From each label to its name in words, `{name}` in templates.
    #[serde(default)]
    names: BTreeMap<String, String>,
}

/// One rule.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    /// Pattern of the Rust `regex` crate; it matches anywhere unless anchored.
    regex: Option<String>,
    /// `$1`, the text of that capture group; `@negative`; `@malformed`; or a label.
    label: Option<String>,
    /// With a capture: which match in the answer.
    take: Option<Take>,
    /// Only in the last rule, in the place of regex and label: `@negative` or `@malformed`.
    default: Option<String>,
    /// How the paper's rule reads this rule's malformed answers.
    paper: Option<PaperReading>,
}

/// JSON schema of a task file.
pub(super) fn schema() -> serde_json::Value {
    schema::of::<TaskFile>()
}

/// `place` is what errors call the file.
pub(super) fn parse(text: &str, place: &str) -> Result<Task> {
    let check = Check { place };
    if let Ok(table) = toml::from_str(text) {
        check.numbers(&table)?;
    }
    let file: TaskFile = toml::from_str(text).map_err(|e| toml_error(text, place, &e))?;
    if file.name.trim().is_empty() {
        return Err(check.at("name", "the name is empty", "Name the task, for example `name = \"riskcue\"`"));
    }
    let labels = check.labels(file.labels)?;
    let gold = check.gold(file.gold, &labels)?;
    let input = check.input(file.input, &gold)?;
    let target = file.sft.map(|sft| check.target(sft)).transpose()?;
    let answers = file.answers.map(|section| section.check(&check)).transpose()?;
    let has_negative_answer = answers.as_ref().is_some_and(|answers| answers.has_negative());
    let grounding = file.grounded.map(|section| section.check(&check, has_negative_answer)).transpose()?;
    let rule_paper = file.verdict.iter().position(|rule| rule.paper.is_some());
    let has_paper = file.paper.is_some() || rule_paper.is_some();
    let paper_flag = file.paper.map(|section| section.check(&check, rule_paper)).transpose()?;
    let mut rules = check.rules(file.verdict, &labels, file.truncated)?;
    rules.paper_flag = paper_flag;
    let rewards = reward_file::rewards(&check, &file.name, file.reward, file.extra_rewards)?;
    let attack_succeeded =
        file.attack_succeeded.map(|path| check.path("attack_succeeded", &path)).transpose()?;
    let task = Task {
        name: file.name,
        labels,
        input,
        gold,
        target,
        answers,
        rules,
        rewards,
        retries: file.retries,
        has_paper,
        attack_succeeded,
        grounding,
    };
    check.templates_agree_with_rules(&task)?;
    Ok(task)
}

fn toml_error(text: &str, place: &str, error: &toml::de::Error) -> Error {
    let place = match error.span() {
        // A span of the whole file says nothing: the key is missing from it.
        Some(span) if span.start > 0 || span.end < text.len() => {
            let line = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
            let key = text.lines().nth(line - 1).and_then(|line| line.split_once('='));
            match key {
                Some((key, _)) if !error.message().contains(" field `") => {
                    format!("{place}:{line}: {}", key.trim())
                }
                _ => format!("{place}:{line}"),
            }
        }
        _ => place.to_string(),
    };
    Error::input(place, error.message(), format!("Correct it; {MANUAL}"))
}

impl Check<'_> {
    fn labels(&self, section: LabelsSection) -> Result<LabelSet> {
        if section.positive.is_empty() {
            return Err(self.at("labels.positive", "the list is empty", "Give at least one positive label"));
        }
        let most = if section.multi { LabelId::SET_LABELS } else { 1 << LabelId::SET_LABELS };
        if section.positive.len() >= most + usize::from(section.multi) {
            let problem = format!("{} labels are too many", section.positive.len());
            return Err(self.at("labels.positive", problem, format!("Give at most {most}")));
        }
        let names = std::iter::once(section.negative).chain(section.positive).collect::<Vec<_>>();
        let mut set =
            LabelSet { names, ignore_case: section.ignore_case, multi: section.multi, words: Vec::new() };
        for (i, name) in set.names.iter().enumerate() {
            let key = if i == 0 { "labels.negative".into() } else { format!("labels.positive[{}]", i - 1) };
            if name.trim() != name || name.is_empty() {
                let problem = format!("`{name}` is empty or has blanks around it");
                return Err(self.at(&key, problem, "Give the label as the answers spell it"));
            }
            if name.starts_with(['@', '$']) {
                let problem = format!("`{name}` begins with `@` or `$`, which verdict rules use");
                return Err(self.at(&key, problem, "Choose another name, and map it in [gold.map]"));
            }
            if set.multi && name.contains(',') {
                let problem = format!("`{name}` has a comma, which stands between the labels of an answer");
                return Err(self.at(&key, problem, "Choose another name, and map it in [gold.map]"));
            }
            if set.names[..i].iter().any(|earlier| set.same(earlier, name)) {
                let fix = "Name each label once; the negative label is not among the positive ones";
                return Err(self.at(&key, format!("`{name}` is a label already"), fix));
            }
        }
        if let Some(unknown) = section.names.keys().find(|name| !set.names.contains(name)) {
            let problem = format!("`{unknown}` is not a label of this task");
            let fix = format!("Use each of: {}", set.names.join(", "));
            return Err(self.at(&format!("labels.names.{unknown}"), problem, fix));
        }
        if !section.names.is_empty() {
            let words = set.names.iter().map(|name| section.names.get(name).cloned().ok_or(name));
            set.words = words.collect::<std::result::Result<_, _>>().map_err(|name| {
                self.at("labels.names", format!("`{name}` has no name"), "Name every label, or none")
            })?;
        }
        Ok(set)
    }

    fn known(&self, key: &str, name: &str, labels: &LabelSet) -> Result<LabelId> {
        labels.find(name).ok_or_else(|| {
            let fix = format!("Use one of: {}", labels.names.join(", "));
            self.at(key, format!("`{name}` is not a label of this task"), fix)
        })
    }

    fn gold(&self, section: GoldSection, labels: &LabelSet) -> Result<Gold> {
        let map = section.map.into_iter().map(|(raw, label)| {
            let label = self.known(&format!("gold.map.{raw}"), &label, labels)?;
            Ok((raw, label))
        });
        Ok(Gold { path: self.path("gold.path", &section.path)?, map: map.collect::<Result<_>>()? })
    }

    fn input(&self, section: InputSection, gold: &Gold) -> Result<super::Input> {
        let question = section.question.map(|path| self.path("input.question", &path)).transpose()?;
        if question.is_some() && section.mcp.is_none() {
            let fix = "Remove it, or give mcp";
            return Err(self.at("input.question", "has no effect without input.mcp", fix));
        }
        let messages = match (section.messages, section.mcp, section.template) {
            (None, Some(path), None) => Messages::Mcp(self.path("input.mcp", &path)?, question),
            (Some(path), None, None) => Messages::Listed(self.path("input.messages", &path)?),
            (None, None, Some(text)) => {
                let template = self.template("input.template", &text)?;
                if template.holes().any(|path| *path == gold.path) {
                    let problem =
                        format!("`{{{}}}` is gold.path, so the prompt gives the label away", gold.path);
                    return Err(self.at("input.template", problem, "Leave it out of the template"));
                }
                Messages::Template(template)
            }
            _ => {
                let fix = "Give `messages = \"path\"`, `mcp = \"path\"` or `template = \"text with {path}\"`, and only one of them";
                return Err(self.at("input", "exactly one of messages, mcp and template is wanted", fix));
            }
        };
        if section.judge_assistant && matches!(messages, Messages::Template(_)) {
            let problem = "has no effect: a template makes one message, the user's";
            return Err(self.at("input.judge_assistant", problem, "Give messages, or remove it"));
        }
        let tools = section.tools.map(|path| self.path("input.tools", &path)).transpose()?;
        let trusted = match section.trusted_tokens {
            None => Trusted::None,
            Some(TrustedTokens::Word(AllTokens::All)) => Trusted::All,
            Some(TrustedTokens::Tokens(list)) => Trusted::Tokens(list),
        };
        let (system, judge_assistant) = (section.system, section.judge_assistant);
        Ok(super::Input { messages, system, tools, judge_assistant, trusted })
    }

    fn target(&self, section: SftSection) -> Result<Target> {
        match (section.target, section.target_template) {
            (Some(path), None) => Ok(Target::Text(self.path("sft.target", &path)?)),
            (None, Some(text)) => Ok(Target::Templates {
                negative: self.template("sft.target_template.negative", &text.negative)?,
                positive: self.template("sft.target_template.positive", &text.positive)?,
            }),
            _ => {
                let fix = "Give `target = \"path\"` or a target_template, and only one of them; \
                           a task without SFT has no [sft]";
                Err(self.at("sft", "exactly one of target and target_template is wanted", fix))
            }
        }
    }

    fn rules(&self, mut entries: Vec<RuleEntry>, labels: &LabelSet, truncated: Truncated) -> Result<Rules> {
        let missing = || {
            let fix =
                "End the rules with [[verdict]] `default = \"@malformed\"` or `default = \"@negative\"`";
            self.at("verdict", "the last rule is not a default", fix)
        };
        let last = entries.pop().ok_or_else(missing)?;
        let Some(default) = &last.default else { return Err(missing()) };
        let key = format!("verdict[{}]", entries.len());
        if last.regex.is_some() || last.label.is_some() || last.take.is_some() {
            let problem = "regex, label and take have no effect beside default";
            return Err(self.at(&key, problem, "Make them a rule of their own before the default"));
        }
        let default = match (default.as_str(), last.paper) {
            ("@negative", None) => Verdict::Negative,
            ("@malformed", paper) => Verdict::Malformed(paper.unwrap_or_default()),
            ("@negative", Some(_)) => return Err(self.paper_without_effect(&key)),
            (other, _) => {
                let fix = "Use \"@negative\" or \"@malformed\"";
                return Err(self.at(&format!("{key}.default"), format!("`{other}` is not a default"), fix));
            }
        };
        let ordered = entries.into_iter().enumerate().map(|(i, entry)| self.rule(i, entry, labels));
        Ok(Rules { ordered: ordered.collect::<Result<_>>()?, default, truncated, paper_flag: None })
    }

    fn paper_without_effect(&self, key: &str) -> Error {
        let problem = "paper has no effect, because this rule never yields a malformed verdict";
        self.at(&format!("{key}.paper"), problem, "Remove it, or set the label to \"@malformed\" or \"$1\"")
    }

    fn rule(&self, index: usize, entry: RuleEntry, labels: &LabelSet) -> Result<Rule> {
        let key = format!("verdict[{index}]");
        if entry.default.is_some() {
            let problem = "a default before the last rule leaves the later rules without effect";
            return Err(self.at(&key, problem, "Move it to the end, and keep only one"));
        }
        let (Some(pattern), Some(label)) = (entry.regex, entry.label) else {
            return Err(self.at(&key, "a rule wants a regex and a label", format!("Give both; {MANUAL}")));
        };
        let regex = self.regex(&key, &pattern)?;
        let label_key = format!("{key}.label");
        let rule_label = match label.strip_prefix('$') {
            Some(group) => {
                let group = group.parse::<usize>().ok().filter(|group| *group < regex.captures_len());
                let group = group.ok_or_else(|| {
                    let groups = regex.captures_len() - 1;
                    let problem = format!("`{label}` is not a capture group: the regex has {groups}");
                    self.at(&label_key, problem, "Put (...) around the label in the regex, and use \"$1\"")
                })?;
                RuleLabel::Capture(group)
            }
            None => match label.as_str() {
                "@malformed" => RuleLabel::Malformed,
                "@negative" => RuleLabel::Label(LabelId::NEGATIVE),
                other if other.starts_with('@') => {
                    let fix = "Use \"@negative\", \"@malformed\", \"$1\" or a label";
                    return Err(self.at(&label_key, format!("`{other}` is unknown"), fix));
                }
                name => RuleLabel::Label(self.known(&label_key, name, labels)?),
            },
        };
        if entry.paper.is_some() && matches!(rule_label, RuleLabel::Label(_)) {
            return Err(self.paper_without_effect(&key));
        }
        if entry.take.is_some() && !matches!(rule_label, RuleLabel::Capture(_)) {
            let problem = "take has no effect, because the label is not a capture";
            return Err(self.at(&format!("{key}.take"), problem, "Remove it, or set the label to \"$1\""));
        }
        let (take, paper) = (entry.take.unwrap_or_default(), entry.paper.unwrap_or_default());
        Ok(Rule { regex, label: rule_label, take, paper })
    }

    fn numbers(&self, table: &toml::Table) -> Result<()> {
        match outside(&schema(), &toml::Value::Table(table.clone())) {
            None => Ok(()),
            Some(Outside { path, value, range }) => {
                Err(self.at(&path, format!("{value} is not from {range}"), "Give a number of that range"))
            }
        }
    }

    /// SFT must not teach answers that the task's own rules judge to be something else.
    fn templates_agree_with_rules(&self, task: &Task) -> Result<()> {
        let Some(Target::Templates { negative, positive }) = &task.target else { return Ok(()) };
        for index in 0..task.labels().len() {
            let gold = LabelId(index as u16);
            let label = &task.labels()[index];
            let (key, template) = if index == 0 { ("negative", negative) } else { ("positive", positive) };
            // A template with fields of the row is known only row by row.
            let Ok(text) = task.label_for(gold, |text| template.render(&serde_json::Value::Null, Some(text)))
            else {
                continue;
            };
            if !Outcome::of(gold, task.judge(&text, FinishReason::Stop)).is_exact() {
                let problem = format!("`{}` is not judged to be `{label}`", shorten(&text));
                let fix = "Make the template and the [[verdict]] rules agree";
                return Err(self.at(&format!("sft.target_template.{key}"), problem, fix));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
