//! A transcript of MCP as a conversation: calls of tools are the assistant's, results and logs the tool's.

use serde_json::{Map, Value, json};

use crate::types::{Content, Message};

/// Requests and notifications whose words no model reads: the handshake, lists, progress.
const SILENT: [&str; 16] = [
    "initialize",
    "ping",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/subscribe",
    "resources/unsubscribe",
    "roots/list",
    "logging/setLevel",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
];

/// What is wrong with a transcript, and where: `[3]` of a list, or a line of a text.
pub(super) struct Fault {
    pub place: String,
    pub problem: String,
}

/// What a transcript says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Transcript {
    pub messages: Vec<Message>,
    /// Those of `tools/list`, as the server lists them.
    pub tools: Option<Value>,
}

/// `value` is a list of JSON-RPC messages, or a text with one a line, as a server on stdio writes and reads them.
pub(super) fn read(value: &Value) -> Result<Transcript, Fault> {
    let mut reader = Reader::default();
    let fault = |place: String, problem: String| Fault { place, problem };
    match value {
        Value::Array(list) => {
            for (i, message) in list.iter().enumerate() {
                reader.add(message).map_err(|problem| fault(format!("[{i}]"), problem))?;
            }
        }
        Value::String(text) => {
            for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let place = || format!(", line {}", i + 1);
                let message: Value = serde_json::from_str(line).map_err(|e| {
                    fault(place(), format!("is no JSON: {e}; only stdin and stdout are wanted"))
                })?;
                reader.add(&message).map_err(|problem| fault(place(), problem))?;
            }
        }
        _ => {
            return Err(fault(
                String::new(),
                "is neither a list of JSON-RPC messages nor a text of them".into(),
            ));
        }
    }
    Ok(reader.finish())
}

#[derive(Default)]
struct Reader {
    system: Option<Message>,
    messages: Vec<Message>,
    tools: Vec<Value>,
    lists_tools: bool,
    /// Requests that have no response yet: id, method, and the tool's name.
    open: Vec<(Value, String, String)>,
    /// Logs that stand before the next result.
    logs: Vec<String>,
}

impl Reader {
    fn add(&mut self, message: &Value) -> Result<(), String> {
        if let Value::Array(batch) = message {
            return batch.iter().try_for_each(|message| self.add(message));
        }
        if message.get("jsonrpc").is_none() {
            return Err("is no JSON-RPC message: it has no `jsonrpc`".into());
        }
        let id = message.get("id").cloned().filter(|id| !id.is_null());
        match (message["method"].as_str(), id) {
            (Some("tools/call"), Some(id)) => self.call(id, &message["params"]),
            (Some("notifications/message"), None) => {
                self.logs.push(log(&message["params"]));
                Ok(())
            }
            (Some(method), id) if SILENT.contains(&method) => {
                self.open.extend(id.map(|id| (id, method.to_string(), String::new())));
                Ok(())
            }
            (Some(method), _) => Err(format!("`{method}` has no place in a conversation of tools")),
            (None, Some(id)) => self.response(&id, message),
            (None, None) => match &message["error"] {
                Value::Null => Err("is neither a request nor a response".into()),
                error => {
                    self.logs.push(failure(error));
                    Ok(())
                }
            },
        }
    }

    /// Calls that follow each other without a result between them are made at once.
    fn call(&mut self, id: Value, params: &Value) -> Result<(), String> {
        let Some(name) = params["name"].as_str() else { return Err("calls a tool without a name".into()) };
        let arguments = params.get("arguments").cloned().unwrap_or_else(|| json!({}));
        let call = json!({
            "id": id_text(&id), "type": "function", "function": {"name": name, "arguments": arguments},
        });
        self.own_logs();
        let last = self.messages.last_mut().filter(|last| last.role == "assistant");
        match last.and_then(|last| last.more.get_mut("tool_calls")).and_then(Value::as_array_mut) {
            Some(calls) => calls.push(call),
            None => {
                let more = Map::from_iter([("tool_calls".to_string(), json!([call]))]);
                self.messages.push(Message { role: "assistant".into(), content: Content::None, more });
            }
        }
        self.open.push((id, "tools/call".into(), name.into()));
        Ok(())
    }

    fn response(&mut self, id: &Value, message: &Value) -> Result<(), String> {
        let Some(open) = self.open.iter().position(|(open, ..)| open == id) else {
            return Err(format!("answers id {id}, which no request before it has"));
        };
        let (_, method, name) = self.open.remove(open);
        let result = &message["result"];
        match method.as_str() {
            "tools/call" => {
                let mut parts = std::mem::take(&mut self.logs);
                match &message["error"] {
                    Value::Null => parts.extend(texts(result)?),
                    error => parts.push(failure(error)),
                }
                let more =
                    [("tool_call_id".to_string(), id_text(id).into()), ("name".to_string(), name.into())];
                let content = Content::Parts(parts);
                self.messages.push(Message { role: "tool".into(), content, more: Map::from_iter(more) });
            }
            "initialize" => {
                let instructions = result["instructions"].as_str().filter(|text| !text.trim().is_empty());
                self.system = instructions.map(|text| Message::new("system", text));
            }
            "tools/list" => {
                self.lists_tools = true;
                self.tools.extend(result["tools"].as_array().into_iter().flatten().cloned());
            }
            _ => (),
        }
        Ok(())
    }

    /// Logs that no result follows are a message of their own.
    fn own_logs(&mut self) {
        if !self.logs.is_empty() {
            let content = Content::Parts(std::mem::take(&mut self.logs));
            self.messages.push(Message { role: "tool".into(), content, more: Map::new() });
        }
    }

    fn finish(mut self) -> Transcript {
        self.own_logs();
        let messages = self.system.into_iter().chain(self.messages).collect();
        Transcript { messages, tools: self.lists_tools.then_some(Value::Array(self.tools)) }
    }
}

