//! Chat templates against jinja2 as transformers runs it: `tests/golden/make/templates.py` made the golden values.

use std::path::Path;

use rlvr::formats::tiktoken;
use rlvr::text::{ChatTemplate, EncoderFiles, PromptEncoder};
use rlvr::types::{Conversation, Message};
use serde_json::Value;

use crate::support::parity_fixture::fetched;
use crate::support::project;

/// What differs between the renderings in `folder` and ours, one line a case; and the number of cases.
fn differences(folder: &Path) -> (Vec<String>, usize) {
    let golden = std::fs::read_to_string(folder.join("renderings.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let tokens = tempfile::tempdir().unwrap();
    std::fs::write(tokens.path().join("tokenizer_config.json"), golden["special"].to_string()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
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

#[test]
fn our_templates_render_as_jinja2_renders_them() {
    let (found, cases) = differences(&project().join("tests/golden/templates"));
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(cases > 50);
}

/// Those that TRL ships: Llama 3, Qwen, Gemma, Phi, DeepSeek and more.
#[test]
fn templates_of_real_models_render_as_jinja2_renders_them() {
    let Some(folder) = fetched("tests/golden/make/fetch-templates.sh") else { return };
    let (found, cases) = differences(&folder);
    assert!(found.is_empty(), "{} of {cases}:\n{}", found.len(), found.join("\n"));
    assert!(cases > 500);
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
