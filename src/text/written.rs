//! What a chat template leaves out of a conversation. Many have no branch for a role, for tool calls or for tools, and say
//! nothing of it; the model then reads another conversation than the row has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::chat_template::ChatTemplate;
use super::foreign::Talk;
use crate::error::{Error, Result};

/// Fields of a message with words of their own. A template may leave thoughts out where it writes others.
const THOUGHTS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];
const OTHERS: [&str; 2] = ["refusal", "function_call"];

/// Parts that an error names.
const NAMED: usize = 4;

/// A part of a conversation that has to be in what the template writes.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    /// From 0; none is the row's tools.
    message: Option<usize>,
    role: String,
    /// As in `tool_calls[0].function.name`.
    field: String,
    texts: Vec<String>,
}

/// Parts that are missing, by the conversation's shape: a probe is rendered once a shape.
#[derive(Clone, Debug, Default)]
pub(super) struct Written(Arc<Mutex<HashMap<String, Vec<usize>>>>);

impl Written {
    /// `text` is what the template wrote of `talk`.
    ///
    /// # Errors
    /// The template leaves a part of the conversation out.
    pub fn check(&self, template: &ChatTemplate, talk: &Talk, text: &str) -> Result<()> {
        let parts = parts(talk);
        let shape = shape(&parts);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&shape).cloned();
        let missing = known.unwrap_or_else(|| {
            let missing = missing(template, talk);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(shape, missing.clone());
            missing
        });
        let missing: Vec<&Part> = missing.into_iter().filter_map(|index| parts.get(index)).collect();
        if !missing.is_empty() {
            return Err(refusal(template, &missing, "writes nothing"));
        }
        // A probe has other words than the row, which a template may treat in a way of its own.
        let is_thought = |part: &Part| THOUGHTS.contains(&part.field.as_str());
        let lost = |part: &&Part| !is_thought(part) && !part.texts.iter().all(|t| holds(text, t, &part.role));
        let lost: Vec<&Part> = parts.iter().filter(lost).collect();
        if lost.is_empty() { Ok(()) } else { Err(refusal(template, &lost, "does not write all")) }
    }
}

/// What of `talk` has words, in its order.
fn parts(talk: &Talk) -> Vec<Part> {
    let mut parts = Vec::new();
    for (message, value) in talk.messages.iter().enumerate() {
        let role = value["role"].as_str().unwrap_or_default().to_string();
        let mut add = |field: String, texts: Vec<String>| {
            if texts.iter().any(|text| !text.trim().is_empty()) {
                parts.push(Part { message: Some(message), role: role.clone(), field, texts });
            }
        };
        let content = match &value["content"] {
            Value::Array(list) => {
                list.iter().filter_map(|part| part["text"].as_str()).map(String::from).collect()
            }
            other => texts_in(other),
        };
        add("content".into(), content);
        for field in THOUGHTS.iter().chain(&OTHERS) {
            add((*field).to_string(), texts_in(&value[field]));
        }
        for (i, call) in value["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let function = call.get("function").unwrap_or(call);
            add(format!("tool_calls[{i}].function.name"), texts_in(&function["name"]));
            add(format!("tool_calls[{i}].function.arguments"), texts_in(&function["arguments"]));
        }
    }
    for (i, tool) in talk.tools.as_array().into_iter().flatten().enumerate() {
        let function = tool.get("function").unwrap_or(tool);
        let texts = [&function["name"], &function["description"]].into_iter().flat_map(texts_in).collect();
        parts.push(Part { message: None, role: String::new(), field: format!("tools[{i}]"), texts });
    }
    parts
}

/// Texts, numbers and keys in a value.
fn texts_in(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        Value::Array(list) => list.iter().flat_map(texts_in).collect(),
        Value::Object(map) => {
            map.iter().flat_map(|(key, item)| std::iter::once(key.clone()).chain(texts_in(item))).collect()
        }
        Value::Null | Value::Bool(_) => Vec::new(),
    }
}

fn shape(parts: &[Part]) -> String {
    parts.iter().map(|part| format!("{:?} {} {}\n", part.message, part.role, part.field)).collect()
}

