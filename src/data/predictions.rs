//! Recorded answers with their gold labels: JSONL rows, or the JSON files of MCP-RiskCue's repository.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::jsonl::EncodedRow;
use super::lines::{Line, Lines, Place};
use super::recorded;
use crate::error::{Error, Result};
use crate::task::{Evidence, LabelId, Task, Verdict};

pub use recorded::Answer;

/// Keys of the gold label in rows that are no data rows, such as those in a run's samples/.
const GOLD_KEYS: [&str; 3] = ["gold", "label", "gold_label"];

/// A prompt's recorded answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// 1-based line of the file, or number of the record.
    pub line: usize,
    pub gold: LabelId,
    pub answers: Vec<Answer>,
    /// The conversation went on after a risky log: it is missed, whatever the last answer says. `gold` is that log's.
    pub passed_over: bool,
    /// The value of the field that answers are grouped by.
    pub group: Option<String>,
    pub attack_succeeded: Option<bool>,
    /// What its benign answers have to repeat, where the row says it.
    pub evidence: Option<Arc<Evidence>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    pub rows: Vec<Prediction>,
    /// Conversations that are not counted, by line, and why.
    pub skipped: Vec<(usize, String)>,
    /// Requests that failed, by line, and why: the model was not asked, so they are not counted either.
    pub failed: Vec<(usize, String)>,
    /// Steps in a file of a run's samples/ that has several, in order, and the one that was read.
    pub steps: Option<(Vec<u64>, u64)>,
}

impl Predictions {
    /// Reads a data file or a JSON object of lists of rows. A row has its gold label where the task's data
    /// rows have it, or in `gold` or `label`, and its answers as `recorded::find` finds them.
    ///
    /// A recorded conversation whose messages do not fit its labels is skipped, as MCP-RiskCue's evaluator does.
    ///
    /// # Errors
    /// The file cannot be read; the first row that cannot be mapped, as `file:line`; no row is left.
    pub fn load(task: &Task, path: &Path, group_by: Option<&str>) -> Result<Self> {
        let mut all = Self::default();
        let (path, wanted) = of_step(path);
        // What can be read once only, a pipe, is no file of a run.
        let steps = if path.is_file() { steps_in(&path)? } else { Vec::new() };
        let chosen = match (wanted, steps.last()) {
            (Some(step), _) if steps.contains(&step) => Some(step),
            (Some(step), _) => {
                let problem = format!("has no answers of step {step}");
                let fix = format!("Choose one of {}", list(&steps));
                return Err(Error::input(path.display(), problem, fix));
            }
            (None, last) => last.copied(),
        };
        for_each_row(&path, |line, place, row| match chosen.is_none() || step_of(row) == chosen {
            true => all.add(task, line, place, row, group_by),
            false => Ok(()),
        })?;
        let path = path.as_path();
        all.steps = Some(steps).filter(|steps| steps.len() > 1).zip(chosen);
        all.merge_samples();
        if all.rows.is_empty() {
            let skipped = all
                .skipped
                .iter()
                .chain(&all.failed)
                .next()
                .map(|(line, why)| format!(": line {line} {why}"));
            let skipped = skipped.unwrap_or_default();
            let problem = format!("has no recorded answer{skipped}");
            return Err(Error::input(path.display(), problem, recorded::fix()));
        }
        Ok(all)
    }

    /// What there is to say of the steps that were not read.
    pub fn of_steps(&self, path: &Path) -> Option<String> {
        let (steps, chosen) = self.steps.as_ref()?;
        let (path, _) = of_step(path);
        let path = path.display();
        Some(format!(
            "{path} has answers of the steps {}: those of {chosen} are read ({path}@{chosen})",
            list(steps)
        ))
    }

