//! Paths and files on the command line.

use crate::support::room::{INPUT, Room, SYSTEM, no_faults, row};

#[test]
fn paths_and_files_on_the_command_line_are_checked() {
    let cases: [(&str, i32, &[&str]); 18] = [
        (
            "eval --predictions good.jsonl",
            INPUT,
            &["good.jsonl:1: the row has no answer", "Give the answer as"],
        ),
        (
            "eval model good.jsonl --use-threshold",
            INPUT,
            &["threshold.json: is not there", "--fit-threshold"],
        ),
        ("report model", INPUT, &["model: is not a run", "Name the directory"]),
        ("data audit bad.jsonl", INPUT, &["bad.jsonl:2: malformed JSON", "one JSON object a line"]),
        ("train absent", INPUT, &["config `absent`", "Use one of: demo, "]),
        ("train model", INPUT, &["model: is a folder, not a config", "Name a TOML file"]),
        ("train absent.toml", INPUT, &["absent.toml: cannot read the config", "Check the path"]),
        ("train config.toml --set data.train=absent", INPUT, &["absent: cannot read", "Check the path"]),
        ("train config.toml --set task=absent.toml", INPUT, &["absent.toml: cannot read", "Check the path"]),
        (
            "train config.toml --set task=model",
            INPUT,
            &["model: is a folder, not a task file", "Name a TOML"],
        ),
        ("train config.toml --set run.root=good.jsonl", SYSTEM, &["good.jsonl: cannot create", "Check"]),
        ("import absent.gguf out", INPUT, &["absent.gguf: cannot open", "Check the path"]),
        ("import good.jsonl model", INPUT, &["model: the output directory is not empty", "Name a new"]),
        ("data check bad.jsonl", INPUT, &["bad.jsonl: 2 problems in 3 rows", "Correct the lines"]),
        ("data check bad.jsonl --task nope", INPUT, &["task `nope`", "Use one of: riskcue"]),
        ("data check good.jsonl --model absent", INPUT, &["absent: no such folder", "tokenizer.json"]),
        ("data check absent", INPUT, &["absent: cannot read", "Check the path"]),
        (
            "data preview good.jsonl --model model --row 9",
            INPUT,
            &["good.jsonl:9: there is no such line", "from 1"],
        ),
    ];
    let room = Room::new();
    room.write("bad.jsonl", [&row("a", "Safe"), "bad", "{}"].join("\n"));
    no_faults(cases.into_iter().map(|(words, code, says)| room.fault(words, code, says)));
}
