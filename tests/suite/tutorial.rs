//! docs/tutorial.md: its commands run one after another, on fewer rows, and what it shows of them keeps its form. And the
//! gate that it ends with.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::project;
use crate::support::runs::{READ_HELD_OUT, held_out, rlvr, rows, text, train};

/// What is said on the page, and instead here: the same sessions, but fewer of them, and a shorter training on them.
const CUT: [(&str, &str); 3] = [
    ("COUNT=5000", "COUNT=300"),
    ("COUNT=1000", "COUNT=100"),
    (
        "rlvr train detector/config.toml\n",
        "rlvr train detector/config.toml --set sft.steps=150 --set grpo.steps=4 --set eval.every_steps=2\n",
    ),
];

/// Lines that a shorter training may end without: which model is best, whether groups of the last step agree, who passes.
const OPEN: [&str; 5] = ["best, ", "model: ", "grpo ", "later/", "{\"line\""];

/// A block of commands, and what the page shows of their output.
struct Block {
    commands: String,
    shown: Vec<String>,
}

/// Blocks marked `sh`, each with the block marked `text` that follows it, if one does.
fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(mark) = line.strip_prefix("```") else { continue };
        let body: Vec<String> = lines.by_ref().take_while(|line| *line != "```").map(String::from).collect();
        match (mark, found.last_mut()) {
            ("sh", _) => found.push(Block { commands: body.join("\n") + "\n", shown: Vec::new() }),
            ("text", Some(block)) => block.shown = body,
            (other, _) => assert_eq!(other, "toml", "{body:?}"),
        }
    }
    found
}

/// A line with its numbers as `#`, dashes for absent ones too, and single spaces.
fn form(line: &str) -> String {
    let mut form = String::new();
    for word in line.split_whitespace() {
        let mut number = word == "-";
        form.push_str(if number { " #" } else { " " });
        for c in word.chars().filter(|_| word != "-") {
            let digit = c.is_ascii_digit() || (number && matches!(c, '.' | ',' | '%'));
            match (digit, number) {
                (true, false) => form.push('#'),
                (true, true) => {}
                (false, _) => form.push(c),
            }
            number = digit;
        }
    }
    form
}

#[test]
fn the_tutorial_runs_as_it_stands() {
    let page = std::fs::read_to_string(project().join("docs/tutorial.md")).unwrap();
    let blocks = blocks(&page);
    let dir = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_rlvr")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut cuts = CUT.to_vec();
    let mut faults = Vec::new();
    for block in &blocks {
        let mut commands = block.commands.clone();
        cuts.retain(|(said, instead)| {
            let cut = commands.replace(said, instead);
            let used = cut != commands;
            commands = cut;
            !used
        });
        let script = format!("exec 2>&1\nset -euo pipefail\n{commands}");
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(dir.path())
            .env("PATH", &path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{commands}\n{said}");
        let forms: Vec<String> = said.lines().map(form).collect();
        let shown = block.shown.iter().filter(|line| !line.contains("...") && !line.trim().is_empty());
        for line in shown.filter(|line| !OPEN.iter().any(|open| line.starts_with(open))) {
            if !forms.contains(&form(line)) {
                faults.push(format!("{commands}shows on the page\n  {line}\nand now says\n{said}"));
            }
        }
    }
    assert!(cuts.is_empty(), "not on the page any more: {cuts:?}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let commands: String = blocks.iter().map(|block| block.commands.as_str()).collect();
    for wanted in ["init", "data check", "data audit", "train", "eval", "predict", "export", "report"] {
        assert!(commands.contains(&format!("rlvr {wanted} ")), "the page has no rlvr {wanted}");
    }
}

#[test]
fn a_gate_lets_through_what_is_answered_and_not_flagged() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &["stages=[\"sft\"]"]);
    let valid = held_out(dir.path());
    let out = dir.path().join("out.jsonl");
    // The task and the budget of answers are the run's.
    let gate = |data: &Path, flags: &[&str]| {
        let words = ["predict", text(&run), text(data), "--gate", "--device", "cpu", "-o", text(&out)];
        let output = rlvr(&[&words[..], flags].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let fit = |rate: &str| {
        let words = ["eval", text(&run), text(&valid), "--fit-threshold", "--max-fpr", rate];
        assert!(rlvr(&[&words[..], &READ_HELD_OUT].concat()).status.success());
    };
    // A threshold that flags every row, then each row alone under one that flags some.
    fit("1");
    let (code, said) = gate(&valid, &[]);
    assert!(code == Some(3) && said.contains("task demo, the run's"), "{code:?} {said}");
    assert!(rows(&out).iter().all(|row| row["flagged"] == true));
    fit("0.5");
    let alone = dir.path().join("alone.jsonl");
    let mut codes = Vec::new();
    for line in std::fs::read_to_string(&valid).unwrap().lines() {
        std::fs::write(&alone, line).unwrap();
        let (code, _) = gate(&alone, &[]);
        let flagged = rows(&out)[0]["flagged"].as_bool().unwrap();
        assert_eq!(code, Some(if flagged { 3 } else { 0 }), "{line}");
        codes.push(code);
    }
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(3)), "{codes:?}");
    // Not answered, and nothing to answer.
    let (code, _) = gate(&valid, &["--max-prompt-tokens", "1"]);
    assert_eq!((code, rows(&out).len()), (Some(3), 20));
    std::fs::write(&alone, "").unwrap();
    let (code, said) = gate(&alone, &[]);
    assert!(code == Some(2) && said.contains("has no rows"), "{said}");
    // Standard input; and a reader that goes away has let nothing through.
    for (line, code) in [("> /dev/null", "3"), ("| true; exit ${PIPESTATUS[0]}", "1")] {
        let rlvr = env!("CARGO_BIN_EXE_rlvr");
        let script = format!(
            "set +o pipefail; {rlvr} predict {} - --gate --device cpu <{} {line}",
            run.display(),
            valid.display()
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code().map(|code| code.to_string()).as_deref(), Some(code), "{output:?}");
    }
}
