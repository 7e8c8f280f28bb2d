//! Where a row of recorded answers keeps them: under one of many keys, as texts, messages, or as the last turn of a
//! whole conversation.

use serde_json::Value;

use crate::types::FinishReason;

/// Keys of answers, the first that a row has counts.
const ANSWERS: [&str; 12] = [
    "completion",
    "completions",
    "response",
    "responses",
    "prediction",
    "predictions",
    "output",
    "outputs",
    "generated_text",
    "generations",
    "model_output",
    "choices",
];
/// Keys of conversations that may end with the answer.
const CONVERSATIONS: [&str; 8] =
    ["history", "messages", "conversation", "conversations", "dialogue", "trajectory", "chat", "prompt"];
const ASSISTANTS: [&str; 5] = ["assistant", "gpt", "model", "bot", "ai"];

/// An answer as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub finish: FinishReason,
}

/// The answers of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub answers: Vec<Answer>,
    /// The conversation that ends with the answer, when that is where it was found.
    pub conversation: Option<Conversation>,
}

/// The shape of a recorded conversation, its answer included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The row's key that holds it.
    pub key: &'static str,
    pub roles: Vec<String>,
}

impl Conversation {
    /// Why this is no conversation with `tool_results` of them, or None. MCP-RiskCue's evaluator counts a `history`
    /// of 2n + 3 messages only: system, user, then a call and a result n times, and the answer.
    pub fn fault(&self, tool_results: usize) -> Option<String> {
        let strict = self.key == "history";
        let roles: Vec<&str> = self.roles.iter().map(String::as_str).collect();
        let turns = match roles.first() {
            Some(&"system") => &roles[1..],
            _ if strict => return Some("does not begin with the system's message".into()),
            _ => &roles[..],
        };
        let wanted = 2 * tool_results + 2;
        if turns.len() != wanted {
            return Some(format!(
                "has {} messages after the system's, where {tool_results} labels want {wanted}",
                turns.len()
            ));
        }
        let result = |role: &str| role == "user" || role == "tool" && !strict;
        let begins = matches!(turns[..4.min(turns.len())], [user, call, log, answer]
            if result(user) && is_assistant(call) && result(log) && is_assistant(answer));
        (!begins).then(|| format!("has the roles {}", roles.join(", ")))
    }
}

fn is_assistant(role: &str) -> bool {
    ASSISTANTS.contains(&role)
}

/// Finds the answers of a row.
///
/// # Errors
/// What is wrong with the row, as a clause: no answer, or one of an unknown form.
pub fn find(row: &Value) -> Result<Recorded, String> {
    let finish = row.get("finish").or_else(|| row.get("finish_reason"));
    if let Some((key, value)) = ANSWERS.iter().find_map(|key| Some((key, given(row, key)?))) {
        let answers = answers(value, finish).ok_or_else(|| format!("`{key}` holds no answer"))?;
        return Ok(Recorded { answers, conversation: None });
    }
    let mut unfinished = None;
    for key in CONVERSATIONS {
        let Some(turns) = given(row, key).and_then(Value::as_array) else { continue };
        let roles: Vec<String> =
            turns.iter().map(|turn| role(turn).unwrap_or_default().to_lowercase()).collect();
        match (turns.last(), roles.last()) {
            (Some(last), Some(name)) if is_assistant(name) || key == "history" => {
                let answer = Answer { text: content(last).unwrap_or_default(), finish: finish_of(finish, 0) };
                return Ok(Recorded {
                    answers: vec![answer],
                    conversation: Some(Conversation { key, roles }),
                });
            }
            (_, name) => unfinished = Some((key, name.cloned().unwrap_or_default())),
        }
    }
    Err(match unfinished {
        Some((key, name)) if !name.is_empty() => {
            format!("the row has no answer: its `{key}` ends with the {name}'s message")
        }
        _ => "the row has no answer".into(),
    })
}

/// What to write when [`find`] finds nothing.
pub fn fix() -> String {
    format!(
        "Give the answer as one of {}; or a conversation as one of {}, whose last message is the assistant's",
        ANSWERS.join(", "),
        CONVERSATIONS.join(", ")
    )
}

fn given<'a>(row: &'a Value, key: &str) -> Option<&'a Value> {
    row.get(key).filter(|value| !value.is_null())
}

fn role(message: &Value) -> Option<&str> {
    given(message, "role").or_else(|| given(message, "from"))?.as_str()
}

/// A text, the texts of its parts, or nothing for null. None: another type.
fn content(message: &Value) -> Option<String> {
    let value = ["content", "value", "text"].iter().find_map(|key| given(message, key));
    match value {
        None => Some(String::new()),
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| match part {
                Value::String(text) => text.as_str(),
                part => part.get("text").and_then(Value::as_str).unwrap_or_default(),
            });
            Some(texts.collect())
        }
        Some(_) => None,
    }
}

