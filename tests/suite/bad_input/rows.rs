//! Rows of a data file, named by file and line.

use serde_json::{Value, json};

use crate::support::room::{INPUT, Room, no_faults, row};

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let spoilt = |key: &str, value: Value| {
        let mut row: Value = serde_json::from_str(&row("a", "Safe")).unwrap();
        row[key] = value;
        row.to_string().into_bytes()
    };
    let good = row("a", "Safe");
    let second = |line: &[u8]| [good.as_bytes(), b"\n\n", line, b"\n"].concat();
    let cases: [(Vec<u8>, &[&str]); 15] = [
        (second(b"{\"prompt\": "), &["bad.jsonl:3: malformed JSON at column", "one JSON object a line"]),
        (second(b"[1]"), &["bad.jsonl:3: the row is a list", "one JSON object a line"]),
        (second(&b"[".repeat(100_000)), &["bad.jsonl:3: malformed JSON", "recursion limit"]),
        (second(&spoilt("security_type", Value::Null)), &["bad.jsonl:3: ", "security_type[-1]", "gold.path"]),
        (
            second(row("b", "Nope").as_bytes()),
            &["bad.jsonl:3: ", "`Nope`", "Use one of: Safe, ", "[gold.map]"],
        ),
        (second(&spoilt("prompt", json!([]))), &["bad.jsonl:3: `prompt` is empty", "Give a list of"]),
        (second(&spoilt("prompt", json!("a"))), &["bad.jsonl:3: ", "`prompt`", "Give a list of"]),
        (second(&spoilt("prompt", json!([{"content": "a"}]))), &["bad.jsonl:3: `prompt[0]` has no role"]),
        (
            second(&spoilt("chosen", Value::Null)),
            &["bad.jsonl:3: ", "no target", "Add the answer to imitate"],
        ),
        (second(&spoilt("chosen", json!(""))), &["bad.jsonl:3: `chosen` is empty", "Give the answer"]),
        (second(&spoilt("chosen", json!("a<|im_end|>"))), &["bad.jsonl:3: ", "`<|im_end|>`", "Remove it"]),
        (second(b"\"\xff\""), &["bad.jsonl:3: byte 2 of the line is not UTF-8", "Save the file as UTF-8"]),
        (b"\0".repeat(99), &["bad.jsonl:1: malformed JSON at column 1"]),
        (Vec::new(), &["bad.jsonl: has no rows", "one JSON object a line"]),
        (b"\n \n".to_vec(), &["bad.jsonl: has no rows"]),
    ];
    no_faults(cases.into_iter().map(|(rows, says)| {
        let room = Room::new();
        room.write("bad.jsonl", rows);
        room.fault("train config.toml --set data.train=bad.jsonl", INPUT, says)
    }));
}