    fn add(
        &mut self,
        task: &Task,
        number: usize,
        place: &Place,
        row: &Value,
        group_by: Option<&str>,
    ) -> Result<()> {
        let (path, line) = (&place.file, place.line);
        let refuse =
            |problem: String| Error::input(format!("{}:{line}", path.display()), problem, recorded::fix());
        if !row.is_object() {
            return Err(refuse("the row is not an object".into()));
        }
        if let Some(why) = recorded::failure(row) {
            self.failed.push((number, why));
            return Ok(());
        }
        let mut recorded = recorded::find(row).map_err(refuse)?;
        let ungrounded = row.get("reason").and_then(Value::as_str) == Some(Verdict::UNGROUNDED);
        recorded.answers.iter_mut().for_each(|answer| answer.ungrounded = ungrounded);
        // lm-evaluation-harness keeps the data row beside the answer.
        let labelled =
            row.get("doc").filter(|doc| doc.is_object() && row.get("resps").is_some()).unwrap_or(row);
        let gold = task.gold_labels(labelled, &GOLD_KEYS, path, line)?;
        let fault =
            recorded.conversation.as_ref().zip(gold.count).and_then(|(talk, count)| talk.fault(count));
        if let Some(fault) = fault {
            self.skipped.push((number, fault));
            return Ok(());
        }
        // Without a conversation, whether the earlier answers were right is not recorded.
        let passed_over = recorded.conversation.as_ref().and(gold.passed_over);
        let group = match group_by {
            None => None,
            Some(field) => Some(field_text(row, field).ok_or_else(|| no_field(path, line, field))?),
        };
        self.rows.push(Prediction {
            line: row.get("line").and_then(Value::as_u64).map_or(number, |of_prompt| of_prompt as usize),
            gold: passed_over.unwrap_or(gold.last),
            answers: recorded.answers,
            passed_over: passed_over.is_some(),
            group,
            attack_succeeded: task.attack_succeeded(row, path, line)?,
            evidence: task.evidence(labelled, gold.last).map(Arc::new),
        });
        Ok(())
    }

    /// Rows that name the same `line` of a data file are samples of one prompt; they follow each other.
    fn merge_samples(&mut self) {
        self.rows.dedup_by(|next, kept| {
            let same =
                next.line == kept.line && next.gold == kept.gold && !next.passed_over && !kept.passed_over;
            if same {
                kept.answers.append(&mut next.answers);
            }
            same
        });
    }
}

/// `FILE@50`: of the answers in a file of a run's samples/ those of step 50.
fn of_step(path: &Path) -> (PathBuf, Option<u64>) {
    let text = path.to_string_lossy();
    match text.rsplit_once('@').map(|(file, step)| (PathBuf::from(file), step.parse())) {
        Some((file, Ok(step))) if !path.exists() && file.is_file() => (file, Some(step)),
        _ => (path.into(), None),
    }
}

/// Of a line in a run's samples/.
fn step_of(row: &Value) -> Option<u64> {
    let is_sample =
        ["line", "gold", "verdict", "reward", "completion"].iter().all(|key| row.get(key).is_some());
    row.get("step").filter(|_| is_sample).and_then(Value::as_u64)
}

/// The steps in a file of a run's samples/, in the order of the file; none of another file.
fn steps_in(path: &Path) -> Result<Vec<u64>> {
    let mut steps = Vec::new();
    let mut all = true;
    for_each_row(path, |_, _, row| {
        match step_of(row) {
            Some(step) if steps.last() != Some(&step) => steps.push(step),
            Some(_) => {}
            None => all = false,
        }
        Ok(())
    })?;
    Ok(if all { steps } else { Vec::new() })
}

/// `1, 2, 3, ... 90`.
fn list(steps: &[u64]) -> String {
    let words: Vec<String> = steps.iter().map(u64::to_string).collect();
    match words.as_slice() {
        [] => "no step".into(),
        [first @ .., last] if first.len() > 8 => format!("{}, ... {last}", first[..8].join(", ")),
        few => few.join(", "),
    }
}

