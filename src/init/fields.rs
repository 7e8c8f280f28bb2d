//! Which field of a row is what.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::data::lines::Place;
use crate::error::{Error, Result};

/// Rows that are looked at to tell what the fields are.
const FIRST: usize = 1000;
const CONVERSATIONS: [&str; 5] = ["messages", "conversation", "conversations", "prompt", "dialogue"];
const LABELS: [&str; 9] =
    ["label", "labels", "class", "category", "verdict", "gold", "target", "is_malicious", "flagged"];
const ANSWERS: [&str; 6] = ["completion", "response", "answer", "output", "chosen", "assistant"];
const TEXTS: [&str; 12] = [
    "text",
    "prompt",
    "input",
    "content",
    "question",
    "sentence",
    "body",
    "message",
    "instruction",
    "query",
    "log",
    "document",
];
/// Fields that say where a row is from, not what is in it.
const ABOUT: [&str; 10] =
    ["id", "uid", "uuid", "idx", "index", "source", "url", "split", "date", "timestamp"];

/// Where the input of a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A list of messages, the last of which is to be answered.
    Messages(String),
    /// A list of messages that ends with an answer, which is judged with the rest: written as one text.
    Transcript(String),
    /// Texts.
    Texts(Vec<String>),
}

/// Where the label of a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gold {
    Field(String),
    /// The last message of this conversation.
    LastMessage(String),
}

/// How rows are read, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub input: Input,
    pub gold: Gold,
    /// A line each: what was taken for what, and why.
    pub because: Vec<String>,
}

impl Reading {
    /// Whether the prompts ask their question themselves: the label is what was answered to them.
    pub fn asks_itself(&self) -> bool {
        match &self.gold {
            Gold::LastMessage(_) => true,
            Gold::Field(name) => ANSWERS.contains(&name.as_str()),
        }
    }

    pub(super) fn of(file: &Path, rows: &[(Place, Value)]) -> Result<Self> {
        let first: Vec<&Map<String, Value>> =
            rows.iter().take(FIRST).filter_map(|(_, row)| row.as_object()).collect();
        if first.is_empty() {
            let problem = "the rows are no JSON objects";
            return Err(Error::input(
                file.display(),
                problem,
                "Write one object a line, such as {\"text\": ..., \"label\": ...}",
            ));
        }
        let has =
            |name: &str, is: &dyn Fn(&Value) -> bool| first.iter().all(|row| row.get(name).is_some_and(is));
        let named = |names: &[&str], is: &dyn Fn(&Value) -> bool| {
            names.iter().find(|name| has(name, is)).map(|name| name.to_string())
        };
        let conversation = named(&CONVERSATIONS, &|value| turns(value).is_some());
        let label = named(&LABELS, &is_scalar);
        let answer = named(&ANSWERS, &|value| value.is_string());
        let answered = conversation.as_ref().is_some_and(|name| {
            first.iter().all(|row| {
                turns(&row[name.as_str()]).is_some_and(|t| t.last().is_some_and(|t| t.0 == "assistant"))
            })
        });
        let mut because = Vec::new();
        let gold = match (&label, &answer, &conversation) {
            (Some(name), ..) => {
                because.push(format!("label     `{name}`, by its name"));
                Gold::Field(name.clone())
            }
            (None, Some(name), _) => {
                because
                    .push(format!("label     `{name}`: no field is called label, and the answers are few"));
                Gold::Field(name.clone())
            }
            (None, None, Some(name)) if answered => {
                because.push(format!(
                    "label     the last message of `{name}`: the assistant's, and they are few"
                ));
                Gold::LastMessage(name.clone())
            }
            _ => Gold::Field(few_values(file, &first, &mut because)?),
        };
        let input = match conversation {
            Some(name) if answered && gold != Gold::LastMessage(name.clone()) => {
                because.push(format!(
                    "input     `{name}`, a conversation that ends with an answer: judged whole, as one text"
                ));
                Input::Transcript(name)
            }
            Some(name) => {
                because.push(format!("input     `{name}`, a list of messages"));
                Input::Messages(name)
            }
            None => Input::Texts(texts(file, &first, &gold, &mut because)?),
        };
        Ok(Self { input, gold, because })
    }

