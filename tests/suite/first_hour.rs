//! What someone meets who has not read anything yet: help, version, completion, and a task of their own from rows.

use std::path::Path;
use std::process::Command;

use crate::support::runs::{rlvr, stdout};

/// Every command, by its words.
fn commands(words: &[String]) -> Vec<Vec<String>> {
    let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
    args.push("--help");
    let help = stdout(&args);
    let mut found = vec![words.to_vec()];
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    for line in listed.take_while(|line| line.starts_with("  ")) {
        let name = line.split_whitespace().next().unwrap();
        // A deeper line is the rest of a description.
        if name != "help" && !line.starts_with("    ") {
            found.extend(commands(&[words, &[name.to_string()]].concat()));
        }
    }
    found
}

#[test]
fn every_command_shows_an_example_that_it_would_take() {
    let all = commands(&[]);
    assert!(all.len() > 15, "{all:?}");
    for words in &all {
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        args.push("--help");
        let help = stdout(&args);
        assert!(help.contains("Example"), "rlvr {} --help has no example", words.join(" "));
        let Some((_, example)) = help.split_once("Example: rlvr ") else { continue };
        let given: Vec<&str> = example.split(" >").next().unwrap().split_whitespace().collect();
        assert_eq!(given[..words.len()], args[..words.len()], "{example}");
        let before = help.split_once("Example: ").unwrap().0;
        // That of a group of commands shows one of them.
        if !before.contains("\nCommands:") {
            for flag in given.iter().filter(|word| word.starts_with('-')) {
                assert!(before.contains(flag), "rlvr {}: there is no {flag}", words.join(" "));
            }
        }
    }
}

#[test]
fn the_version_says_what_was_built() {
    assert_eq!(stdout(&["-V"]), format!("rlvr {}\n", env!("CARGO_PKG_VERSION")));
    let long = stdout(&["--version"]);
    let line = |name: &str| long.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_string();
    assert_eq!(line("features"), if cfg!(feature = "cuda") { "cuda" } else { "none" });
    assert_eq!(line("cuda").starts_with("not built in"), !cfg!(feature = "cuda"), "{long}");
    let git =
        Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    if let Ok(output) = git
        && output.status.success()
    {
        let commit = String::from_utf8(output.stdout).unwrap();
        assert_eq!(line("commit").split(' ').next(), commit.get(..12), "{long}");
    }
}

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        for word in ["train", "dry-run", "completions", "preview"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert!(stdout(&["man"]).contains(".TH rlvr 1"));
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("man1");
    stdout(&["man", "--into", into.to_str().unwrap()]);
    for page in ["rlvr.1", "rlvr-train.1", "rlvr-data-check.1"] {
        assert!(into.join(page).is_file(), "{page}");
    }
}

#[test]
fn plan_takes_what_train_takes() {
    for words in [&["plan", "demo"][..], &["plan", "--config", "demo"], &["plan", "configs/demo.toml"]] {
        let text = stdout(&[words, &["--set", "device=cpu", "--memory-gib", "4"]].concat());
        assert!(text.contains("model.random") && text.contains("It fits."), "{text}");
    }
    let error = rlvr(&["plan", "demo", "--set", "num_generations=4"]);
    assert_eq!(error.status.code(), Some(2));
}

/// Rows that a model of two layers can learn: `count` of each label.
fn rows(dir: &Path, name: &str, count: usize, row: impl Fn(&str, &str) -> String) -> std::path::PathBuf {
    let file = dir.join(name);
    let texts =
        [("ok", "the disk is fine"), ("leak", "a key was sent to"), ("wipe", "all files were removed by")];
    let lines = (0..count).flat_map(|i| texts.map(|(label, text)| row(&format!("{text} host {i}"), label)));
    std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    file
}

/// `rlvr` in a folder.
fn within(dir: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr")).args(words).current_dir(dir).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), text)
}

const CUT: [&str; 10] = [
    "--set",
    "sft.steps=3",
    "--set",
    "grpo.steps=1",
    "--set",
    "grpo.prompts_per_step=2",
    "--set",
    "grpo.group_size=2",
    "--set",
    "device=cpu",
];

/// A line of a data file from a text and its label.
type RowOf = fn(&str, &str) -> String;

