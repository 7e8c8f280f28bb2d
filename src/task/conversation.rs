//! A row's conversation: messages in OpenAI's form, whatever they carry, and the tools that there are.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::mcp;
use super::row::RowPath;
use super::{Messages, Place, Target, Task, describe, shorten};
use crate::error::{Error, Result};
use crate::types::{Content, Conversation, Message};

const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];
const FORM: &str = "Give a list of {\"role\", \"content\"} objects";

/// A row before and after its transcript became messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// The transcript.
    pub before: Value,
    pub row: Value,
}

impl Converted {
    /// A capture of a server on stdio, a JSON-RPC message a line, as a row with `messages` and `tools`.
    ///
    /// # Errors
    /// `file, line n`: the line is no message, or has no place in a conversation.
    pub fn of_capture(text: &str, file: &Path) -> Result<Self> {
        let before = Value::from(text);
        let read = mcp::read(&before).map_err(|fault| {
            let fix =
                "Keep the lines of stdin and stdout that are JSON-RPC messages of tools, in their order";
            Error::input(format!("{}{}", file.display(), fault.place), fault.problem, fix)
        })?;
        let mut row = json!({"messages": read.messages.iter().map(Message::to_json).collect::<Value>()});
        if let Some(tools) = read.tools {
            row["tools"] = tools;
        }
        Ok(Self { before, row })
    }
}

impl Task {
    /// The conversation of a row that may have no label. Errors begin with `file:line`.
    pub fn conversation(&self, row: &Value, file: &Path, line: usize) -> Result<Conversation> {
        let at = Place { task: self, file, line };
        if !row.is_object() {
            return Err(at.error("the row is not an object", "Write one JSON object a line"));
        }
        at.conversation(row)
    }

