//! `[answers]`: the exact text of every label's answer to a row, for tasks whose answers form a small closed set.

use std::collections::BTreeMap;

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::check::Check;
use super::row::{RowPath, Template};
use super::{LabelId, Outcome, Place, Target, Task, Verdict, shorten};
use crate::error::Result;
use crate::types::FinishReason;

/// The exact text of every label's answer, for the stage `enumerate` and for exact probabilities of labels.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswersSection {
    /// Template of the negative answer. Absent: it is free text, and the task is open.
    negative: Option<String>,
    /// Template of every positive label's answer: `{label}`, `{name}` of the fields, any other `{path}` of the row.
    positive: String,
    /// What group 1 of a regex matches in a text of the row, its last match, by name.
    #[serde(default)]
    fields: BTreeMap<String, FieldEntry>,
}

/// A part of the row's text.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FieldEntry {
    /// Path to the text.
    path: String,
    /// With one capture group.
    regex: String,
}

impl AnswersSection {
    pub fn check(self, check: &Check) -> Result<Answers> {
        let fields = self.fields.into_iter().map(|(name, entry)| {
            let key = format!("answers.fields.{name}");
            let regex = check.one_group(&key, &entry.regex)?;
            Ok(Field { path: check.path(&format!("{key}.path"), &entry.path)?, name, regex })
        });
        let fields = fields.collect::<Result<_>>()?;
        let template = |key: &str, text: &str| check.template(&format!("answers.{key}"), text);
        let negative = self.negative.map(|text| template("negative", &text)).transpose()?;
        Ok(Answers { negative, positive: template("positive", &self.positive)?, fields })
    }
}

/// How the answers of a row are written.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// None: the benign answer is free text, and stands for whatever is no other answer.
    negative: Option<Template>,
    positive: Template,
    fields: Vec<Field>,
}

impl Answers {
    pub fn has_negative(&self) -> bool {
        self.negative.is_some()
    }

    /// Keys of a row that the answers read.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let holes = self.negative.iter().chain([&self.positive]).flat_map(Template::holes);
        holes.chain(self.fields.iter().map(|field| &field.path)).map(RowPath::root)
    }
}

/// `{name}` in an answer: what group 1 of `regex` matches in the text at `path`, its last match.
#[derive(Clone, Debug)]
pub(super) struct Field {
    name: String,
    path: RowPath,
    regex: Regex,
}

/// One label and the text that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub label: LabelId,
    pub text: String,
}

impl Task {
    /// Whether every label has an answer: then they are all there is to say, and the rest is malformed.
    pub fn has_closed_answers(&self) -> bool {
        self.answers.as_ref().is_some_and(Answers::has_negative)
    }

    /// Every label's answer to a row, the negative one first, where it has a text of its own.
    ///
    /// # Errors
    /// The task has no `[answers]`; the row lacks a field; an answer is not judged to be its label.
    pub fn answers(&self, row: &Value, file: &std::path::Path, line: usize) -> Result<Vec<Answer>> {
        let at = Place { task: self, file, line };
        let Some(answers) = &self.answers else {
            let problem = format!("task `{}` does not say what its answers are", self.name);
            return Err(at.error(problem, "Add [answers] to the task file; docs/tasks.md says how"));
        };
        let mut row = row.clone();
        for field in &answers.fields {
            let text = field.path.get(&row).and_then(Value::as_str);
            let found = text.and_then(|text| field.regex.captures_iter(text).last()?.get(1));
            let Some(found) = found.map(|found| found.as_str().to_string()) else {
                let problem = format!("answers.fields.{} finds nothing at `{}`", field.name, field.path);
                return Err(at.error(problem, "Correct its path or regex, or the row"));
            };
            if let Some(map) = row.as_object_mut() {
                map.insert(field.name.clone(), found.into());
            }
        }
        let labels = self.labels().iter().enumerate();
        let texts = labels.filter_map(|(index, name)| {
            let label = LabelId(index as u16);
            let template = if label.is_negative() { answers.negative.as_ref()? } else { &answers.positive };
            Some((label, name, template))
        });
        texts
            .map(|(label, name, template)| {
                let rendered = self.label_for(label, |text| template.render(&row, Some(text)));
                let text = rendered.map_err(|path| at.absent(path, "answers"))?;
                if !Outcome::of(label, self.judge(&text, FinishReason::Stop)).is_exact() {
                    let problem = format!("the answer `{}` is not judged to be `{name}`", shorten(&text));
                    return Err(at.error(problem, "Make [answers] and the [[verdict]] rules agree"));
                }
                Ok(Answer { label, text })
            })
            .collect()
    }

