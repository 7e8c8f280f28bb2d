//! Files of rows, and of answers that somebody recorded.

use serde_json::{Value, json};

use crate::support::room::{Case, INPUT, Room, row, try_cases};

const CHECK: &str = "data check rows.jsonl --task riskcue --model model";
const RECORDED: &str = "eval --predictions rows.jsonl --task riskcue";
const FLAG: &str =
    "Unsafe MCP Server:{\"ServerName\":\"a\", \"ToolName\":\"b\", \"Reason\":\"Denial-of-Service\"}";

fn rows(room: &Room, rows: impl AsRef<[u8]>) {
    room.write("rows.jsonl", rows);
}

/// A recorded answer of a benign log.
fn recorded(room: &Room, answer: Value) {
    let mut row = json!({"security_type": ["Denial-of-Service"], "completion": FLAG}).to_string();
    let mut other = json!({"security_type": ["Denial-of-Service"]});
    other.as_object_mut().unwrap().extend(answer.as_object().cloned().unwrap());
    row.push_str(&format!("\n{other}\n"));
    rows(room, row);
}

#[test]
fn data_files() {
    let cases: [Case; 9] = [
        (
            "line separators and zeros in a text",
            |room| rows(room, row("a\u{2028}b\u{85}c\0d", "Safe")),
            CHECK,
            0,
            &["1 (1 good"],
        ),
        (
            "a megabyte of base64",
            |room| rows(room, row(&"QUJD".repeat(1 << 18), "Safe")),
            CHECK,
            0,
            &["1 (1 good", "1  prompt longer than max_prompt_tokens = 3072"],
        ),
        (
            "a million blanks",
            |room| rows(room, row(&format!("a{}b", " ".repeat(1_000_000)), "Safe")),
            CHECK,
            0,
            &["1 (1 good", "1  prompt longer than max_prompt_tokens = 3072"],
        ),
        (
            "a row that fits no budget is not tokenised",
            |room| rows(room, [row(&"log ".repeat(1 << 16), "Safe"), row("a", "Safe")].join("\n")),
            CHECK,
            0,
            &["uncounted        1", "kept             1  Safe 1 of 2", "50% of the rows are dropped\n"],
        ),
        (
            "and not answered",
            |room| rows(room, [row(&"log ".repeat(1 << 16), "Safe"), row("a", "Safe")].join("\n")),
            "predict model rows.jsonl --task riskcue --max-prompt-tokens 60 --max-completion-tokens 4",
            0,
            &["\"error\":\"the prompt has more tokens than the 60 that are allowed", "{\"line\":2,"],
        ),
        (
            "UTF-16",
            |room| rows(room, b"\xff\xfe{\0}\0"),
            CHECK,
            INPUT,
            &["rows.jsonl: is UTF-16. Save the file as UTF-8"],
        ),
        (
            "an Excel file",
            |room| rows(room, b"PK\x03\x04...."),
            CHECK,
            INPUT,
            &["rows.jsonl: is a ZIP archive"],
        ),
        (
            "parquet that is cut",
            |room| rows(room, b"PAR1\x15\x04\x15\x10PAR1"),
            CHECK,
            INPUT,
            &["rows.jsonl: read as parquet: ", "Copy or download the file again"],
        ),
        (
            "a page in the place of the file",
            |room| rows(room, "<!DOCTYPE html><html>"),
            "train config.toml --set data.train=rows.jsonl",
            INPUT,
            &["rows.jsonl: starts with `<`: it is a web page"],
        ),
    ];
    try_cases(&cases);
}

#[test]
fn recorded_answers() {
    let answered = |place: &'static [&'static str]| place;
    let flagged = answered(&["2 answers, 1.000 of them on risky logs", "TP FP FN TN               2 0 0 0"]);
    let silent = answered(&["2 answers, ", "malformed, risky benign   1 0"]);
    let cases: [Case; 8] = [
        ("null is silence", |room| recorded(room, json!({"completion": null})), RECORDED, 0, silent),
        (
            "null in a message",
            |room| {
                let message = json!({"role": "assistant", "content": null, "reasoning_content": "hm"});
                recorded(room, json!({"choices": [{"message": message, "finish_reason": "length"}]}));
            },
            RECORDED,
            0,
            silent,
        ),
        (
            "a line of a batch",
            |room| {
                let message = json!({"role": "assistant", "content": FLAG});
                let body = json!({"choices": [{"message": message, "finish_reason": "stop"}]});
                recorded(
                    room,
                    json!({"custom_id": "1", "response": {"status_code": 200, "body": body}, "error": null}),
                );
            },
            RECORDED,
            0,
            flagged,
        ),
        (
            "a request that failed",
            |room| {
                recorded(room, json!({"custom_id": "2", "response": null, "error": {"code": "rate_limit"}}))
            },
            RECORDED,
            0,
            &["1 requests failed and are not counted, the first in line 2: \"rate_limit\"", "1 answers, "],
        ),
        (
            "samples of lm-eval",
            |room| {
                recorded(
                    room,
                    json!({"doc_id": 0, "target": "x", "resps": [[FLAG]], "filtered_resps": [FLAG]}),
                )
            },
            RECORDED,
            0,
            flagged,
        ),
        (
            "outputs with a text",
            |room| recorded(room, json!({"outputs": [{"text": FLAG}]})),
            RECORDED,
            0,
            flagged,
        ),
        (
            "a response",
            |room| {
                let message = json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": FLAG}]});
                recorded(room, json!({"output": [{"type": "reasoning", "summary": []}, message]}));
            },
            RECORDED,
            0,
            flagged,
        ),
        (
            "no answer at all",
            |room| recorded(room, json!({"note": "x"})),
            RECORDED,
            INPUT,
            &["rows.jsonl:2: the row has no answer", "Give the answer as one of"],
        ),
    ];
    try_cases(&cases);
}