    /// The row with its transcript as `messages` and `tools` in OpenAI's form, in the place of what `input.mcp` and
    /// `input.question` name. Errors begin with `file:line`.
    pub fn converted(&self, row: &Value, file: &Path, line: usize) -> Result<Converted> {
        let at = Place { task: self, file, line };
        let Messages::Mcp(path, question) = &self.input.messages else {
            let fix = "Name a task with input.mcp, or captures, whose lines are JSON-RPC messages";
            return Err(Error::input(format!("task `{}`", self.name), "has no input.mcp to convert", fix));
        };
        let (messages, tools) = at.transcript(row, path, question.as_ref())?;
        let replaced: Vec<&str> = std::iter::once(path).chain(question).map(RowPath::root).collect();
        let object = row.as_object().into_iter().flatten();
        let mut made: Map<String, Value> = object
            .filter(|(key, _)| !replaced.contains(&key.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if let Some(key) = ["messages", "tools"].into_iter().find(|key| made.contains_key(*key)) {
            let problem = format!("has `{key}` already, beside `{path}`");
            return Err(at.error(problem, "Rename it before the conversion"));
        }
        made.insert("messages".into(), messages.iter().map(Message::to_json).collect());
        made.extend(tools.map(|tools| ("tools".to_string(), tools)));
        Ok(Converted { before: path.get(row).cloned().unwrap_or_default(), row: made.into() })
    }

    /// Keys of a row that nothing of the task reads.
    pub fn unread_keys(&self, row: &Value) -> Vec<String> {
        let holes: Vec<&RowPath> = match &self.input.messages {
            Messages::Listed(path) => vec![path],
            Messages::Mcp(path, question) => std::iter::once(path).chain(question).collect(),
            Messages::Template(template) => template.holes().collect(),
        };
        let target: Vec<&RowPath> = match &self.target {
            Some(Target::Text(path)) => vec![path],
            Some(Target::Templates { negative, positive }) => {
                negative.holes().chain(positive.holes()).collect()
            }
            None => Vec::new(),
        };
        let others = [Some(&self.gold.path), self.input.tools.as_ref(), self.attack_succeeded.as_ref()];
        let paths = holes.into_iter().chain(target).chain(others.into_iter().flatten()).map(RowPath::root);
        let of_answers = self.answers.iter().flat_map(|answers| answers.keys());
        let of_grounds = self.grounding.iter().flat_map(|grounding| grounding.keys());
        let read: Vec<&str> = paths.chain(of_answers).chain(of_grounds).collect();
        let keys = row.as_object().into_iter().flat_map(|row| row.keys());
        keys.filter(|key| !read.contains(&key.as_str())).cloned().collect()
    }
}

impl Place<'_> {
    pub(super) fn conversation(&self, row: &Value) -> Result<Conversation> {
        let input = &self.task.input;
        let mut listed = None;
        let mut messages = match &input.messages {
            Messages::Listed(path) => self.listed_messages(row, path)?,
            Messages::Mcp(path, question) => {
                let (messages, tools) = self.transcript(row, path, question.as_ref())?;
                listed = tools;
                messages
            }
            Messages::Template(template) => {
                let content = template.render(row, None).map_err(|p| self.absent(p, "input.template"))?;
                vec![Message::new("user", content)]
            }
        };
        if let Some(system) = &input.system {
            let message = Message::new("system", system);
            match matches!(messages[0].role.as_str(), "system" | "developer") {
                true => messages[0] = message,
                false => messages.insert(0, message),
            }
        }
        let own = input.tools.as_ref().and_then(|path| Some((path.get(row)?, path.to_string())));
        let tools = own.map(|(tools, place)| self.tools(tools, &place)).transpose()?.or(listed);
        Ok(Conversation { messages, tools, trusted: input.trusted.clone() })
    }

    /// At least one message, the last from the user or a tool, or from the assistant where that is what is judged.
    fn listed_messages(&self, row: &Value, path: &RowPath) -> Result<Vec<Message>> {
        let value = path.get(row).ok_or_else(|| self.absent(path, "input.messages"))?;
        let Some(list) = value.as_array() else {
            return Err(self.error(format!("`{path}` is {}, not a list", describe(value)), FORM));
        };
        let read = |(i, message): (usize, &Value)| self.message(message, &format!("{path}[{i}]"));
        let mut messages = list.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
        if self.ends_with_target(path) && messages.last().is_some_and(|last| last.role == "assistant") {
            messages.pop();
        }
        self.ends_with_what_is_judged(messages, path)
    }

    /// The request and the transcript after it, and the tools that the transcript lists.
    fn transcript(
        &self,
        row: &Value,
        path: &RowPath,
        question: Option<&RowPath>,
    ) -> Result<(Vec<Message>, Option<Value>)> {
        let value = path.get(row).ok_or_else(|| self.absent(path, "input.mcp"))?;
        let read = mcp::read(value).map_err(|fault| {
            let fix = "Give the JSON-RPC messages of tools: calls, results and logs, in their order";
            self.error(format!("`{path}`{} {}", fault.place, fault.problem), fix)
        })?;
        let mut messages = read.messages;
        if let Some(question) = question {
            let value = question.get(row).ok_or_else(|| self.absent(question, "input.question"))?;
            let Some(text) = value.as_str() else {
                let problem = format!("`{question}` is {}, not a text", describe(value));
                return Err(self.error(problem, "Give the user's request as a text"));
            };
            let at = usize::from(messages.first().is_some_and(|first| first.role == "system"));
            messages.insert(at, Message::new("user", text));
        }
        let tools = read.tools.map(|tools| self.tools(&tools, &format!("{path}: tools/list"))).transpose()?;
        Ok((self.ends_with_what_is_judged(messages, path)?, tools))
    }

    fn ends_with_what_is_judged(&self, messages: Vec<Message>, path: &RowPath) -> Result<Vec<Message>> {
        let last_may_be = |role: &str| {
            matches!(role, "user" | "tool" | "function" | "ipython")
                || (role == "assistant" && self.task.input.judge_assistant)
        };
        match messages.last() {
            None => Err(self.error(format!("`{path}` is empty"), FORM)),
            Some(last) if !last_may_be(&last.role) => {
                let problem = format!("the last message of `{path}` is from the {}", last.role);
                let fix = "End with the user's or a tool's message; the answer is the model's. Where the assistant's last \
                           message is what is judged, set input.judge_assistant = true in the task file";
                Err(self.error(problem, fix))
            }
            Some(last) if last.text().trim().is_empty() && last.content != Content::None => {
                Err(self.error(format!("the last message of `{path}` is empty"), "Give it a content"))
            }
            Some(_) => Ok(messages),
        }
    }

    /// Whether the last message of the list at `path` is what SFT imitates, as in files that were made for SFT alone.
    pub(super) fn ends_with_target(&self, path: &RowPath) -> bool {
        matches!(&self.task.target, Some(Target::Text(target)) if target.ends(path))
    }

    fn message(&self, message: &Value, place: &str) -> Result<Message> {
        let role = match message.get("role") {
            Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
            Some(Value::String(role)) => {
                let problem = format!("`{place}.role` is `{}`", shorten(role));
                return Err(self.error(problem, format!("Use one of: {}", ROLES.join(", "))));
            }
            Some(other) => {
                let problem = format!("`{place}.role` is {}, not a text", describe(other));
                return Err(self.error(problem, FORM));
            }
            None => return Err(self.error(format!("`{place}` has no role"), FORM)),
        };
        let mut more = Map::new();
        for (key, value) in message.as_object().into_iter().flatten() {
            // Null and an empty list of calls say nothing; dumps of OpenAI's client are full of both.
            let says_nothing =
                value.is_null() || (key == "tool_calls" && value.as_array().is_some_and(Vec::is_empty));
            if !matches!(key.as_str(), "role" | "content") && !says_nothing {
                more.insert(key.clone(), value.clone());
            }
        }
        if let Some(calls) = more.get_mut("tool_calls") {
            self.read_calls(calls, place)?;
        }
        let calls = more.contains_key("tool_calls") || more.contains_key("function_call");
        let content = match message.get("content") {
            Some(Value::String(text)) => Content::Text(text.clone()),
            None | Some(Value::Null) if calls => Content::None,
            None => return Err(self.error(format!("`{place}` has no content"), FORM)),
            Some(Value::Array(parts)) if parts.is_empty() && calls => Content::None,
            Some(Value::Array(parts)) if !parts.is_empty() => {
                let read = |(i, part)| self.text_part(part, &format!("{place}.content[{i}]"));
                Content::Parts(parts.iter().enumerate().map(read).collect::<Result<_>>()?)
            }
            Some(part @ Value::Object(_)) => {
                Content::Text(self.text_part(part, &format!("{place}.content"))?)
            }
            Some(other) => {
                let what = if other.is_array() { "an empty list" } else { describe(other) };
                return Err(self.error(format!("`{place}.content` is {what}, not a text"), FORM));
            }
        };
        Ok(Message { role, content, more })
    }

    /// `{"type": "text", "text": "..."}`; OpenAI's responses call it `input_text` and `output_text`.
    fn text_part(&self, part: &Value, place: &str) -> Result<String> {
        let kind = part.get("type").and_then(Value::as_str);
        match (part, kind, part.get("text")) {
            (Value::String(text), ..) => Ok(text.clone()),
            (_, Some("text" | "input_text" | "output_text"), Some(Value::String(text))) => Ok(text.clone()),
            (_, Some(kind), _) => {
                let problem = format!("`{place}` is of type `{}`, not a text part", shorten(kind));
                Err(self.error(problem, "A model reads text only: describe it in one, or leave it out"))
            }
            (other, None, _) => {
                let problem = format!("`{place}` is {} without a type", describe(other));
                Err(self.error(problem, "Write {\"type\": \"text\", \"text\": \"...\"}"))
            }
        }
    }

    /// Arguments that are JSON in a text become what they say, as templates expect them.
    fn read_calls(&self, calls: &mut Value, place: &str) -> Result<()> {
        let fix = "Write [{\"id\", \"type\": \"function\", \"function\": {\"name\", \"arguments\"}}]";
        let Value::Array(list) = calls else {
            let problem = format!("`{place}.tool_calls` is {}, not a list", describe(calls));
            return Err(self.error(problem, fix));
        };
        for (i, call) in list.iter_mut().enumerate() {
            let nested = call.get("function").is_some();
            let function = if nested { &mut call["function"] } else { call };
            if !function.get("name").is_some_and(Value::is_string) {
                return Err(self.error(format!("`{place}.tool_calls[{i}]` has no function with a name"), fix));
            }
            let Some(Value::String(text)) = function.get("arguments") else { continue };
            let parsed = match text.trim() {
                "" => Some(json!({})),
                text => serde_json::from_str(text).ok().filter(Value::is_object),
            };
            if let Some(parsed) = parsed {
                function["arguments"] = parsed;
            }
        }
        Ok(())
    }

    /// A list of tools, or the JSON of one; those of MCP's `tools/list` in OpenAI's form.
    fn tools(&self, value: &Value, place: &str) -> Result<Value> {
        let parsed = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let fix = "Give a list of tools, as in OpenAI's `tools` or in the result of MCP's tools/list";
        let Value::Array(list) = parsed.as_ref().unwrap_or(value) else {
            return Err(self.error(format!("`{place}` is {}, not a list of tools", describe(value)), fix));
        };
        let tools = list.iter().enumerate().map(|(i, tool)| {
            let function = tool.get("function").unwrap_or(tool);
            if !function.get("name").is_some_and(Value::is_string) {
                return Err(self.error(format!("`{place}[{i}]` has no name"), fix));
            }
            let Some(schema) = tool.get("inputSchema") else { return Ok(tool.clone()) };
            let mut function = json!({"name": tool["name"]});
            if let Some(description) = tool.get("description").filter(|text| !text.is_null()) {
                function["description"] = description.clone();
            }
            function["parameters"] = schema.clone();
            Ok(json!({"type": "function", "function": function}))
        });
        Ok(Value::Array(tools.collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str, row: &Value) -> std::result::Result<Conversation, Error> {
        let text = format!(
            "name = \"t\"\n[input]\nmessages = \"m\"\n{input}\n[gold]\npath = \"g\"\n[labels]\nnegative = \"no\"\n\
             positive = [\"yes\"]\n[[verdict]]\ndefault = \"@malformed\"\n"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, text).unwrap();
        Task::load(path.to_str().unwrap())?.conversation(row, Path::new("a.jsonl"), 3)
    }

    fn called(message: Value) -> Value {
        let mut message = message;
        message["role"] = json!("assistant");
        json!({"m": [{"role": "user", "content": "u"}, message, {"role": "tool", "tool_call_id": "c", "content": "r"}]})
    }

    #[test]
    fn a_message_keeps_what_stands_beside_its_content() {
        let call = |arguments: Value| json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
        for (arguments, want) in [
            (json!("{\"b\": 1, \"a\": \"x\"}"), json!({"b": 1, "a": "x"})),
            (json!({"a": 1}), json!({"a": 1})),
            (json!(""), json!({})),
            (json!("rm -rf"), json!("rm -rf")),
        ] {
            for content in [json!(null), json!(""), json!("said")] {
                let row = called(json!({
                    "content": content, "tool_calls": call(arguments.clone()), "reasoning_content": "r", "refusal": null,
                }));
                let talk = read("", &row).unwrap();
                let message = &talk.messages[1];
                assert_eq!(message.more["tool_calls"], call(want.clone()));
                assert_eq!(message.more.keys().collect::<Vec<_>>(), ["tool_calls", "reasoning_content"]);
                assert_eq!(message.text(), content.as_str().unwrap_or_default());
                assert_eq!(talk.messages[2].more["tool_call_id"], "c");
            }
        }
        assert_eq!(
            read("", &called(json!({"tool_calls": call(json!("{}"))}))).unwrap().messages[1].content,
            Content::None
        );
    }

    #[test]
    fn what_no_template_could_write_is_refused_by_its_place() {
        let user = |content: Value| json!({"m": [{"role": "user", "content": content}]});
        for (row, want) in [
            (called(json!({"content": null})), "`m[1].content` is null, not a text"),
            (called(json!({})), "`m[1]` has no content"),
            (called(json!({"content": null, "tool_calls": []})), "`m[1].content` is null"),
            (called(json!({"content": "", "tool_calls": {}})), "`m[1].tool_calls` is an object, not a list"),
            (
                called(json!({"content": "", "tool_calls": [{"function": {}}]})),
                "`m[1].tool_calls[0]` has no function",
            ),
            (
                user(json!([{"type": "image_url", "image_url": {}}])),
                "`m[0].content[0]` is of type `image_url`, not a text part",
            ),
            (user(json!([{"text": "a"}])), "`m[0].content[0]` is an object without a type"),
            (user(json!([])), "`m[0].content` is an empty list"),
            (user(json!([{"type": "text", "text": " "}])), "the last message of `m` is empty"),
        ] {
            let error = read("", &row).unwrap_err().to_string();
            assert!(error.starts_with("a.jsonl:3: ") && error.contains(want), "{want}\n{error}");
        }
    }

    #[test]
    fn parts_and_roles_of_openai_are_read() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]);
        let row = json!({"m": [{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]});
        let talk = read("", &row).unwrap();
        assert_eq!(talk.messages[1].content, Content::Parts(vec!["a".into(), "b".into()]));
        assert_eq!((talk.messages[0].role.as_str(), &*talk.messages[1].text()), ("developer", "a\nb"));
        assert_eq!(read("system = \"s\"", &row).unwrap().messages[0], Message::new("system", "s"));
    }

    #[test]
    fn tools_are_openais_or_mcps_or_the_json_of_a_list() {
        let openai = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]);
        let mcp = json!([{"name": "f", "description": "d", "inputSchema": {"type": "object"}}]);
        let with = |tools: &Value| {
            read("tools = \"t\"", &json!({"m": [{"role": "user", "content": "u"}], "t": tools}))
        };
        for tools in [&openai, &mcp, &json!(openai.to_string())] {
            assert_eq!(with(tools).unwrap().tools.as_ref(), Some(&openai));
        }
        assert_eq!(with(&json!(null)).unwrap().tools, None);
        assert!(
            with(&json!({"f": 1})).unwrap_err().to_string().contains("`t` is an object, not a list of tools")
        );
        assert!(with(&json!([{}])).unwrap_err().to_string().contains("`t[0]` has no name"));
        let unread = |input: &str, row: &Value| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t.toml");
            let demo = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tasks/demo.toml"))
                .unwrap();
            std::fs::write(&path, demo.replace("[input]\n", &format!("[input]\n{input}\n"))).unwrap();
            Task::load(path.to_str().unwrap()).unwrap().unread_keys(row)
        };
        let row = json!({"prompt": [], "chosen": "", "security_type": [], "tools": [], "id": 1});
        assert_eq!(unread("", &row), ["tools", "id"]);
        assert_eq!(unread("tools = \"tools\"", &row), ["id"]);
    }

    #[test]
    fn a_transcript_of_mcp_is_a_conversation_with_its_tools() {
        let row = json!({"q": "Read it.", "label": "x", "log": [
            {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
            {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "f", "inputSchema": {}}]}},
            {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "f", "arguments": {}}},
            {"jsonrpc": "2.0", "id": 2, "result": {"content": [{"type": "text", "text": "a line"}]}},
        ]});
        let mcp = |input: &str, row: &Value| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t.toml");
            let text = format!(
                "name = \"t\"\n[input]\n{input}\n[gold]\npath = \"g\"\n[labels]\nnegative = \"no\"\n\
                 positive = [\"yes\"]\n[[verdict]]\ndefault = \"@malformed\"\n"
            );
            std::fs::write(&path, text).unwrap();
            let task = Task::load(path.to_str().unwrap())?;
            let talk = task.conversation(row, Path::new("a.jsonl"), 3)?;
            Ok::<_, Error>((talk, task.converted(row, Path::new("a.jsonl"), 3)?, task.unread_keys(row)))
        };
        let (talk, converted, unread) = mcp("mcp = \"log\"\nquestion = \"q\"", &row).unwrap();
        let roles: Vec<&str> = talk.messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!((roles, unread), (vec!["user", "assistant", "tool"], vec!["label".to_string()]));
        assert_eq!(
            talk.tools,
            Some(json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]))
        );
        // What is written is read as the same conversation.
        assert_eq!(
            converted.row.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["label", "messages", "tools"]
        );
        let mut again = converted.row;
        again["m"] = again["messages"].clone();
        assert_eq!(read("tools = \"tools\"", &again).unwrap(), talk);
        let mut open = row.clone();
        open["log"].as_array_mut().unwrap().pop();
        let error = mcp("mcp = \"log\"", &open).unwrap_err().to_string();
        assert!(error.contains("the last message of `log` is from the assistant"), "{error}");
        assert!(mcp("mcp = \"log\"\njudge_assistant = true", &open).is_ok());
        open["log"][0]["method"] = json!("sampling/createMessage");
        let error = mcp("mcp = \"log\"", &open).unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:3: `log`[0] `sampling/createMessage` has no place"), "{error}");
        let error = mcp("messages = \"m\"\nquestion = \"q\"", &row).unwrap_err().to_string();
        assert!(error.contains("input.question: has no effect without input.mcp"), "{error}");
    }

    #[test]
    fn the_assistants_message_is_last_only_where_the_task_says_so() {
        let row = json!({"m": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]});
        let error = read("", &row).unwrap_err().to_string();
        assert!(
            error.contains("from the assistant") && error.contains("input.judge_assistant = true"),
            "{error}"
        );
        assert_eq!(read("judge_assistant = true", &row).unwrap().messages.len(), 2);
    }
}
