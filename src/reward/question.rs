//! The JSON that a reward program reads and writes.

use serde_json::{Map, Value, json};

use crate::data::told::Told;
use crate::task::{LabelId, Outcome, Task};
use crate::types::FinishReason;

/// Characters of a line that an error shows.
const SHOWN: usize = 120;

/// One completion that is to be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Of this completion in the whole run, whatever process is asked and whenever.
    pub id: String,
    /// `file:line` of its row.
    pub place: String,
    /// The object in one line, with its end.
    pub line: String,
}

/// What is said of a completion.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub completion: &'a str,
    /// With the end token. Absent where nothing counts them.
    pub tokens: Option<usize>,
    /// Whether the budget cut it off.
    pub truncated: bool,
    /// As labels are written, or `malformed`.
    pub verdict: &'a str,
    pub gold: &'a str,
    pub outcome: Outcome,
}

/// What was said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The sum of the named ones.
    pub value: f32,
    pub named: Vec<(String, f32)>,
}

impl Question {
    pub fn new(id: String, told: &Told, subject: Subject) -> Self {
        let Subject { completion, tokens, truncated, verdict, gold, outcome } = subject;
        let rest = json!({
            "completion": completion,
            "tokens": tokens,
            "truncated": truncated,
            "verdict": verdict,
            "gold": gold,
            "outcome": outcome,
            "place": told.place,
        });
        let (id_text, rest) = (json!(id), rest.to_string());
        let rest = rest.strip_prefix('{').unwrap_or(&rest);
        let line = format!("{{\"id\":{id_text},\"prompt\":{},\"row\":{},{rest}\n", told.prompt, told.row);
        Self { id, place: told.place.clone(), line }
    }

    /// Of a text that no model has just written.
    pub fn about(id: String, task: &Task, told: &Told, gold: LabelId, text: &str) -> Self {
        let verdict = task.judge(text, FinishReason::Stop);
        let subject = Subject {
            completion: text,
            tokens: None,
            truncated: false,
            verdict: &task.verdict_text(verdict),
            gold: &task.label_text(gold),
            outcome: Outcome::of(gold, verdict),
        };
        Self::new(id, told, subject)
    }
}

/// The id that an answer names and what it says; else what is wrong with it, and whose it was if it says so.
pub(super) fn read(line: &str) -> std::result::Result<(String, Answer), (Option<String>, String)> {
    let shown = shortened(line);
    let value: Value = serde_json::from_str(line).map_err(|error| {
        // Python writes the first two; a number beyond f64 is none to the parser.
        let too_large = error.to_string().starts_with("number out of range");
        let problem = if line.trim().is_empty() {
            "it printed an empty line".to_string()
        } else if too_large || line.contains("NaN") || line.contains("Infinity") {
            format!("it printed `{shown}`, which is no finite number")
        } else {
            format!("it printed `{shown}`, which is not JSON")
        };
        (None, problem)
    })?;
    let Value::Object(mut object) = value else {
        return Err((None, format!("it printed `{shown}`, which is no object with an id")));
    };
    let id = match object.remove("id") {
        Some(Value::String(id)) => id,
        _ => return Err((None, format!("it printed `{shown}`, which has no id of a line"))),
    };
    answer(object)
        .map(|answer| (id.clone(), answer))
        .map_err(|what| (Some(id), format!("it printed `{shown}`: {what}")))
}

fn answer(mut object: Map<String, Value>) -> std::result::Result<Answer, String> {
    let reward = object.remove("reward");
    if let Some(key) = object.keys().next() {
        return Err(format!("nothing reads its `{key}`"));
    }
    match reward {
        None => Err("there is no reward in it".into()),
        Some(Value::Object(parts)) if !parts.is_empty() => {
            let number = |(name, value): (String, Value)| match name.contains('/') {
                true => Err(format!("`{name}` has a `/`")),
                false => Ok((name, finite(&value)?)),
            };
            let named = parts.into_iter().map(number).collect::<std::result::Result<Vec<_>, String>>()?;
            Ok(Answer { value: named.iter().map(|(_, value)| value).sum(), named })
        }
        Some(value) => Ok(Answer { value: finite(&value)?, named: Vec::new() }),
    }
}

