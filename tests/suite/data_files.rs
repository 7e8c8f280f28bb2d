//! Rows in the files that people have, and files that share nothing.

use std::path::Path;

use serde_json::Value;

use crate::support::runs::{label_task, rlvr, rows, stdout, text};

/// Logs of 30 servers, four each. Servers differ in their words.
fn logs() -> Vec<Value> {
    let labels = ["fine", "flood", "leak", "fine"];
    let word = |n: usize| {
        let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
        format!("{}{}{}", letter(n), letter(n / 26), letter(n * 7))
    };
    let row = |i: usize| {
        let server = i / 4;
        let words: Vec<String> = (0..9).map(|k| word(i * 9 + k)).collect();
        serde_json::json!({
            "text": format!("a log, \"quoted\"\nof {}", words.join(" ")),
            "label": labels[i % 4],
            "server": format!("s{server}"),
        })
    };
    (0..120).map(row).collect()
}

fn lines(path: &Path, rows: &[Value]) {
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn task(dir: &Path) -> String {
    let path = dir.join("task.toml");
    std::fs::write(&path, label_task("fine", &["flood", "leak"])).unwrap();
    text(&path).to_string()
}

#[test]
fn a_check_says_the_same_of_the_same_rows_in_every_kind_of_file() {
    let dir = tempfile::tempdir().unwrap();
    let (task, logs) = (task(dir.path()), logs());
    let file = |name: &str| dir.path().join(name);
    lines(&file("rows.jsonl"), &logs);
    std::fs::write(file("list.json"), serde_json::to_string_pretty(&logs).unwrap()).unwrap();
    for (name, delimiter) in [("rows.csv", ","), ("rows.tsv", "\t")] {
        let cell =
            |row: &Value, key: &str| format!("\"{}\"", row[key].as_str().unwrap().replace('"', "\"\""));
        let record = |row: &Value| ["text", "label", "server"].map(|key| cell(row, key)).join(delimiter);
        let records: Vec<String> = logs.iter().map(record).collect();
        let header = ["text", "label", "server"].join(delimiter);
        std::fs::write(file(name), format!("{header}\r\n{}\r\n", records.join("\r\n"))).unwrap();
    }
    let said = |name: &str| stdout(&["data", "check", text(&file(name)), "--task", &task, "--sft"]);
    let want = said("rows.jsonl");
    assert!(want.contains("rows        120 (120 good, 120 with a target for SFT)"), "{want}");
    for name in ["list.json", "rows.csv", "rows.tsv"] {
        assert_eq!(said(name), want, "{name}");
    }
    // Where the name says one thing and the bytes another, the bytes count.
    std::fs::rename(file("rows.csv"), file("rows.json")).unwrap();
    assert_eq!(said("rows.json"), want);
    let page = file("page.jsonl");
    std::fs::write(&page, "<!DOCTYPE html><html>Sign in</html>").unwrap();
    let output = rlvr(&["data", "check", text(&page), "--task", &task]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("page.jsonl: starts with `<`: it is a web page"), "{error}");
}

#[test]
fn parts_share_no_server_and_no_near_copy_and_check_finds_what_leaks() {
    let dir = tempfile::tempdir().unwrap();
    let (task, mut logs) = (task(dir.path()), logs());
    let all = dir.path().join("all.jsonl");
    // A near copy of the first server's first log at another one.
    let copy = logs[0]["text"].as_str().unwrap().to_uppercase();
    logs[119]["text"] = copy.clone().into();
    lines(&all, &logs);
    let out = dir.path().join("parts");
    let args = ["data", "split", text(&all), "--task", &task, "--out", text(&out), "--group-by", "server"];
    let said = stdout(&args);
    let part = |name: &str| rows(&out.join(name));
    let parts = ["train.jsonl", "valid.jsonl", "test.jsonl"].map(part);
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 120);
    assert_eq!(parts[1].len(), 12, "{said}");
    let servers = |part: &[Value]| {
        let mut servers: Vec<String> = part.iter().map(|row| row["server"].to_string()).collect();
        servers.sort();
        servers.dedup();
        servers
    };
    let each = parts.iter().map(|part| servers(part)).collect::<Vec<_>>();
    assert_eq!(each.iter().map(Vec::len).sum::<usize>(), 30);
    let of = |server: &str| each.iter().position(|part| part.contains(&format!("\"{server}\""))).unwrap();
    assert_eq!(of("s0"), of("s29"), "a near copy binds its servers");
    assert!(said.contains("120 of 120 rows are bound to others"), "{said}");
    let again = rlvr(&args);
    assert!(String::from_utf8_lossy(&again.stderr).contains("train.jsonl: exists already"));

    let [train, valid] = ["train.jsonl", "valid.jsonl"].map(|name| out.join(name));
    let against = ["data", "check", text(&valid), "--task", &task, "--against", text(&train)];
    assert!(stdout(&against).contains("leaks            0  rows that"));
    let mut leaky = parts[1].clone();
    leaky.push(parts[0][5].clone());
    leaky[2]["text"] = parts[0][7]["text"].as_str().unwrap().to_uppercase().into();
    leaky[2]["label"] = if parts[0][7]["label"] == "leak" { "flood" } else { "leak" }.into();
    lines(&valid, &leaky);
    let output = rlvr(&against);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("valid.jsonl:13: the same as") && said.contains("train.jsonl:6\n"), "{said}");
    assert!(said.contains("valid.jsonl:3: nearly the same as (100%)"), "{said}");
    assert!(said.contains("train.jsonl:8, with another label"), "{said}");
    assert!(
        said.contains("leaks            2  rows that") && said.contains("1 of them word for word"),
        "{said}"
    );

    // A run on them says so before it trains. A dry run looks at the first 64 rows of each file.
    let sets = [
        format!("data.train={}", train.display()),
        format!("data.valid={}", valid.display()),
        format!("task={task}"),
        format!("run.root={}", dir.path().display()),
    ];
    let mut args = vec!["train", "demo", "--dry-run"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let output = rlvr(&args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 of 13 validation rows are training rows too, the first in line 13"), "{said}");
}

#[test]
fn a_conversation_that_ends_with_the_answer_is_prompt_and_target() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("task.toml"), dir.path().join("rows.jsonl"));
    let of_messages = label_task("fine", &["flood", "leak"])
        .replace("template = \"{text}\"", "messages = \"messages\"")
        .replace(
            "[sft.target_template]\nnegative = \"fine\"\npositive = \"{label}\"",
            "[sft]\ntarget = \"messages[-1].content\"",
        );
    std::fs::write(&path, of_messages).unwrap();
    let said = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let short = |answer: &str| serde_json::json!({"messages": [said("user", "a log"), said("assistant", answer)], "label": "fine"});
    let long = [
        said("user", "a log"),
        said("assistant", "fine"),
        said("user", "another"),
        said("assistant", "leak"),
    ];
    lines(
        &file,
        &[
            short("fine"),
            serde_json::json!({"messages": long, "label": "leak"}),
            // For GRPO and evaluation: no answer, so no target.
            serde_json::json!({"messages": [said("user", "leak")], "label": "leak"}),
        ],
    );
    let report = stdout(&["data", "check", text(&file), "--task", text(&path)]);
    assert!(report.contains("rows        3 (3 good, 2 with a target for SFT)"), "{report}");
    assert!(report.contains("messages         2  rows of 1\nmessages         1  rows of 3"), "{report}");
    lines(&file, &[short("leak")]);
    let output = rlvr(&["data", "check", text(&file), "--task", text(&path)]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("the target is judged a flag"));
}
