//! Where a row of recorded answers keeps them: under one of many keys, as texts, messages, or as the last turn of a
//! whole conversation.

use serde_json::Value;

use crate::types::FinishReason;

/// Keys of answers, the first that a row has counts.
const ANSWERS: [&str; 13] = [
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
    // lm-evaluation-harness: what the model said to each request, in lists; `filtered_resps` is what a filter left of it.
    "resps",
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
    /// A run has judged it so, in its samples/: where its row is not at hand, that counts.
    pub ungrounded: bool,
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

/// Why the row is a request that failed, as batch files have them: there was no answer that could be judged. None: it did not.
pub fn failure(row: &Value) -> Option<String> {
    let status =
        given(row, "response").and_then(|response| response.get("status_code")).and_then(Value::as_u64);
    let answered = ANSWERS.iter().chain(&CONVERSATIONS).any(|key| given(row, key).is_some());
    match (given(row, "error"), status) {
        (_, Some(status)) if status >= 400 => Some(format!("status {status}")),
        (Some(error), _) if !answered => {
            let told = ["message", "code", "type"].iter().find_map(|key| error.get(*key)?.as_str());
            Some(told.or(error.as_str()).unwrap_or("an error").to_string())
        }
        _ => None,
    }
}

/// Finds the answers of a row. One that is null is silence.
///
/// # Errors
/// What is wrong with the row, as a clause: no answer, or one of an unknown form.
pub fn find(row: &Value) -> Result<Recorded, String> {
    // A line of a batch file has the answer that the server gave.
    if let Some(body) = given(row, "response").and_then(|response| given(response, "body")) {
        return find(body);
    }
    let finish = row.get("finish").or_else(|| row.get("finish_reason")).or_else(|| row.get("status"));
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
                let answer = Answer {
                    text: content(last).unwrap_or_default(),
                    finish: finish_of(finish, 0),
                    ungrounded: false,
                };
                return Ok(Recorded {
                    answers: vec![answer],
                    conversation: Some(Conversation { key, roles }),
                });
            }
            (_, name) => unfinished = Some((key, name.cloned().unwrap_or_default())),
        }
    }
    if ANSWERS.iter().any(|key| row.get(*key).is_some_and(Value::is_null)) {
        let silence = Answer { text: String::new(), finish: finish_of(finish, 0), ungrounded: false };
        return Ok(Recorded { answers: vec![silence], conversation: None });
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
    let value = ["content", "value", "text", "refusal"].iter().find_map(|key| given(message, key));
    match value {
        None => Some(String::new()),
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| match part {
                Value::String(text) => text.as_str(),
                part => {
                    ["text", "refusal"].iter().find_map(|key| part.get(*key)?.as_str()).unwrap_or_default()
                }
            });
            Some(texts.collect())
        }
        Some(_) => None,
    }
}

fn answers(value: &Value, finish: Option<&Value>) -> Option<Vec<Answer>> {
    let Some(list) = value.as_array() else { return Some(vec![answer(value, finish, 0)?]) };
    // One answer, as the items that a response is made of: thoughts, calls, and what is said.
    let kind = |item: &Value| item.get("type").and_then(Value::as_str).map(str::to_string);
    if list.iter().any(|item| kind(item).is_some_and(|kind| kind == "message" || kind == "reasoning")) {
        let said = list.iter().filter(|item| kind(item).is_some_and(|kind| kind == "message"));
        let texts = said.map(content).collect::<Option<Vec<_>>>()?;
        return Some(vec![Answer { text: texts.concat(), finish: finish_of(finish, 0), ungrounded: false }]);
    }
    // The samples of one request, a list for each request of the row.
    if let [Value::Array(samples)] = &list[..]
        && samples.iter().all(Value::is_string)
    {
        return answers(&list[0], finish);
    }
    // One answer, as a list of messages.
    if list.last().and_then(role).is_some() {
        return Some(vec![Answer {
            text: content(list.last()?)?,
            finish: finish_of(finish, 0),
            ungrounded: false,
        }]);
    }
    let all =
        list.iter().enumerate().map(|(i, value)| answer(value, finish, i)).collect::<Option<Vec<_>>>()?;
    (!all.is_empty()).then_some(all)
}

/// A text, a message, a list of messages, or an object around one of them.
fn answer(value: &Value, finish: Option<&Value>, index: usize) -> Option<Answer> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(messages) => content(messages.last().filter(|last| last.is_object())?)?,
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
    Some(Answer { text, finish: finish_of(own.or(finish), index), ungrounded: false })
}

/// `"length"`, or the entry of a list of them; everything else is a stop.
fn finish_of(value: Option<&Value>, index: usize) -> FinishReason {
    let value = match value {
        Some(Value::Array(list)) => list.get(index),
        other => other,
    };
    match value.and_then(Value::as_str) {
        Some("length" | "max_tokens" | "incomplete") => FinishReason::Length,
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
            (json!({"completion": null}), vec![""]),
            (json!({"completions": ["a", null]}), vec!["a", ""]),
            (json!({"choices": [{"message": {"role": "assistant", "content": null}}]}), vec![""]),
            (json!({"choices": [{"message": {"content": null, "refusal": "no"}}]}), vec!["no"]),
            (
                json!({"response": {"status_code": 200, "body": {"choices": [{"message": said("a")}]}}}),
                vec!["a"],
            ),
            (json!({"resps": [["a"]], "filtered_resps": ["b"]}), vec!["a"]),
            (json!({"resps": [["a", "b"]]}), vec!["a", "b"]),
            (
                json!({"output": [{"type": "reasoning", "summary": []},
                    {"type": "message", "content": [{"type": "output_text", "text": "a"}]}]}),
                vec!["a"],
            ),
            (json!({"output": [{"type": "reasoning", "summary": []}], "status": "incomplete"}), vec![""]),
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
            (json!({"resps": [[["-1.5", "True"]]]}), "`resps` holds no answer"),
        ] {
            assert!(find(&row).unwrap_err().contains(why), "{row}");
        }
    }

    #[test]
    fn a_request_that_failed_is_no_answer() {
        let body = json!({"choices": []});
        for (row, why) in [
            (json!({"response": null, "error": {"code": "x"}}), Some("x")),
            (json!({"error": {"code": 7, "message": "too busy"}}), Some("too busy")),
            (json!({"error": "timeout", "completion": null}), Some("timeout")),
            (json!({"response": {"status_code": 429, "body": body}, "error": null}), Some("status 429")),
            (json!({"response": {"status_code": 200, "body": body}, "error": null}), None),
            (json!({"completion": "a", "error": "logged"}), None),
            (json!({"completion": null, "error": null}), None),
        ] {
            assert_eq!(failure(&row).as_deref(), why, "{row}");
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
