//! The gold labels of recorded conversations, one a tool result.

use std::path::Path;

use serde_json::Value;

use super::{LabelId, Place, Task};
use crate::error::Result;

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
