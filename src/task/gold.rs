//! What a row says of itself: its gold label, in recorded conversations one a tool result, and its attack.

use std::path::Path;

use serde_json::Value;

use super::{Gold, LabelId, Place, Task, Verdict, describe, shorten};
use crate::error::Result;
use crate::types::FinishReason;

/// What a row says of the log that its answer follows, and of those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoldLabels {
    pub last: LabelId,
    /// Labels of the row when the task's `gold.path` takes the last of a list, as `security_type[-1]` does.
    pub count: Option<usize>,
    /// The first positive one before the last: a risk that the conversation went on after.
    pub passed_over: Option<LabelId>,
}

impl Task {
    /// Whether any text that is nothing else is taken for the negative label.
    pub fn takes_any_text(&self) -> bool {
        self.rules.default == Verdict::Negative && !self.has_grounded()
    }

    /// A well-formed positive answer to a row and the label in it, from `[answers]` or from the answer to imitate. None
    /// where neither has one.
    pub fn refusal(&self, row: &Value, file: &Path, line: usize) -> Option<(String, String)> {
        let labelled = |text: String| {
            let label = self.labels().iter().skip(1).find(|label| text.contains(label.as_str()))?.clone();
            self.judge(&text, FinishReason::Stop).is_positive().then_some((text, label))
        };
        let known = self.answers(row, file, line).ok();
        let positive = known.into_iter().flatten().find(|answer| !answer.label.is_negative());
        positive
            .and_then(|answer| labelled(answer.text))
            .or_else(|| labelled(self.sample(row, file, line).ok()?.target?))
    }

    /// The gold labels of a row of recorded answers. `fallback` names other keys that may hold the label, where the
    /// task's own path finds nothing. Errors begin with `file:line`.
    pub fn gold_labels(
        &self,
        row: &Value,
        fallback: &[&str],
        file: &Path,
        line: usize,
    ) -> Result<GoldLabels> {
        let at = Place { task: self, file, line };
        let Some(list) = self.gold.path.list(row) else {
            let path = &self.gold.path;
            let elsewhere = fallback.iter().find_map(|key| row.get(*key).filter(|value| !value.is_null()));
            let last = match (path.get(row), elsewhere) {
                (None, Some(value)) => at.label(value)?,
                _ => at.gold(row)?,
            };
            return Ok(GoldLabels { last, count: None, passed_over: None });
        };
        let labels = list.iter().map(|value| at.label(value)).collect::<Result<Vec<_>>>()?;
        let Some((last, earlier)) = labels.split_last() else {
            return Err(at.absent(&self.gold.path, "gold.path"));
        };
        let passed_over = earlier.iter().copied().find(|label| !label.is_negative());
        Ok(GoldLabels { last: *last, count: Some(labels.len()), passed_over })
    }

    /// Whether the attack of a row of recorded answers succeeded. Errors begin with `file:line`.
    pub fn attack_succeeded(&self, row: &Value, file: &Path, line: usize) -> Result<Option<bool>> {
        Place { task: self, file, line }.attack_succeeded(row)
    }
}

impl Place<'_> {
    pub(super) fn gold(&self, row: &Value) -> Result<LabelId> {
        let path = &self.task.gold.path;
        self.label(path.get(row).ok_or_else(|| self.absent(path, "gold.path"))?)
    }

    pub(super) fn label(&self, value: &Value) -> Result<LabelId> {
        let Gold { path, map } = &self.task.gold;
        let raw = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            Value::Array(list) if self.task.labels.multi => {
                let each = list.iter().map(|one| Ok(self.task.label_text(self.label(one)?)));
                return match each.collect::<Result<Vec<_>>>()?.join(",") {
                    none if none.is_empty() => Ok(LabelId::NEGATIVE),
                    several => self.task.label_id(&several).ok_or_else(|| {
                        let fix = "Give positive labels only; an empty list is the negative label";
                        self.error(format!("`{path}` holds the negative label beside others"), fix)
                    }),
                };
            }
            other => {
                let fix = "Give the label as a text, or correct gold.path";
                return Err(self.error(format!("`{path}` is {}, not a label", describe(other)), fix));
            }
        };
        map.get(&raw).copied().or_else(|| self.task.label_id(&raw)).ok_or_else(|| {
            let problem =
                format!("`{path}` is `{}`, which is no label of task `{}`", shorten(&raw), self.task.name);
            self.error(
                problem,
                format!("Use one of: {}; or map it in [gold.map]", self.task.labels().join(", ")),
            )
        })
    }

    /// None where the task or the row does not say.
    pub(super) fn attack_succeeded(&self, row: &Value) -> Result<Option<bool>> {
        let Some(path) = &self.task.attack_succeeded else { return Ok(None) };
        match path.get(row) {
            None => Ok(None),
            Some(Value::Bool(succeeded)) => Ok(Some(*succeeded)),
            Some(other) => {
                let fix = "Write true or false, or leave it out where there is no attack";
                Err(self.error(format!("`{path}` is {}, not true or false", describe(other)), fix))
            }
        }
    }
}