    /// The row as a draft's files have it, and its label.
    pub(super) fn row(&self, row: &Value) -> std::result::Result<(Value, String), String> {
        let conversation = |name: &str| turns(&row[name]).ok_or(format!("`{name}` is no list of messages"));
        let label = match &self.gold {
            Gold::Field(name) => {
                scalar(&row[name.as_str()]).ok_or(format!("has no `{name}`, which the first row has"))?
            }
            Gold::LastMessage(name) => match conversation(name)?.pop() {
                Some((role, text)) if role == "assistant" => text,
                _ => return Err(format!("the last message of `{name}` is not the assistant's")),
            },
        };
        let label = label.trim().to_string();
        let mut out = Map::new();
        match &self.input {
            Input::Messages(name) => {
                let mut turns = conversation(name)?;
                if self.gold == Gold::LastMessage(name.clone()) {
                    turns.pop();
                }
                match turns.last() {
                    Some((role, _)) if role == "user" || role == "tool" => {}
                    _ => {
                        return Err(format!(
                            "the last message of `{name}` is neither the user's nor a tool's"
                        ));
                    }
                }
                let messages: Vec<Value> = turns
                    .into_iter()
                    .map(|(role, content)| json!({"role": role, "content": content}))
                    .collect();
                out.insert("messages".into(), messages.into());
            }
            Input::Transcript(name) => {
                let lines = conversation(name)?.into_iter().map(|(role, text)| format!("{role}: {text}"));
                out.insert("text".into(), lines.collect::<Vec<_>>().join("\n").into());
            }
            Input::Texts(names) => {
                for name in names {
                    let text = row[name.as_str()]
                        .as_str()
                        .ok_or(format!("has no text `{name}`, which the first row has"))?;
                    out.insert(name.clone(), text.into());
                }
            }
        }
        out.insert("label".into(), label.clone().into());
        Ok((out.into(), label))
    }
}

/// Role and text of each message, in the names of OpenAI's messages or of ShareGPT's.
fn turns(value: &Value) -> Option<Vec<(String, String)>> {
    let messages = value.as_array().filter(|messages| !messages.is_empty())?;
    let turn = |message: &Value| {
        let role = message["role"].as_str().or(message["from"].as_str())?;
        let text = message["content"].as_str().or(message["value"].as_str())?;
        let role = match role {
            "human" => "user",
            "gpt" => "assistant",
            "function" | "observation" => "tool",
            other => other,
        };
        Some((role.to_string(), text.to_string()))
    };
    messages.iter().map(turn).collect()
}

fn is_scalar(value: &Value) -> bool {
    scalar(value).is_some()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

/// The field with the fewest values, each several times.
fn few_values(file: &Path, rows: &[&Map<String, Value>], because: &mut Vec<String>) -> Result<String> {
    let counted = rows[0].keys().filter(|name| !ABOUT.contains(&name.as_str())).filter_map(|name| {
        let values: Option<BTreeSet<String>> =
            rows.iter().map(|row| row.get(name).and_then(scalar)).collect();
        let count = values?.len();
        (count > 1 && count * 3 <= rows.len()).then_some((count, name))
    });
    let Some((count, name)) = counted.min_by_key(|(count, _)| *count) else {
        let fields: Vec<&str> = rows[0].keys().map(String::as_str).collect();
        let problem = format!("no field is a label: the rows have {}", fields.join(", "));
        let fix = "Give every row a field `label` with one of a few names";
        return Err(Error::input(file.display(), problem, fix));
    };
    because.push(format!("label     `{name}`: no field is called label, and it has {count} values"));
    Ok(name.clone())
}

fn texts(
    file: &Path,
    rows: &[&Map<String, Value>],
    gold: &Gold,
    because: &mut Vec<String>,
) -> Result<Vec<String>> {
    let is_text = |name: &str| {
        *gold != Gold::Field(name.to_string())
            && rows.iter().all(|row| row.get(name).is_some_and(Value::is_string))
    };
    if let Some(name) = TEXTS.iter().find(|name| is_text(name)) {
        because.push(format!("input     `{name}`, by its name"));
        return Ok(vec![name.to_string()]);
    }
    let all = rows[0].keys().filter(|name| !ABOUT.contains(&name.as_str()) && is_text(name));
    let all: Vec<String> = all.filter(|name| !name.contains(['.', '[', ']', '{', '}'])).cloned().collect();
    if all.is_empty() {
        let fix = "Give every row a field `text`, or `messages`, a list of {\"role\", \"content\"}";
        return Err(Error::input(file.display(), "no field is a text besides the label", fix));
    }
    because.push(format!("input     {}: all texts besides the label", all.join(", ")));
    Ok(all)
}
