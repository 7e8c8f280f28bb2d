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

#[test]
fn plan_compares_cards_by_price_and_names_what_is_an_estimate() {
    let words = [
        "plan",
        "riskcue-llama3.1-8b",
        "--price",
        "h100=2.50,l40s=0.90",
        "--train-rows",
        "2421",
        "--valid-rows",
        "471",
        "--set",
        "model.path=\"llama-3.1-8b\"",
        "--json",
    ];
    let json: serde_json::Value = serde_json::from_str(&stdout(&words)).unwrap();
    // 80 GB hold 51 GiB of weights, moments and the rest; 48 GB do not.
    assert_eq!(
        (&json["cheapest"], &json["gpu"], &json["fits"]),
        (&"h100".into(), &"h100".into(), &true.into())
    );
    assert_eq!((&json["cards"][1]["gpu"], &json["cards"][1]["fits"]), (&"l40s".into(), &false.into()));
    let time = &json["time"];
    assert!(time["efficiency"].as_str().unwrap().contains("estimate, not measured"), "{time}");
    let (seconds, dollars) = (time["seconds"].as_f64().unwrap(), time["dollars"].as_f64().unwrap());
    assert!(seconds > 3600.0 && (dollars - seconds / 3600.0 * 2.5).abs() < 1e-9, "{time}");
    let text = stdout(&words[..words.len() - 1]);
    assert!(text.contains("The cheapest that fits: h100."), "{text}");
    let none = stdout(&["plan", "riskcue-llama3.1-8b", "--gpu", "4090", "--set", "pack.activations=keep"]);
    assert!(none.contains("It does not fit. What helps") && none.contains("add --train-rows"), "{none}");
    let refused = rlvr(&["plan", "demo", "--gpu", "h100", "--count", "8"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the others would idle"));
}

/// On the CPU the efficiency is that of a step which is timed.
#[test]
fn plan_times_a_step_on_the_cpu() {
    let demo = ["plan", "demo", "--set", "device=cpu", "--set", "threads=1", "--price", "0.1", "--json"];
    let dir = tempfile::tempdir().unwrap();
    let bench = [
        "bench",
        "step",
        "--preset",
        "tiny",
        "--random-weights",
        "--prompt-tokens",
        "32",
        "--new-tokens",
        "4",
    ];
    let line = stdout(&[&bench[..], &["--threads", "1", "--steps", "1", "--json"]].concat());
    let file = dir.path().join("step.jsonl");
    std::fs::write(&file, line).unwrap();
    let by_file = [&demo[..], &["--bench", file.to_str().unwrap()]].concat();
    for (words, source) in [(&demo[..], "a step on this CPU just now"), (&by_file, file.to_str().unwrap())] {
        let json: serde_json::Value = serde_json::from_str(&stdout(words)).unwrap();
        let time = &json["time"];
        assert_eq!(time["efficiency"], format!("measured by {source}"));
        let times: Vec<_> = time["legs"].as_array().unwrap().iter().map(|leg| leg["times"].clone()).collect();
        // 6,400 rows by 16; steps; before, after both stages, and at 50, 100, 150.
        assert_eq!(times, [400, 200, 6]);
        assert!(time["dollars"].as_f64() > Some(0.0), "{time}");
    }
    let more = rlvr(&[&demo[..5], &["threads=2", "--bench", file.to_str().unwrap()]].concat());
    assert_eq!(more.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&more.stderr).contains("no step on the CPU in f32 with 2 threads"));
}

/// No machine has the memory of this model: its weights alone are 6 TiB.
#[test]
fn train_refuses_what_cannot_fit_before_it_loads_anything() {
    let dir = tempfile::tempdir().unwrap();
    let large =
        ["model.random.hidden_size=16384", "model.random.intermediate_size=65536", "model.random.layers=400"];
    let settings =
        large.into_iter().chain(["model.random.attention_heads=4", "model.random.key_value_heads=4"]);
    let rows = ["data.synthetic.sft_rows=64", "data.synthetic.grpo_rows=64", "data.synthetic.valid_rows=8"];
    let settings = settings.chain(rows).chain(["device=cpu"]).flat_map(|setting| ["--set", setting]);
    let words: Vec<&str> = ["train", "demo"].into_iter().chain(settings).collect();
    let (code, text) = within(dir.path(), &words);
    assert_eq!(code, Some(2), "{text}");
    let error = text.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("error: memory: the run takes") && error.contains("grpo rollout"), "{error}");
    assert!(error.contains("--allow-over-budget") && error.contains("choose a smaller model"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path().join("runs")).unwrap().count(), 0, "the name is free again");
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