/// Indices of the parts of `talk` whose probe word the template does not write. None where it refuses the probe.
fn missing(template: &ChatTemplate, talk: &Talk) -> Vec<usize> {
    let parts = parts(talk);
    let mut probe = talk.clone();
    for (index, part) in parts.iter().enumerate() {
        let word = json!(word(index));
        let Some(message) = part.message else {
            let place = part.field.trim_start_matches("tools[").trim_end_matches(']').parse().unwrap_or(0);
            let tool: &mut Value = &mut probe.tools[place];
            match tool.get_mut("function") {
                Some(function) => function["name"] = word,
                None => tool["name"] = word,
            }
            continue;
        };
        let message = &mut probe.messages[message];
        let call = part.field.strip_prefix("tool_calls[").and_then(|rest| rest.split_once("].function."));
        let Some((call, field)) = call else {
            message[part.field.as_str()] = match message["content"].is_array() && part.field == "content" {
                true => json!([{"type": "text", "text": word}]),
                false => word,
            };
            continue;
        };
        let call = &mut message["tool_calls"][call.parse().unwrap_or(0)];
        let function = if call.get("function").is_some() { &mut call["function"] } else { call };
        function[field] = if field == "arguments" { json!({"key": word}) } else { word };
    }
    let Ok(text) = template.render(&probe, None) else { return Vec::new() };
    let text = text.to_lowercase();
    let missing = (0..parts.len()).filter(|index| !text.contains(&word(*index)));
    let thoughts = |index: &usize| THOUGHTS.contains(&parts[*index].field.as_str());
    missing.filter(|index| !thoughts(index) || !writes_thoughts(template, &parts[*index].field)).collect()
}

/// A word that no template has, in letters that none changes.
fn word(index: usize) -> String {
    let digit = |d: u8| char::from(b'a' + d - b'0');
    format!("zyxw{}q", index.to_string().bytes().map(digit).collect::<String>())
}

/// Whether the template writes an assistant's thoughts somewhere: after its last message but one, say, where it leaves out
/// those of earlier turns.
fn writes_thoughts(template: &ChatTemplate, field: &str) -> bool {
    let call =
        json!({"id": "abcdefghi", "type": "function", "function": {"name": "n", "arguments": {"k": "v"}}});
    let user = json!({"role": "user", "content": "Abcde"});
    let answer = json!({"role": "assistant", "content": "Fghij", field: word(0)});
    let calling = json!({"role": "assistant", "content": "", field: word(0), "tool_calls": [call]});
    let result = json!({"role": "tool", "tool_call_id": "abcdefghi", "content": "klmno"});
    let talks = [
        vec![user.clone(), calling, result],
        vec![user.clone(), answer.clone()],
        vec![user.clone(), answer, user],
    ];
    talks.into_iter().any(|messages| {
        let talk = Talk { messages, tools: Value::Null };
        template.render(&talk, None).is_ok_and(|text| text.contains(&word(0)))
    })
}

/// Whether `text` has all of `part`, as it is or as JSON, blanks at the edges of lines aside. Of an assistant, what follows
/// its thoughts will do: templates leave those of earlier turns out.
fn holds(text: &str, part: &str, role: &str) -> bool {
    let part = part.trim();
    if part.is_empty() || text.contains(part) {
        return true;
    }
    let json = serde_json::to_string(part).unwrap_or_default();
    let inner = json.trim_start_matches('"').trim_end_matches('"');
    let python = inner.replace("\\\"", "\"").replace('\'', "\\'");
    let ascii: String = inner
        .chars()
        .map(|c| match c.is_ascii() {
            true => c.to_string(),
            false => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        })
        .collect();
    [inner, &python, &ascii].iter().any(|form| text.contains(*form))
        || part.lines().map(str::trim).all(|line| text.contains(line))
        || (role == "assistant"
            && part.rsplit_once("</think>").is_some_and(|(_, rest)| text.contains(rest.trim())))
}

fn refusal(template: &ChatTemplate, parts: &[&Part], what: &str) -> Error {
    let named = parts.iter().take(NAMED).map(|part| match (part.message, part.field.as_str()) {
        (None, field) => format!("the row's {field}"),
        (Some(message), "content") => format!("message {} (role {})", message + 1, part.role),
        (Some(message), field) => format!("{field} of message {} (role {})", message + 1, part.role),
    });
    let mut named = named.collect::<Vec<_>>().join(", ");
    if parts.len() > NAMED {
        named.push_str(&format!(" and {} more", parts.len() - NAMED));
    }
    let fix = match parts.first().map(|part| (part.message, part.role.as_str(), part.field.as_str())) {
        Some((None, ..)) => {
            "Take a chat template that writes tools (model.chat_template), or leave input.tools out"
        }
        Some((_, "developer", "content")) => "Call its role system, or take a template that knows it",
        Some((_, _, "content")) => {
            "Take a chat template that writes it (model.chat_template), or put the text into another message"
        }
        Some((_, _, "function_call")) => "Write it as tool_calls, or take a template that writes it",
        _ => {
            "Take a chat template that writes it (model.chat_template), or put it into the content or leave it out"
        }
    };
    Error::input(template.place(), format!("{what} of {named}"), fix)
}