#[test]
fn what_init_writes_trains_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let forms: [(&str, &str, RowOf); 6] = [
        ("labelled", "`label`, by its name", |text, label| {
            format!(r#"{{"text": "{text}", "label": "{label}"}}"#)
        }),
        ("pairs", "`completion`: no field is called label", |text, label| {
            format!(r#"{{"prompt": "{text}", "completion": "{label}"}}"#)
        }),
        ("chats", "the last message of `messages`", |text, label| {
            format!(
                r#"{{"messages": [{{"role": "user", "content": "{text}"}}, {{"role": "assistant", "content": "{label}"}}]}}"#
            )
        }),
        ("asked", "`messages`, a list of messages", |text, label| {
            format!(r#"{{"messages": [{{"role": "user", "content": "{text}"}}], "category": "{label}"}}"#)
        }),
        ("judged", "a conversation that ends with an answer", |text, label| {
            format!(
                r#"{{"conversations": [{{"from": "human", "value": "{text}"}}, {{"from": "gpt", "value": "I see."}}], "label": "{label}"}}"#
            )
        }),
        ("several", "all texts besides the label", |text, label| {
            format!(
                r#"{{"id": "{text}", "premise": "{text}", "hypothesis": "it is {{bad}}", "kind": "{label}"}}"#
            )
        }),
    ];
    for (name, because, row) in forms {
        rows(dir.path(), &format!("{name}.jsonl"), 10, row);
        let (code, said) = within(dir.path(), &["init", &format!("{name}.jsonl")]);
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(said.contains(because), "{name}: {said}");
        assert!(said.contains("negative  ok, by its name"), "{name}: {said}");
        assert!(said.contains("24 rows to train on, 6 held out"), "{name}: {said}");
        let config = format!("{name}/config.toml");
        let (code, said) = within(dir.path(), &[&["train", &config][..], &CUT, &["--dry-run"]].concat());
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(!said.contains("dropped"), "{name}: {said}");
        // Written for a whole run: nothing but its length is cut.
        if matches!(name, "labelled" | "asked" | "judged") {
            let (code, said) = within(dir.path(), &[&["train", &config][..], &CUT].concat());
            assert_eq!(code, Some(0), "{name}: {said}");
            assert!(dir.path().join(format!("runs/{name}-001/model/config.json")).is_file(), "{said}");
        }
        let again = within(dir.path(), &["init", &format!("{name}.jsonl")]);
        assert_eq!(again.0, Some(2));
        assert!(
            again.1.contains("is there already") && again.1.contains("nothing is overwritten"),
            "{}",
            again.1
        );
    }
}

#[test]
fn init_refuses_what_it_cannot_make_a_classifier_of() {
    let dir = tempfile::tempdir().unwrap();
    let free: String =
        (0..70).map(|i| format!("{{\"prompt\": \"q{i}\", \"completion\": \"a{i}\"}}\n")).collect();
    for (rows, flags, wants) in [
        ("[1]\n", &[][..], ["no JSON objects", "\"label\""]),
        ("", &[], ["has no rows", "one JSON object a line"]),
        (
            "{\"a\": \"x\"}\n{\"a\": \"y\"}\n",
            &[],
            ["no field is a label: the rows have a", "Give every row a field `label`"],
        ),
        (
            "{\"text\": \"x\", \"label\": 1}\n{\"text\": \"y\", \"label\": 1}\n",
            &[],
            ["all 2 rows have the label `1`", "another label"],
        ),
        (&free, &[], ["free text", "rlvr trains verdicts"]),
        (
            "{\"text\": \"x\", \"label\": \"a\"}\n{\"text\": \"y\", \"label\": \"b\"}\n",
            &["--negative", "c"],
            ["--negative c", "Use one of: a, b"],
        ),
        (
            "{\"text\": \"x\", \"label\": \"a\"}\n{\"text\": \"y\", \"label\": \"b\"}\n",
            &[],
            ["no label with two different rows", "Add rows"],
        ),
        (
            "{\"label\": \"a\", \"n\": 1}\n{\"label\": \"b\", \"n\": 2}\n",
            &[],
            ["no field is a text", "`messages`"],
        ),
        (
            "{\"text\": \"x\", \"label\": \"@a\"}\n{\"text\": \"y\", \"label\": \"b\"}\n",
            &[],
            ["begins with `@`", "Rename it"],
        ),
    ] {
        std::fs::write(dir.path().join("d.jsonl"), rows).unwrap();
        let (code, said) = within(dir.path(), &[&["init", "d.jsonl"], flags].concat());
        assert_eq!(code, Some(2), "{said}");
        assert!(wants.iter().all(|want| said.contains(want)), "{said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind: {said}");
    }
    // Past the rows that are looked at first: by line.
    let mut late: String =
        (0..1100).map(|i| format!("{{\"text\": \"x{i}\", \"label\": \"{}\"}}\n", i % 2)).collect();
    late += "{\"text\": \"y\"}\n";
    std::fs::write(dir.path().join("d.jsonl"), late).unwrap();
    let (code, said) = within(dir.path(), &["init", "d.jsonl"]);
    assert!(code == Some(2) && said.contains("d.jsonl:1101: has no `label`"), "{said}");
}
