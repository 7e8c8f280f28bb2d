//! Models and what lies beside them; and what other programs write otherwise and mean the same.

use serde_json::{Value, json};

use crate::support::room::{Case, INPUT, Room, no_faults, row, try_cases};

const CHECK: &str = "data check rows.jsonl --task riskcue --model model";
const PREDICT: &str = "predict model rows.jsonl --task riskcue --max-completion-tokens 4";

fn rows(room: &Room, rows: impl AsRef<[u8]>) {
    room.write("rows.jsonl", rows);
}

fn template(room: &Room, text: &str) {
    room.write("model/chat_template.jinja", text);
}

fn threshold(room: &Room, key: &str, value: &str) {
    let mut text = json!({
        "task": "riskcue", "score": "labels", "max_false_positive_rate": 0.1, "threshold": 0.5, "data": "v.jsonl", "rows": 2,
        "false_positive_rate": 0.0, "recall": 1.0, "accuracy": 1.0, "precision": 1.0, "auc": 1.0, "average_precision": 1.0, "roc": [], "pr": [],
    });
    text[key] = json!("HERE");
    room.write("model/threshold.json", text.to_string().replace("\"HERE\"", value));
    rows(room, row("a", "Safe"));
}

#[test]
fn models_and_what_lies_beside_them() {
    let cases: [Case; 9] = [
        (
            "a NaN, and exact scores",
            |room| {
                let path = room.at("model/model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                let end = bytes.len();
                bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
                std::fs::write(path, bytes).unwrap();
                let messages =
                    ["user", "assistant", "user"].map(|role| json!({"role": role, "content": "a"}));
                rows(room, json!({"prompt": messages, "security_type": ["Safe"]}).to_string());
            },
            "eval model rows.jsonl --task riskcue-verdict --exact",
            INPUT,
            &["model.safetensors: model.norm.weight: element 7 is NaN or infinite"],
        ),
        (
            "a threshold above 1",
            |room| threshold(room, "threshold", "1e308"),
            PREDICT,
            INPUT,
            &["threshold is 1e308"],
        ),
        (
            "one below 0",
            |room| threshold(room, "threshold", "-0.1"),
            PREDICT,
            INPUT,
            &["threshold is -0.1, no probability"],
        ),
        (
            "one that is no number",
            |room| threshold(room, "threshold", "NaN"),
            PREDICT,
            INPUT,
            &["threshold.json: is no threshold", "Fit it again"],
        ),
        (
            "a rate above 1",
            |room| threshold(room, "max_false_positive_rate", "7"),
            PREDICT,
            INPUT,
            &["max_false_positive_rate is 7.0, no probability from 0 to 1"],
        ),
        (
            "an added token past the embedding that nothing writes",
            |room| {
                past_the_embedding(room);
                rows(room, row("a", "Safe"));
            },
            CHECK,
            0,
            &["model/tokenizer.json: the model's embedding has no row for [PAD]", "1 (1 good"],
        ),
        (
            "one that a row means",
            |room| {
                past_the_embedding(room);
                let task = include_str!("../../../tasks/riskcue.toml");
                room.write("t.toml", task.replace("[input]\n", "[input]\ntrusted_tokens = \"all\"\n"));
                rows(room, row("a [PAD]", "Safe"));
            },
            "data check rows.jsonl --task t.toml --model model",
            INPUT,
            &["rows.jsonl:1: the text holds `[PAD]`, id 259, but the model's embedding has 259 rows"],
        ),
        (
            "prompts past the positions",
            |room| rows(room, row(&"a".repeat(200), "Safe")),
            "predict model rows.jsonl --task riskcue --max-prompt-tokens 100 --max-completion-tokens 4",
            0,
            &[
                "\"error\":\"the prompt has 219 tokens, more than the 100 that are allowed or that fit the model\"",
            ],
        ),
        (
            "a template list without a default",
            |room| {
                room.edit("model/tokenizer_config.json", |file| {
                    file["chat_template"] = json!([{"name": "rag", "template": ""}])
                })
            },
            "train config.toml",
            INPUT,
            &["tokenizer_config.json: chat_template: has no template named default, only: rag"],
        ),
    ];
    try_cases(&cases);
}

fn past_the_embedding(room: &Room) {
    room.edit("model/tokenizer.json", |file| {
        let mut pad = file["added_tokens"][0].clone();
        pad["id"] = json!(259);
        pad["content"] = json!("[PAD]");
        file["added_tokens"].as_array_mut().unwrap().push(pad);
    });
}

/// What other programs write otherwise and mean the same: every answer is what it was.
#[test]
fn what_must_change_nothing() {
    fn usual_template(room: &Room) -> String {
        let file: Value =
            serde_json::from_slice(&std::fs::read(room.at("model/tokenizer_config.json")).unwrap()).unwrap();
        file["chat_template"].as_str().unwrap().to_string()
    }
    fn with_tokenizer(room: &Room, change: fn(&mut Value)) {
        room.edit("model/tokenizer_config.json", change);
    }
    type Change = fn(&Room);
    let changes: [(&str, Change); 12] = [
        ("a template in a file of its own", |room| {
            let text = usual_template(room);
            template(room, &text);
            with_tokenizer(room, |file| {
                file["chat_template"] = json!("{{ raise_exception('not this one') }}")
            });
        }),
        ("named templates", |room| {
            with_tokenizer(room, |file| {
                let usual = file["chat_template"].clone();
                file["chat_template"] =
                    json!([{"name": "rag", "template": "x"}, {"name": "default", "template": usual}]);
            });
        }),
        ("Windows' line ends in the template", |room| {
            let text = usual_template(room);
            template(room, &text.replace('\n', "\r\n"));
        }),
        ("marks of what is generated", |room| {
            let text = usual_template(room);
            let content = "{{ message['content'] }}";
            assert!(text.contains(content));
            template(
                room,
                &text.replace(content, &format!("{{% generation %}}{content}{{% endgeneration %}}")),
            );
        }),
        ("transformers 5's name of the class", |room| {
            with_tokenizer(room, |file| file["tokenizer_class"] = json!("TokenizersBackend"));
        }),
        ("dtype in the place of torch_dtype", |room| {
            room.edit("model/config.json", |file| {
                file.as_object_mut().unwrap().remove("torch_dtype");
                file["dtype"] = json!("float32");
            });
        }),
        ("one end token, not a list", |room| {
            room.edit("model/generation_config.json", |file| file["eos_token_id"] = json!(2));
        }),
        ("sampling settings of a chat", |room| {
            room.edit("model/generation_config.json", |file| {
                file["suppress_tokens"] = json!([]);
                file["temperature"] = json!([0.6]);
            });
        }),
        ("a byte order mark and Windows' line ends", |room| {
            let text = std::fs::read_to_string(room.at("rows.jsonl")).unwrap();
            rows(room, format!("\u{feff}{}", text.replace('\n', "\r\n")));
        }),
        ("merges as texts", |room| {
            merges(room, |pair| json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())))
        }),
        ("merges as pairs", |room| merges(room, |pair| json!(pair))),
        ("an added token that nothing writes", past_the_embedding),
    ];
    let answers = |change: fn(&Room)| {
        let room = Room::new();
        merges(&room, |pair| json!(pair));
        rows(&room, [row("abab", "Safe"), row("b\r\na", "Safe")].join("\n"));
        change(&room);
        let (code, stderr) = room.rlvr(&format!("{PREDICT} -o out.jsonl"));
        assert_eq!(code, Some(0), "{stderr}");
        std::fs::read_to_string(room.at("out.jsonl")).unwrap()
    };
    let usual = answers(|_| ());
    assert_eq!(usual.lines().count(), 2);
    for (what, change) in changes {
        assert_eq!(answers(change), usual, "{what}");
    }
}

/// One merge, of two tokens that there are to one that takes the place of a byte no text has.
fn merges(room: &Room, written: fn(&[Value; 2]) -> Value) {
    room.edit("model/tokenizer.json", |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        if let Some(id) = vocab.shift_remove("\u{122}") {
            vocab.insert("ab".into(), id);
        }
        file["model"]["merges"] = json!([written(&[json!("a"), json!("b")])]);
    });
}

#[test]
fn a_run_that_was_moved_goes_on() {
    let room = Room::new();
    assert_eq!(room.rlvr("train config.toml --set run.name=a").0, Some(0));
    std::fs::rename(room.at("runs"), room.at("elsewhere")).unwrap();
    no_faults(
        ["report elsewhere/a", "train --resume elsewhere/a", "eval elsewhere/a/model good.jsonl"]
            .into_iter()
            .map(|words| room.answer_fault(words, 0, &[])),
    );
}