fn id_text(id: &Value) -> String {
    id.as_str().map_or_else(|| format!("call-{id}"), String::from)
}

fn failure(error: &Value) -> String {
    let text = error["message"].as_str().unwrap_or_default();
    let data = error
        .get("data")
        .filter(|data| !data.is_null())
        .map_or(String::new(), |data| format!(" {}", plain(data)));
    format!("error {}: {text}{data}", error["code"])
}

fn log(params: &Value) -> String {
    let names = [&params["level"], &params["logger"]].into_iter().filter_map(Value::as_str);
    format!("log ({}): {}", names.collect::<Vec<_>>().join(", "), plain(&params["data"]))
}

/// A text as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// The texts of a tool's result. What is structured is written out unless a text says the same.
fn texts(result: &Value) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    if result["isError"] == true {
        texts.push("isError: true".to_string());
    }
    for block in result["content"].as_array().into_iter().flatten() {
        let text = match block["type"].as_str() {
            Some("text") => block["text"].as_str(),
            Some("resource") => block["resource"]["text"].as_str(),
            _ => None,
        };
        let kind = || format!("has content of type {}, and a model reads text only", block["type"]);
        texts.push(text.ok_or_else(kind)?.to_string());
    }
    if let Some(structured) = result.get("structuredContent").filter(|value| !value.is_null()) {
        let says =
            |text: &String| serde_json::from_str::<Value>(text).is_ok_and(|value| value == *structured);
        if !texts.iter().any(says) {
            texts.push(structured.to_string());
        }
    }
    if texts.is_empty() {
        texts.push(String::new());
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u32, method: &str, params: Value) -> Value {
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
    }

    fn response(id: u32, result: Value) -> Value {
        json!({"jsonrpc": "2.0", "id": id, "result": result})
    }

    fn said(transcript: &Transcript) -> Vec<(&str, String)> {
        transcript.messages.iter().map(|m| (m.role.as_str(), m.text().into_owned())).collect()
    }

    fn text(text: &str) -> Value {
        json!({"content": [{"type": "text", "text": text}]})
    }

    #[test]
    fn calls_results_and_logs_become_messages() {
        let tool = json!({"name": "read", "inputSchema": {"type": "object"}});
        let log = json!({"jsonrpc": "2.0", "method": "notifications/message",
            "params": {"level": "warning", "logger": "db", "data": {"rows": 3}}});
        let list = vec![
            request(0, "initialize", json!({})),
            response(0, json!({"instructions": "Read only.", "serverInfo": {}})),
            json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            request(1, "tools/list", json!({})),
            response(1, json!({"tools": [tool]})),
            request(2, "tools/call", json!({"name": "read", "arguments": {"path": "/etc"}})),
            log.clone(),
            response(2, text("line 1")),
            request(3, "tools/call", json!({"name": "read"})),
            request(4, "tools/call", json!({"name": "list", "arguments": {}})),
            response(
                4,
                json!({"isError": true, "content": [{"type": "text", "text": "{\"a\":1}"}], "structuredContent": {"a": 1}}),
            ),
            json!({"jsonrpc": "2.0", "id": 3, "error": {"code": -32602, "message": "unknown"}}),
            log,
        ];
        let read_list = read(&json!(list)).ok().unwrap();
        let want = [
            ("system", "Read only."),
            ("assistant", ""),
            ("tool", "log (warning, db): {\"rows\":3}\nline 1"),
            ("assistant", ""),
            ("tool", "isError: true\n{\"a\":1}"),
            ("tool", "error -32602: unknown"),
            ("tool", "log (warning, db): {\"rows\":3}"),
        ];
        assert_eq!(said(&read_list), want.map(|(role, text)| (role, text.to_string())));
        assert_eq!(read_list.tools, Some(json!([tool])));
        let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        assert_eq!(
            read_list.messages[1].more["tool_calls"],
            json!([call("call-2", "read", json!({"path": "/etc"}))])
        );
        let both = json!([call("call-3", "read", json!({})), call("call-4", "list", json!({}))]);
        assert_eq!(read_list.messages[3].more["tool_calls"], both);
        assert_eq!(read_list.messages[4].more["tool_call_id"], "call-4");
        // The same, a message a line and two in a batch.
        let lines: Vec<String> = list[2..].iter().map(Value::to_string).collect();
        let text = format!("{}\r\n\n{}\n", json!(list[..2]), lines.join("\n"));
        assert_eq!(read(&json!(text)).ok().unwrap(), read_list);
    }

    #[test]
    fn what_has_no_place_in_a_conversation_is_named() {
        let call = request(1, "tools/call", json!({"name": "f"}));
        let image = json!({"content": [{"type": "image", "data": "", "mimeType": "image/png"}]});
        for (value, place, want) in [
            (json!([call, response(2, text("a"))]), "[1]", "answers id 2, which no request"),
            (json!([call, response(1, image)]), "[1]", "has content of type \"image\""),
            (
                json!([request(1, "sampling/createMessage", json!({}))]),
                "[0]",
                "`sampling/createMessage` has no place",
            ),
            (json!([{"role": "user"}]), "[0]", "it has no `jsonrpc`"),
            (json!([request(1, "tools/call", json!({}))]), "[0]", "calls a tool without a name"),
            (json!("{}\nServer started"), ", line 1", "has no `jsonrpc`"),
            (json!(format!("{call}\nServer started")), ", line 2", "is no JSON"),
            (json!({}), "", "is neither a list"),
        ] {
            let fault = read(&value).err().unwrap();
            assert!(
                fault.place == place && fault.problem.contains(want),
                "{}: {}",
                fault.place,
                fault.problem
            );
        }
    }
}