/// The text of a field `a.b`; numbers and booleans as JSON writes them.
pub fn field_text(row: &Value, field: &str) -> Option<String> {
    let value = field.split('.').try_fold(row, |value, key| match value {
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => value.get(key),
    })?;
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The value of `field` of each of `rows`, which were read from `path`.
///
/// # Errors
/// A row has nothing there.
pub fn field_of_rows(path: &Path, field: &str, rows: &[EncodedRow]) -> Result<Vec<String>> {
    let mut values = Vec::new();
    let mut wanted = rows.iter().map(|row| row.line).peekable();
    for_each_row(path, |line, place, row| {
        if wanted.next_if_eq(&line).is_some() {
            values.push(field_text(row, field).ok_or_else(|| no_field(&place.file, place.line, field))?);
        }
        Ok(())
    })?;
    Ok(values)
}

fn no_field(path: &Path, line: usize, field: &str) -> Error {
    let problem = format!("nothing at `{field}`, by which answers are grouped");
    Error::input(format!("{}:{line}", path.display()), problem, "Name a field that every row has")
}

/// `visit` is given the number of each row's line, counted on through the files of a source, or of its record where the file
/// is one JSON value; and its place.
pub fn for_each_row(path: &Path, mut visit: impl FnMut(usize, &Place, &Value) -> Result<()>) -> Result<()> {
    let mut lines = Lines::open(path)?;
    let mut chunk: Vec<Line> = lines.next_chunk(2)?;
    let single = chunk.len() == 1;
    let first = chunk.first().map(Line::parse);
    let records = match first {
        Some(Ok(value)) if single => records(value),
        Some(Err(_)) => whole_file(path),
        _ => None,
    };
    if let Some(records) = records {
        let place = |line| Place { file: path.into(), line };
        return records.iter().enumerate().try_for_each(|(i, row)| visit(i + 1, &place(i + 1), row));
    }
    while !chunk.is_empty() {
        for line in &chunk {
            visit(line.number, &line.place, &line.parse()?)?;
        }
        chunk = lines.next_chunk(256)?;
    }
    Ok(())
}

fn whole_file(path: &Path) -> Option<Vec<Value>> {
    records(serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?)
}

/// The rows of a list, or of an object of lists; None: the value is a row.
fn records(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(rows) => Some(rows),
        Value::Object(map) if !map.is_empty() && map.values().all(is_list_of_rows) => {
            Some(map.into_iter().flat_map(|(_, rows)| rows.as_array().cloned().unwrap_or_default()).collect())
        }
        _ => None,
    }
}

