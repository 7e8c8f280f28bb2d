//! Chat templates against jinja2 as transformers runs it: `scripts/golden/templates.py` made the golden values.

use std::path::Path;

use rlvr::text::ChatTemplate;
use rlvr::types::Message;
use serde_json::Value;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

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
            let talk = [Message { role: "user".into(), content: "Is this log benign?".into() }];
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
            messages.iter().map(|m| Message { role: text(m, "role"), content: text(m, "content") }).collect();
        let ours = ChatTemplate::load(tokens.path(), Some(&folder.join(name)))
            .and_then(|template| template.with_arguments(&arguments))
            .and_then(|template| match messages.split_last() {
                Some((last, before)) if case["add_generation_prompt"] == false => {
                    template.render_answered(before, &last.content)
                }
                _ => template.render_prompt(&messages),
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

#[test]
fn templates_of_real_models_render_as_jinja2_renders_them() {
    if let Ok(d) = std::env::var("H5_REAL") {
        let (found, _) = differences(Path::new(&d));
        println!("{}", found.join("\n"));
    }
}
