//! Chat templates against jinja2 as transformers runs it: `tests/golden/make/templates.py` made the golden values.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rlvr::error::Error;
use rlvr::formats::tiktoken;
use rlvr::task::Task;
use rlvr::text::{ChatTemplate, EncoderFiles, PromptEncoder, byte_tokenizer};
use rlvr::types::{Conversation, Message};
use serde_json::{Value, json};
use tokenizers::AddedToken;

use crate::support::parity_fixture::fetched;
use crate::support::project;

/// What differs between the renderings in `folder` and ours, one line a case; and the number of cases.
fn differences(folder: &Path) -> (Vec<String>, usize) {
    let golden = std::fs::read_to_string(folder.join("renderings.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let tokens = tempfile::tempdir().unwrap();
    std::fs::write(tokens.path().join("tokenizer_config.json"), golden["special"].to_string()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let model = tokens_of_a_model();
    let task = std::fs::read_to_string(project().join("tasks/llama-guard.toml")).unwrap();
    let path = tokens.path().join("t.toml");
    std::fs::write(&path, task.replace("[input]\n", "[input]\ntools = \"tools\"\n")).unwrap();
    let task = Task::load(path.to_str().unwrap()).unwrap();
    let mut encoders = HashMap::new();
    let mut found = Vec::new();
    for case in cases {
        if let Some(idiom) = case["idiom"].as_str() {
            let file = tokens.path().join("idiom.jinja");
            std::fs::write(&file, idiom).unwrap();
            let talk = vec![Message::new("user", "Is this log benign?")].into();
            let ours = ChatTemplate::load(tokens.path(), Some(&file)).and_then(|t| t.render_prompt(&talk));
            if ours.as_deref().ok() != case["text"].as_str() {
                found.push(format!("{idiom}\n  ours:   {ours:?}\n  jinja2: {}", case["text"]));
            }
            continue;
        }
        let name = case["template"].as_str().unwrap();
        let arguments: toml::Table = serde_json::from_value(case["arguments"].clone()).unwrap();
        if case.get("calls").is_some() {
            let key = (name, case["arguments"].to_string());
            let encoder = encoders.entry(key).or_insert_with(|| {
                PromptEncoder::load(&EncoderFiles {
                    chat_template: Some(&folder.join(name)),
                    template_args: Some(&arguments),
                    ..EncoderFiles::of(model.path())
                })
            });
            found.extend(calls_differ(&golden, case, encoder.as_ref(), &task));
            continue;
        }
        let messages = golden["conversations"][case["conversation"].as_str().unwrap()].as_array().unwrap();
        let text = |m: &Value, key: &str| m[key].as_str().unwrap().to_string();
        let messages: Vec<_> =
            messages.iter().map(|m| Message::new(text(m, "role"), text(m, "content"))).collect();
        let ours = ChatTemplate::load(tokens.path(), Some(&folder.join(name)))
            .and_then(|template| template.with_arguments(&arguments))
            .and_then(|template| match messages.split_last() {
                Some((last, before)) if case["add_generation_prompt"] == false => {
                    template.render_answered(&before.to_vec().into(), &last.text())
                }
                _ => template.render_prompt(&messages.clone().into()),
            });
        let theirs = case["text"].as_str();
        if ours.as_deref().ok() != theirs {
            found.push(format!("{name} {}: {ours:?}\n  jinja2: {theirs:?}", case["conversation"]));
        }
    }
    (found, cases.len())
}

/// How a conversation with calls, tools, thoughts, parts or another role is prompted otherwise than by transformers.
fn calls_differ(
    golden: &Value,
    case: &Value,
    encoder: Result<&PromptEncoder, &Error>,
    task: &Task,
) -> Option<String> {
    let name = case["calls"].as_str().unwrap();
    let mut row = json!({"messages": golden["calls"][name], "categories": []});
    if case["tools"] == true {
        row["tools"] = golden["tools"].clone();
    }
    let read = |row: &Value| task.conversation(row, Path::new("rows"), 1).unwrap();
    let conversation = read(&row);
    // Arguments are JSON in a text in OpenAI's form.
    for message in row["messages"].as_array_mut().unwrap() {
        for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let written = call["function"]["arguments"].to_string();
            call["function"]["arguments"] = written.into();
        }
    }
    assert_eq!(read(&row), conversation);

    let place = format!("{} {name} {} tools {}", case["template"], case["arguments"], case["tools"]);
    let ours = match encoder {
        Ok(encoder) => encoder.template().render_prompt(&conversation).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let theirs = case["text"].as_str();
    // Where a template knows no parts and no null, they become a text.
    let odd = |text: &str| {
        text.contains("None")
            || (name == "parts" && !text.contains("Partword"))
            || text.contains("'type': 'text'")
            || text.contains("\"type\": \"text\"")
    };
    if matches!(name, "parts" | "calls_null") && theirs.is_none_or(odd) {
        return None;
    }
    if ours.as_deref().ok() != theirs {
        return Some(format!("{place}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
    }
    let (encoder, theirs) = (encoder.ok()?, theirs?);
    let mut words = Vec::new();
    texts(&json!([golden["calls"][name], row.get("tools")]), &mut words);
    let thought = words.iter().find(|word| word.starts_with("Thoughtword"));
    // Every word that has to be there stands in one part only.
    let is_lost =
        |word: &&String| word.contains("word") && thought != Some(*word) && !theirs.contains(word.as_str());
    let lost: Vec<&String> = words.iter().filter(is_lost).collect();
    match encoder.encode_prompt(&conversation) {
        Ok(prompt) if lost.is_empty() => {
            let ids = encoder.tokenizer().encode(theirs).unwrap();
            (prompt.token_ids != ids).then(|| format!("{place}: other ids"))
        }
        Ok(_) => Some(format!("{place}: {lost:?} are lost without a word")),
        Err(_) if !lost.is_empty() => None,
        // A template that never writes thoughts, or tools, is refused for that.
        Err(error) if error.to_string().contains("reasoning_content") && !theirs.contains("Thoughtword") => {
            None
        }
        Err(error) if error.to_string().contains("tools[0]") && !theirs.contains("Toolabout") => None,
        Err(error) => Some(format!("{place}: {error}")),
    }
}

fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|item| texts(item, found)),
        Value::Object(map) => map.values().for_each(|item| texts(item, found)),
        _ => (),
    }
}

/// A tokenizer of bytes with tokens that the golden file names, and some that templates write.
fn tokens_of_a_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
    let more =
        ["<s>", "</s>", "<pad>", "<unk>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|eot_id|>"];
    tokenizer.add_tokens(more.map(|token| AddedToken::from(token, token.len() < 6))).unwrap();
    byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn our_templates_render_as_jinja2_renders_them() {
    let (found, cases) = differences(&project().join("tests/golden/templates"));
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(cases > 50);
}

/// Those that TRL and Xinference ship: Llama 3, Mistral, Qwen, Gemma, Phi, DeepSeek and more; or others, rendered by
/// `tests/golden/make/templates.py`, from the folder that `RLVR_TEMPLATES_DIR` names.
#[test]
fn templates_of_real_models_render_as_jinja2_renders_them() {
    let named = std::env::var_os("RLVR_TEMPLATES_DIR").map(PathBuf::from);
    let Some(folder) = named.or_else(|| fetched("tests/golden/make/fetch-templates.sh")) else { return };
    let (found, cases) = differences(&folder);
    assert!(found.is_empty(), "{} of {cases}:\n{}", found.len(), found.join("\n"));
    assert!(cases > 0);
}

#[test]
fn llama3_tokenizer_has_tiktokens_ids_and_metas_form() {
    let Some(ranks) = fetched("scripts/fetch-llama3-tokenizer.sh") else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tokenizer");
    assert_eq!(tiktoken::import(&ranks, &out).unwrap(), 128_256);
    let encoder = PromptEncoder::load(&EncoderFiles::of(&out)).unwrap();
    let golden = std::fs::read_to_string(project().join("tests/golden/llama3-ids.json")).unwrap();
    for case in serde_json::from_str::<Vec<Value>>(&golden).unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(serde_json::json!(encoder.tokenizer().encode(text).unwrap()), case["ids"], "{text:?}");
    }
    let user = |content: &str| Conversation::from(vec![Message::new("user", content)]);
    let prompt = encoder.encode_prompt(&user("Hello world")).unwrap().token_ids;
    let (bos, start, end, eot) = (128_000, 128_006, 128_007, 128_009);
    assert_eq!(prompt[..2], [bos, start]);
    assert_eq!(prompt.iter().filter(|id| **id == bos).count(), 1);
    // user, assistant and their ends are single tokens, `\n\n` is 271.
    assert_eq!(prompt[prompt.len() - 11..], [start, 882, end, 271, 9906, 1917, eot, start, 78191, end, 271]);
    assert_eq!(encoder.encode_target(&user("Hello world"), "Hello world\n").unwrap(), [9906, 1917, eot]);
    let Some(real) = fetched("tests/golden/make/fetch-templates.sh") else { return };
    let meta = ChatTemplate::load(&out, Some(&real.join("llama3_1.jinja"))).unwrap();
    let talk = |roles: &[&str]| {
        let messages = roles.iter().map(|role| Message::new(*role, " a\n\"b\" "));
        Conversation::from(messages.collect::<Vec<_>>())
    };
    for roles in [&["user"][..], &["system", "user", "assistant", "user"], &["user", "assistant", "tool"]] {
        let talk = talk(roles);
        assert_eq!(encoder.template().render_prompt(&talk).unwrap(), meta.render_prompt(&talk).unwrap());
    }
}