fn is_list_of_rows(value: &Value) -> bool {
    let row = |row: &Value| row.is_object() && row.get("role").is_none() && row.get("from").is_none();
    value.as_array().is_some_and(|rows| rows.iter().all(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn load(text: &str) -> Result<Predictions> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        std::fs::write(&path, text).unwrap();
        Predictions::load(&Task::load("riskcue").unwrap(), &path, None)
    }

    /// A recorded conversation with a log and a label for each of `labels`.
    fn history(labels: &[&str], answer: &str) -> Value {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let mut talk = vec![message("system", "s"), message("user", "q")];
        for _ in labels {
            talk.extend([message("assistant", "MCP tool-call message:\n{}"), message("user", "log")]);
        }
        talk.push(message("assistant", answer));
        json!({"server_path": "a.py", "history": talk, "security_type": labels})
    }

    #[test]
    fn of_a_runs_samples_one_step_is_read_and_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grpo-evaluation.jsonl");
        let row = |step: Option<u64>, line: usize, completion: &str| {
            let mut row = json!({
                "line": line, "gold": "Safe", "verdict": "Safe", "reward": 1.0, "completion": completion,
            });
            step.map(|step| row.as_object_mut().unwrap().insert("step".into(), step.into()));
            format!("{row}\n")
        };
        let rows = [(5, 1, "a"), (5, 2, "b"), (10, 1, "c"), (10, 1, "d"), (10, 2, "e")];
        let text: String = rows.iter().map(|(step, line, text)| row(Some(*step), *line, text)).collect();
        std::fs::write(&path, &text).unwrap();
        let load =
            |name: &str| Predictions::load(&Task::load("riskcue").unwrap(), &dir.path().join(name), None);
        let texts = |found: &Predictions| -> Vec<Vec<String>> {
            let of_row = |row: &Prediction| row.answers.iter().map(|answer| answer.text.clone()).collect();
            found.rows.iter().map(of_row).collect()
        };
        let last = load("grpo-evaluation.jsonl").unwrap();
        assert_eq!(texts(&last), [vec!["c", "d"], vec!["e"]]);
        let says = last.of_steps(&path).unwrap();
        assert!(says.contains("has answers of the steps 5, 10: those of 10 are read"), "{says}");
        assert_eq!(texts(&load("grpo-evaluation.jsonl@5").unwrap()), [["a"], ["b"]]);
        let refused = load("grpo-evaluation.jsonl@7").unwrap_err().to_string();
        assert!(refused.contains("has no answers of step 7. Choose one of 5, 10"), "{refused}");
        // An earlier version wrote a file a step; and whatever else has a `step` is read whole.
        let old: String = (1..4).map(|line| row(None, line, "x")).collect();
        std::fs::write(&path, old).unwrap();
        let all = load("grpo-evaluation.jsonl").unwrap();
        assert_eq!((all.rows.len(), all.of_steps(&path)), (3, None));
        std::fs::write(&path, "{\"step\":1,\"gold\":\"Safe\",\"completion\":\"x\"}\n{\"step\":2,\"gold\":\"Safe\",\"completion\":\"y\"}\n").unwrap();
        assert_eq!(load("grpo-evaluation.jsonl").unwrap().rows.len(), 2);
    }

    #[test]
    fn conversations_are_counted_as_the_papers_evaluator_does() {
        let mut long = history(&["Safe"], "ok");
        long["history"].as_array_mut().unwrap().push(json!({"role": "user", "content": "x"}));
        let rows = [
            history(&["Safe"], "ok"),
            history(&["Safe", "Denial-of-Service"], "ok"),
            // The risk of the first log was not refused.
            history(&["Denial-of-Service", "Safe"], "ok"),
            long,
        ];
        let text = rows.map(|row| row.to_string()).join("\n");
        let found = load(&text).unwrap();
        let golds: Vec<_> = found.rows.iter().map(|row| (row.line, row.gold, row.passed_over)).collect();
        assert_eq!(golds, [(1, LabelId(0), false), (2, LabelId(8), false), (3, LabelId(8), true)]);
        assert_eq!(found.skipped.len(), 1);
        assert!(found.skipped[0].0 == 4 && found.skipped[0].1.contains("5 messages"), "{:?}", found.skipped);
    }

    #[test]
    fn a_json_file_of_lists_is_read_as_well() {
        let rows = json!([history(&["Safe"], "a"), history(&["Safe"], "b")]);
        let by_server = json!({"a.py": rows, "b.py": [history(&["Safe"], "c")]});
        for (text, count) in [
            (rows.to_string(), 2),
            (serde_json::to_string_pretty(&rows).unwrap(), 2),
            (by_server.to_string(), 3),
            (serde_json::to_string_pretty(&by_server).unwrap(), 3),
            (history(&["Safe"], "a").to_string(), 1),
        ] {
            assert_eq!(load(&text).unwrap().rows.len(), count);
        }
    }

    #[test]
    fn samples_of_one_prompt_come_together() {
        let row = |line: usize, gold: &str, text: &str| {
            json!({"line": line, "gold": gold, "completion": text}).to_string()
        };
        let text = [row(7, "Safe", "a"), row(7, "Safe", "b"), row(9, "Denial-of-Service", "c")].join("\n");
        let found = load(&text).unwrap().rows;
        let answers: Vec<_> = found.iter().map(|row| (row.line, row.gold, row.answers.len())).collect();
        assert_eq!(answers, [(7, LabelId(0), 2), (9, LabelId(8), 1)]);
    }

    #[test]
    fn what_cannot_be_mapped_is_named_by_line() {
        for (text, want) in [
            (
                "{\"security_type\": [\"Safe\"]}",
                "p.jsonl:1: the row has no answer. Give the answer as one of comp",
            ),
            ("{\"completion\": \"a\"}", "p.jsonl:1: nothing at `security_type[-1]`"),
            (
                "{\"completion\": \"a\", \"gold\": \"safe\"}",
                "p.jsonl:1: `security_type[-1]` is `safe`, which is no label",
            ),
            ("{\"completion\": \"a\", \"gold\": \"Safe\"}\nbad", "p.jsonl:2: malformed JSON"),
            ("3", "p.jsonl:1: the row is not an object"),
            ("", "p.jsonl: has no recorded answer"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(want), "{want}\n{error}");
        }
    }
}
