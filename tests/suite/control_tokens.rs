//! Text from outside the program never becomes a control token, with the tokenizers at hand.

use std::path::Path;

use proptest::prelude::*;
use rlvr::formats::tiktoken;
use rlvr::task::Task;
use rlvr::text::{EncoderFiles, PromptEncoder, byte_tokenizer};
use rlvr::types::{Conversation, Message, Trusted};
use serde_json::{Value, json};

use crate::support::parity_fixture::{fetched, smollm2_dir};
use crate::support::seed;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}\
    {{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
/// No separators, contents trimmed, JSON without non-ASCII letters, parts of tokens around what a row says.
const JOINED: &str = "{% for m in messages %}{{ m.content | trim }}{% for c in m.tool_calls or [] %}<{{ c.function.name }}>\
    {{ c.function.arguments | tojson(ensure_ascii=true) }}{% endfor %}{% endfor %}<|im_end|>";

/// A tokenizer, its template, and a folder that holds both while the test runs.
struct Case {
    name: &'static str,
    encoder: PromptEncoder,
    /// Added tokens, but for the phrases of a tokenizer that was built.
    added: Vec<(u32, String)>,
    _folder: tempfile::TempDir,
}

/// The tokenizer in `from`, with another template.
fn case(name: &'static str, from: &Path, template: &str) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.jinja");
    std::fs::write(&file, template).unwrap();
    let files = EncoderFiles { chat_template: Some(&file), ..EncoderFiles::of(from) };
    let encoder = PromptEncoder::load(&files).unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
    let added =
        json["added_tokens"].as_array().unwrap().iter().map(|token| token["content"].as_str().unwrap());
    let added = added.filter(|token| *token != "Done: ");
    let added = added.map(|token| (encoder.tokenizer().id(token).unwrap(), token.to_string())).collect();
    Case { name, encoder, added, _folder: folder }
}

/// The tokenizer in `from` with tokens of every kind more.
fn with_more_tokens(from: &Path, normalizer: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut file: Value =
        serde_json::from_slice(&std::fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
    let first = file["added_tokens"].as_array().unwrap().len();
    let vocab = file["model"]["vocab"].as_object().unwrap().len().max(first);
    let flags = ["special", "single_word", "lstrip", "rstrip", "normalized"];
    let texts = ["<tool_call>", "SYSTEM", "[INST]", "<think>", "<|Tool|>", "</s>", "☃"];
    for (i, text) in texts.into_iter().enumerate() {
        let mut token = json!({"id": vocab + i, "content": text});
        for (bit, flag) in flags.into_iter().enumerate() {
            token[flag] = json!(i == bit);
        }
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    file["normalizer"] = normalizer;
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    for name in ["tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn cases() -> Vec<Case> {
    let built = tempfile::tempdir().unwrap();
    let tokenizer = byte_tokenizer::build(["a log of a server"].into_iter(), &["Done: "], 300).unwrap();
    byte_tokenizer::save_pretrained(&tokenizer, built.path()).unwrap();
    let flags = with_more_tokens(built.path(), Value::Null);
    let lower = with_more_tokens(built.path(), json!({"type": "Lowercase"}));
    let mut all = Vec::new();
    for template in [CHATML, JOINED] {
        all.push(case("built", built.path(), template));
        all.push(case("flags", flags.path(), template));
        all.push(case("lower", lower.path(), template));
    }
    if let Some(dir) = smollm2_dir() {
        all.push(case("smollm2", dir, CHATML));
        all.push(case("smollm2", dir, JOINED));
        let more = with_more_tokens(dir, json!({"type": "NFKC"}));
        all.push(case("smollm2 with more", more.path(), CHATML));
    }
    if let Some(ranks) = fetched("scripts/fetch-llama3-tokenizer.sh") {
        let out = built.path().join("llama3");
        tiktoken::import(&ranks, &out).unwrap();
        let header = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}\
            {% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|eot_id|>{% endfor %}";
        all.push(case("llama 3", &out, header));
    }
    all
}

/// A call of a tool between a question and its result.
fn talk(question: &str, name: &str, argument: &str, result: &str) -> Conversation {
    let call = json!({"type": "function", "function": {"name": name, "arguments": {argument: argument, "n": [argument]}}});
    let mut calling = Message::new("assistant", "calling");
    calling.more.insert("tool_calls".into(), json!([call]));
    vec![Message::new("user", question), calling, Message::new("tool", result)].into()
}

fn control_ids(Case { encoder, added, .. }: &Case, conversation: &Conversation) -> Vec<u32> {
    let ids = encoder.encode_prompt(conversation).unwrap().token_ids;
    ids.into_iter().filter(|id| added.iter().any(|(control, _)| control == id)).collect()
}

#[test]
fn no_added_token_comes_of_a_rows_text() {
    for case in cases() {
        let Case { name, encoder, added, .. } = &case;
        let own = control_ids(&case, &talk("a", "b", "c", "d"));
        assert!(!own.is_empty(), "{name}");
        // Of Llama 3's 256 most are alike.
        for (_, token) in added.iter().filter(|(_, token)| !token.contains("_token_1")) {
            let half = token.char_indices().nth(token.chars().count() / 2).unwrap().0;
            let (head, tail) = token.split_at(half);
            let nested = format!("{head}{token}{tail}");
            let inner = token.trim_start_matches('<').trim_end_matches('>');
            let texts = [
                talk(token, "b", "c", "d"),
                talk(&format!("log {token}"), "b", "c", &format!("{token} log")),
                talk(&format!(" {token}{token}\n"), token, token, &nested),
                talk(&nested, "b", &nested, &token.to_uppercase()),
                talk("a", inner, "c", &token.to_lowercase()),
                vec![Message::new("user", format!("a{head}")), Message::new("tool", format!("{tail}b"))]
                    .into(),
            ];
            for text in texts {
                let found = control_ids(&case, &text);
                let want = match text.messages.len() {
                    3 => own.clone(),
                    _ => {
                        control_ids(&case, &vec![Message::new("user", "a"), Message::new("tool", "b")].into())
                    }
                };
                assert_eq!(found, want, "{name}: {token} in {:?}", text.messages);
                // Every text of it is there, as text.
                let whole = encoder.template().render_prompt(&text).unwrap();
                let ids = encoder.encode_prompt(&text).unwrap().token_ids;
                let back = encoder.tokenizer().decode_whole(&ids).unwrap();
                if !matches!(*name, "lower" | "smollm2 with more") {
                    assert_eq!(back, whole, "{name}: {token}");
                }
            }
        }
    }
}

#[test]
fn rows_that_trust_a_token_have_it_and_no_other() {
    let Case { encoder, .. } = cases().remove(1);
    let text = "<tool_call>a</s><|im_end|>";
    let ids = |trusted| {
        let talk = Conversation { trusted, ..vec![Message::new("user", text)].into() };
        let ids = encoder.encode_prompt(&talk).unwrap().token_ids;
        let of = |token: &str| ids.iter().filter(|id| Some(**id) == encoder.tokenizer().id(token)).count();
        ([of("<tool_call>"), of("</s>"), of("<|im_end|>")], encoder.control_texts(&talk))
    };
    let all = ["<tool_call>", "</s>", "<|im_end|>"].map(String::from);
    assert_eq!(ids(Trusted::None), ([0, 0, 1], all.to_vec()));
    assert_eq!(ids(Trusted::Tokens(all[..1].to_vec())), ([1, 0, 1], all[1..].to_vec()));
    assert_eq!(ids(Trusted::All), ([1, 1, 2], Vec::new()));
}

#[test]
fn a_task_says_which_tokens_its_rows_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    let load = |value: &str| {
        let task =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tasks/demo.toml")).unwrap();
        std::fs::write(&path, task.replace("[input]\n", &format!("[input]\ntrusted_tokens = {value}\n")))
            .unwrap();
        let task = Task::load(path.to_str().unwrap())?;
        let row = json!({"prompt": [{"role": "user", "content": "a"}]});
        task.conversation(&row, Path::new("rows"), 1).map(|conversation| conversation.trusted)
    };
    assert_eq!(load("\"all\"").unwrap(), Trusted::All);
    assert_eq!(load("[\"<think>\"]").unwrap(), Trusted::Tokens(vec!["<think>".into()]));
    let error = load("\"any\"").unwrap_err().to_string();
    assert!(error.contains("a list of tokens, or \"all\""), "{error}");
}

proptest! {
    #![proptest_config(seed::cases(48))]

    /// Rows without such text have the ids of the rendered text, token for token.
    #[test]
    fn the_ids_of_other_rows_are_the_tokenizers(a in "[ -;=?-Z^-~é\n]{0,40}", b in "[a-z>]{1,9}( <)?") {
        thread_local!(static CASES: Vec<Case> = cases());
        CASES.with(|cases| {
            for Case { name, encoder, .. } in cases {
                let talk = talk(&a.replace("SYSTEM", "").to_lowercase(), &b, &b, &a.to_lowercase());
                if !encoder.control_texts(&talk).is_empty() || name.starts_with("lower") {
                    continue;
                }
                let Ok(prompt) = encoder.encode_prompt(&talk) else { continue };
                let text = encoder.template().render_prompt(&talk).unwrap();
                assert_eq!(prompt.token_ids, encoder.tokenizer().encode(&text).unwrap(), "{name}: {text:?}");
            }
        });
    }
}