    /// What says `label` of a row, where `[answers]` or `sft.target_template` has a text for it.
    pub fn text_of(&self, row: &Value, label: LabelId) -> Option<String> {
        if self.answers.is_some() {
            let answers = self.answers(row, std::path::Path::new(""), 0).ok()?;
            if let Some(answer) = answers.into_iter().find(|answer| answer.label == label) {
                return Some(answer.text);
            }
        }
        let Some(Target::Templates { negative, positive }) = &self.target else { return None };
        let template = if label.is_negative() { negative } else { positive };
        self.label_for(label, |text| template.render(row, Some(text)).ok())
    }

    /// What a completion that is none of the answers is taken for: malformed where every label has one, else the
    /// negative label.
    pub fn remainder(&self) -> Verdict {
        match self.has_closed_answers() {
            true => Verdict::Malformed(super::PaperReading::NotFlagged),
            false => Verdict::Negative,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::synthetic::{self, Spec, Split};
    use serde_json::json;

    #[test]
    fn the_demos_answers_hold_the_one_to_imitate() {
        let task = Task::load("demo").unwrap();
        assert!(task.has_closed_answers());
        for (i, row) in synthetic::rows(&Spec::new(3, Split::Test, 200)).iter().enumerate() {
            let answers = task.answers(row, Path::new("synthetic"), i).unwrap();
            let gold = task.label_id(row["security_type"][0].as_str().unwrap()).unwrap();
            assert_eq!(answers.len(), 10);
            assert_eq!(
                answers[gold.index()],
                Answer { label: gold, text: row["chosen"].as_str().unwrap().into() }
            );
        }
    }

    fn riskcue_row(server: &str) -> Value {
        json!({
            "prompt": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": format!("call:\n{{\n \"server\": \"{server}\",\n \"tool\": \"send\"}}")},
                {"role": "user", "content": "{\"Tool_result\": 1}"},
            ],
            "security_type": ["Safe"],
        })
    }

    #[test]
    fn riskcues_refusals_name_the_server_that_was_called() {
        let task = Task::load("riskcue").unwrap();
        assert!(!task.has_closed_answers());
        let answers = task.answers(&riskcue_row("Mail Service"), Path::new("a"), 1).unwrap();
        assert_eq!(answers.len(), 9, "a benign answer is free text");
        let want =
            r#"Unsafe MCP Server:{"ServerName":"Mail", "ToolName":"send", "Reason":"Denial-of-Service"}"#;
        assert_eq!(answers[7].text, want);
        assert_eq!(task.remainder(), Verdict::Negative);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |task: &str, row: &Value| {
            Task::load(task).unwrap().answers(row, Path::new("a.jsonl"), 4).unwrap_err().to_string()
        };
        let text = error("riskcue", &json!({"prompt": [{"content": "x"}, {"content": "y"}]}));
        assert!(
            text.starts_with("a.jsonl:4: answers.fields.server finds nothing at `prompt[-2].content`"),
            "{text}"
        );
        // A quote within a name breaks the refusal's form.
        let text = error("riskcue", &riskcue_row("a\\"));
        assert!(text.contains("is not judged to be `Sensitive Data Exfiltration`"), "{text}");
    }
}