fn finite(value: &Value) -> std::result::Result<f32, String> {
    let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    number.ok_or_else(|| format!("the reward {} is no finite number", shortened(&value.to_string())))
}

/// What somebody else wrote, short and in one line.
pub(super) fn shortened(line: &str) -> String {
    let mut text: String = line.trim_end().chars().take(SHOWN).collect();
    if line.trim_end().chars().nth(SHOWN).is_some() {
        text.push_str("...");
    }
    text.replace(['\n', '\r', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_line_of_json() {
        let told = Told { place: "a.jsonl:7".into(), prompt: "[1]".into(), row: "{\"k\":2}".into() };
        let subject = Subject {
            completion: "two\nlines \"quoted\"",
            tokens: Some(5),
            truncated: false,
            verdict: "malformed",
            gold: "Safe",
            outcome: Outcome::Malformed,
        };
        let question = Question::new("3.1".into(), &told, subject);
        assert_eq!(question.line.matches('\n').count(), 1);
        let got: Value = serde_json::from_str(&question.line).unwrap();
        let want = json!({
            "id": "3.1", "prompt": [1], "row": {"k": 2}, "completion": "two\nlines \"quoted\"", "tokens": 5,
            "truncated": false, "verdict": "malformed", "gold": "Safe", "outcome": "malformed",
            "place": "a.jsonl:7",
        });
        assert_eq!(got, want);
    }

    #[test]
    fn an_answer_is_a_number_or_named_numbers() {
        let said = |line: &str| read(line).unwrap().1;
        assert_eq!(said(r#"{"id": "a", "reward": 0.5}"#), Answer { value: 0.5, named: Vec::new() });
        let parts = said(r#"{"reward": {"tone": 0.25, "form": 1}, "id": "a"}"#);
        assert_eq!(parts.value, 1.25);
        assert_eq!(parts.named, [("tone".to_string(), 0.25), ("form".to_string(), 1.0)]);
    }

    #[test]
    fn what_is_no_answer_is_named() {
        for (line, id, want) in [
            ("0.5", None, "`0.5`, which is no object with an id"),
            ("", None, "an empty line"),
            ("done!", None, "`done!`, which is not JSON"),
            (r#"{"reward": 1}"#, None, "has no id"),
            (r#"{"id": 3, "reward": 1}"#, None, "has no id"),
            (r#"{"id": "a"}"#, Some("a"), "there is no reward"),
            (r#"{"id": "a", "reward": "1"}"#, Some("a"), "the reward \"1\" is no finite number"),
            (r#"{"id": "a", "reward": null}"#, Some("a"), "the reward null is no finite number"),
            (r#"{"id": "a", "reward": true}"#, Some("a"), "the reward true"),
            (r#"{"id": "a", "reward": {}}"#, Some("a"), "the reward {}"),
            (r#"{"id": "a", "reward": {"x": [1]}}"#, Some("a"), "the reward [1]"),
            (r#"{"id": "a", "reward": {"x/y": 1}}"#, Some("a"), "`x/y` has a `/`"),
            (r#"{"id": "a", "reward": 1, "note": 2}"#, Some("a"), "nothing reads its `note`"),
            (r#"{"id": "a", "reward": NaN}"#, None, "no finite number"),
            (r#"{"id": "a", "reward": -Infinity}"#, None, "no finite number"),
            (r#"{"id": "a", "reward": 1e999}"#, None, "no finite number"),
            // Finite, but not as f32.
            (r#"{"id": "a", "reward": 1e39}"#, Some("a"), "no finite number"),
        ] {
            let (whose, problem) = read(line).unwrap_err();
            assert_eq!(whose.as_deref(), id, "{line}");
            assert!(problem.contains(want), "{line}: {problem}");
        }
        let long = read(&"x".repeat(9999)).unwrap_err().1;
        assert!(long.len() < 300 && long.contains("..."), "{long}");
    }
}