fn answers(value: &Value, finish: Option<&Value>) -> Option<Vec<Answer>> {
    let Some(list) = value.as_array() else { return Some(vec![answer(value, finish, 0)?]) };
    // One answer, as a list of messages.
    if list.last().and_then(role).is_some() {
        return Some(vec![Answer { text: content(list.last()?)?, finish: finish_of(finish, 0) }]);
    }
    let all =
        list.iter().enumerate().map(|(i, value)| answer(value, finish, i)).collect::<Option<Vec<_>>>()?;
    (!all.is_empty()).then_some(all)
}

/// A text, a message, a list of messages, or an object around one of them.
fn answer(value: &Value, finish: Option<&Value>, index: usize) -> Option<Answer> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(messages) => content(messages.last()?)?,
        Value::Object(object) => {
            let inner = ["message", "completion", "generated_text"].iter().find_map(|key| object.get(*key));
            match inner {
                Some(Value::String(text)) => text.clone(),
                Some(message) => content(message)?,
                None if role(value).is_some()
                    || value.get("text").is_some()
                    || value.get("content").is_some() =>
                {
                    content(value)?
                }
                None => return None,
            }
        }
        _ => return None,
    };
    let own = value.get("finish_reason").or_else(|| value.get("finish"));
    Some(Answer { text, finish: finish_of(own.or(finish), index) })
}

/// `"length"`, or the entry of a list of them; everything else is a stop.
fn finish_of(value: Option<&Value>, index: usize) -> FinishReason {
    let value = match value {
        Some(Value::Array(list)) => list.get(index),
        other => other,
    };
    match value.and_then(Value::as_str) {
        Some("length" | "max_tokens") => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(row: Value) -> Vec<String> {
        find(&row).unwrap().answers.into_iter().map(|answer| answer.text).collect()
    }

    #[test]
    fn answers_are_found_in_many_layouts() {
        let user = json!({"role": "user", "content": "q"});
        let said = |text: &str| json!({"role": "assistant", "content": text});
        for (row, want) in [
            (json!({"completion": "a"}), vec!["a"]),
            (json!({"messages": [user], "completion": "a"}), vec!["a"]),
            (json!({"completions": ["a", "b"]}), vec!["a", "b"]),
            (json!({"responses": [{"text": "a"}, {"text": "b"}]}), vec!["a", "b"]),
            (json!({"completion": [said("a")]}), vec!["a"]),
            (json!({"completions": [[said("a")], [said("b")]]}), vec!["a", "b"]),
            (json!({"choices": [{"message": said("a"), "finish_reason": "stop"}]}), vec!["a"]),
            (json!({"messages": [user, said("a")]}), vec!["a"]),
            (json!({"prompt": [user, said("a")]}), vec!["a"]),
            (
                json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
                vec!["a"],
            ),
            (
                json!({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}),
                vec!["a"],
            ),
            (
                json!({"completion": null, "messages": [user, {"role": "assistant", "content": null}]}),
                vec![""],
            ),
        ] {
            assert_eq!(texts(row.clone()), want, "{row}");
        }
        let cut = find(&json!({"completions": ["a", "b"], "finish": ["stop", "length"]})).unwrap();
        assert_eq!(cut.answers[1].finish, FinishReason::Length);
    }

    #[test]
    fn a_row_without_an_answer_says_so() {
        for (row, why) in [
            (json!({"chosen": "a"}), "the row has no answer"),
            (
                json!({"prompt": [{"role": "user", "content": "q"}]}),
                "its `prompt` ends with the user's message",
            ),
            (json!({"completion": 3}), "`completion` holds no answer"),
            (json!({"completions": []}), "`completions` holds no answer"),
        ] {
            assert!(find(&row).unwrap_err().contains(why), "{row}");
        }
    }

    #[test]
    fn a_conversation_has_a_message_for_each_label() {
        let talk =
            |key, roles: &str| Conversation { key, roles: roles.split(' ').map(String::from).collect() };
        let one = "system user assistant user assistant";
        let two = "system user assistant user assistant user assistant";
        for (key, roles, results, good) in [
            ("history", one, 1, true),
            ("history", one, 2, false),
            ("history", two, 2, true),
            ("history", "user assistant user assistant", 1, false),
            ("messages", "user assistant tool assistant", 1, true),
            ("history", "system user assistant tool assistant", 1, false),
            ("history", "system user user assistant assistant", 1, false),
        ] {
            assert_eq!(talk(key, roles).fault(results).is_none(), good, "{key} {roles}");
        }
    }
}
