//! Runs on several files: `[[data.mix]]` and `[[data.valid_files]]`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::ranks::as_one;
use crate::support::runs::{records, rlvr, rows, stdout, text};

/// A demo's config on two files to train on, of 40 and 120 rows, and two to evaluate on. `more` lies on top.
fn config(root: &Path, more: &str) -> PathBuf {
    let data = root.join("data");
    let synth = ["data", "synth", "--out", text(&data), "--seed", "1", "--rows", "160", "--valid-rows", "20"];
    stdout(&synth);
    let all = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
    let cut = |from: &str, name: &str, lines: std::ops::Range<usize>| {
        let lines: Vec<String> =
            all(from).lines().skip(lines.start).take(lines.len()).map(|line| format!("{line}\n")).collect();
        std::fs::write(root.join(name), lines.concat()).unwrap();
    };
    cut("train.jsonl", "small.jsonl", 0..40);
    cut("train.jsonl", "large.jsonl", 40..160);
    cut("valid.jsonl", "one.jsonl", 0..12);
    cut("valid.jsonl", "two.jsonl", 12..20);
    let at = |name: &str| root.join(name).display().to_string();
    let config = format!(
        "preset = \"demo\"\ndevice = \"cpu\"\nthreads = 2\n[run]\nroot = \"{}\"\nname = \"r\"\n\
         [[data.mix]]\npath = \"{}\"\nname = \"few\"\n[[data.mix]]\npath = \"{}\"\nweight = 3\n\
         [[data.valid_files]]\npath = \"{}\"\n[[data.valid_files]]\npath = \"{}\"\n\
         [sft]\nrows_per_step = 16\n[grpo]\nsteps = 4\nprompts_per_step = 8\n[eval]\nevery_steps = 2\n{more}",
        root.display(),
        at("small.jsonl"),
        at("large.jsonl"),
        at("one.jsonl"),
        at("two.jsonl"),
    );
    let path = root.join("mixed.toml");
    std::fs::write(&path, config).unwrap();
    path
}

fn said(args: &[&str]) -> (bool, String) {
    let output = rlvr(args);
    let all = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&all).into_owned())
}

fn of_kind<'a>(events: &'a [Value], event: &str, stage: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["event"] == event && e["stage"] == stage).collect()
}

#[test]
fn a_run_draws_by_weight_and_says_what_each_source_gave() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "[checkpoint]\nevery_steps = 2\n");
    let (ended, text_of_run) = said(&["train", text(&config)]);
    assert!(ended, "{text_of_run}");
    assert!(text_of_run.contains("takes the place of [data.synthetic]"), "{text_of_run}");
    let run = dir.path().join("r");
    let events = rows(&run.join("metrics.jsonl"));
    let want = "data.mix: few 25.0% of the rows drawn, its 40 rows 1.00 times an epoch; large 75.0% of the rows drawn, its \
                120 rows 1.00 times an epoch";
    assert!(text_of_run.contains(want), "{text_of_run}");

    // An epoch is as many rows as both have.
    let sft = of_kind(&events, "step", "sft");
    assert_eq!(sft.len(), 10);
    for step in &sft {
        // The loss is the mean over all tokens, so it lies between those of the sources.
        let [few, large, all] =
            ["source/few/loss", "source/large/loss", "loss"].map(|name| step[name].as_f64().unwrap());
        assert!(few.min(large) <= all + 1e-9 && all <= few.max(large) + 1e-9, "{few} {large} {all}");
    }
    let grpo = of_kind(&events, "step", "grpo");
    assert_eq!(grpo.len(), 4);
    for (i, step) in grpo.iter().enumerate() {
        let of =
            |what: &str| ["few", "large"].map(|name| step[format!("source/{name}/{what}")].as_f64().unwrap());
        // Which source a row is of, its line tells: those of the second are counted on.
        let samples = rows(&run.join("samples/grpo-rollouts.jsonl"));
        let samples: Vec<&Value> = samples.iter().filter(|sample| sample["step"] == i + 1).collect();
        let few = samples.iter().filter(|sample| sample["line"].as_u64().unwrap() <= 40).count();
        let share = few as f64 / samples.len() as f64;
        assert!((0.125..=0.375).contains(&share), "{share}");
        for (what, whole) in [
            ("reward", "reward"),
            ("accuracy_strict", "verdict/accuracy_strict"),
            ("frac_reward_zero_std", "frac_reward_zero_std"),
        ] {
            let [a, b] = of(what);
            let (got, want) = (share * a + (1.0 - share) * b, step[whole].as_f64().unwrap());
            assert!((got - want).abs() < 1e-6, "{what}: {got} is not {want}");
        }
    }
    let evaluation = of_kind(&events, "evaluation", "grpo").pop().unwrap().clone();
    let of = |name: &str| evaluation[format!("source/{name}/accuracy_strict")].as_f64().unwrap();
    let want = evaluation["verdict/accuracy_strict"].as_f64().unwrap();
    assert!((0.6 * of("one") + 0.4 * of("two") - want).abs() < 1e-9);
    assert_eq!(evaluation["report"]["sources"]["two"]["accuracy_strict"].as_f64(), Some(of("two")));

    let board = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path());
    let board = board.into_iter().find(|path| text(path).contains("tfevents")).unwrap();
    let holds = |tag: &str| records(&board).iter().any(|r| r.windows(tag.len()).any(|w| w == tag.as_bytes()));
    assert!(holds("source/few/reward") && holds("eval/source/two/accuracy_strict"));
    let page = dir.path().join("report.html");
    stdout(&["report", text(&run), "--out", text(&page)]);
    let page = std::fs::read_to_string(page).unwrap();
    for title in
        ["Loss by source", "Reward by source", "Share of dead groups by source", "by validation file"]
    {
        assert!(page.contains(title), "{title}");
    }

    // The sources are inputs of the run by their names, and its config is the same config.
    let (ended, again) = said(&["train", text(&config), "--resume", "auto"]);
    assert!(ended && again.contains("done already"), "{again}");
    let (ended, other) =
        said(&["train", text(&config), "--resume", "auto", "--set", "data.mix=[{path=\"x.jsonl\"}]"]);
    assert!(!ended && other.contains("is of another config: data.mix was [{"), "{other}");
    std::fs::remove_dir_all(run.join("model")).unwrap();
    let large = dir.path().join("large.jsonl");
    let changed = std::fs::read_to_string(&large).unwrap().replacen("\n", "\n\n", 1);
    std::fs::write(&large, changed).unwrap();
    let (ended, changed) = said(&["train", text(&config), "--resume", "auto"]);
    assert!(!ended && changed.contains("has changed since the checkpoint: data.mix.large"), "{changed}");
}

#[test]
fn a_stopped_run_goes_on_with_the_same_rows() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path(), "[checkpoint]\nevery_steps = 3\nkeep_last = 9\n");
    stdout(&["train", text(&config)]);
    let whole = root.path().join("r");
    let numbers = |run: &Path| -> Vec<Value> {
        let steps = rows(&run.join("metrics.jsonl")).into_iter().filter(|e| e["event"] == "step");
        steps
            .map(|step| {
                let kept =
                    ["stage", "step", "loss", "source/few/loss", "source/large/reward", "source/few/reward"];
                kept.iter()
                    .map(|name| (name.to_string(), step[*name].clone()))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            })
            .collect()
    };
    let want = numbers(&whole);
    std::fs::remove_dir_all(whole.join("model")).unwrap();
    for later in ["step-9", "step-10", "step-12", "step-13", "step-14"] {
        let _ = std::fs::remove_dir_all(whole.join("checkpoints").join(later));
    }
    assert!(whole.join("checkpoints/step-6").is_dir());
    stdout(&["train", text(&config), "--resume", "auto"]);
    assert_eq!(numbers(&whole), want);
}

#[test]
fn a_check_and_a_dry_run_know_the_sources_and_enumeration_draws_from_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let checked = stdout(&["data", "check", "--config", text(&config)]);
    for name in ["small.jsonl", "large.jsonl", "one.jsonl", "two.jsonl"] {
        assert!(checked.contains(name), "{checked}");
    }
    assert!(checked.contains("rows        120 (120 good"), "{checked}");
    let dry = stdout(&["train", text(&config), "--dry-run"]);
    assert!(dry.contains("mix = [{ ") && dry.contains("kept: sft 104, grpo 104, valid 20"), "{dry}");
    let sets = ["stages=[\"enumerate\"]", "enumerate.steps=2", "enumerate.prompts_per_step=8"];
    let mut args = vec!["train", text(&config)];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    stdout(&args);
    let events = rows(&dir.path().join("r/metrics.jsonl"));
    let step = of_kind(&events, "step", "enumerate").pop().unwrap().clone();
    let of = |name: &str| step[name].as_f64().unwrap();
    let (few, large) = (of("source/few/reward"), of("source/large/reward"));
    assert!(few.min(large) <= of("reward") && of("reward") <= few.max(large));
    assert!(step["source/few/accuracy_strict"].is_number());
}

#[test]
fn what_cannot_be_mixed_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let file = |name: &str, text_of_file: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text_of_file).unwrap();
        format!("{{path=\"{}\"}}", path.display())
    };
    let empty = file("empty.jsonl", "\n");
    let other = file("other.jsonl", "{\"text\": \"x\", \"label\": \"fine\"}\n");
    let good = format!("{{path=\"{}\"}}", dir.path().join("small.jsonl").display());
    for (set, want) in [
        (format!("data.mix=[{good},{empty}]"), "empty.jsonl: has no rows"),
        (format!("data.mix=[{good},{other}]"), "other.jsonl:1: nothing at `prompt`"),
        (format!("data.mix=[{good},{good}]"), "data.mix[1].name: "),
        ("data.mix=[{path=\"gone.jsonl\"}]".into(), "gone.jsonl: cannot read"),
        ("data.mix=[{path=\"a.jsonl\", weight=0}]".into(), "data.mix[0].weight = 0: must be above 0"),
        ("data.mix=[{path=\"a.jsonl\", weight=nan}]".into(), "data.mix[0].weight = NaN: must be above 0"),
        ("data.mix=[{path=\"a.jsonl\", weight=\"2\"}]".into(), "data.mix[0].weight"),
        (
            "data.mix=[{path=\"a.jsonl\", wieght=2}]".into(),
            "unknown field `wieght`, expected one of `path`, `weight`, `name`",
        ),
        ("data.mix=[{weight=2}]".into(), "missing field `path`"),
        ("data.mix=\"a.jsonl\"".into(), "data.mix"),
        ("data.mix.path=\"a.jsonl\"".into(), "data.mix"),
        ("grpo.balance=label_sign".into(), "grpo.balance = label_sign: must be left out beside data.mix"),
        ("grpo.order=difficulty".into(), "grpo.order = difficulty: must be left out beside data.mix"),
        ("data.valid_files=[{path=\"a.jsonl\"},{path=\"b/a.csv\"}]".into(), "data.valid_files[1].name: "),
    ] {
        let output = rlvr(&["train", text(&config), "--set", &set]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{set}\n{error}");
        assert!(error.contains(want), "{set}\n{error}");
        assert!(!dir.path().join("r").exists(), "{set}");
    }
    // Beside one file, in one place.
    let both = std::fs::read_to_string(&config).unwrap() + "[data]\ntrain = \"a.jsonl\"\n";
    let path = dir.path().join("both.toml");
    std::fs::write(&path, both.replace("[sft]\n", "").replace("rows_per_step = 16\n", "")).unwrap();
    let output = rlvr(&["train", text(&path)]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("data.train is given together with data.mix")
            || error.contains("data.mix is given together with data.train"),
        "{error}"
    );
}

#[test]
fn several_ranks_draw_what_one_process_draws() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    // Rewards that are all alike, as here, would leave GRPO a gradient of rounding.
    let common = ["--set", "threads=1", "--set", "stages=[\"sft\"]"];
    for (name, ranks) in [("one", "1"), ("two", "2")] {
        let name = format!("run.name={name}");
        let words = [&["train", text(&config), "--ranks", ranks, "--set", &name][..], &common].concat();
        let (ended, said) = said(&words);
        assert!(ended, "{said}");
    }
    as_one(&dir.path().join("one"), &dir.path().join("two"), 5e-5);
    let last = rows(&dir.path().join("two/metrics.jsonl"));
    assert!(of_kind(&last, "step", "sft").iter().any(|step| step["source/few/loss"].as_f64().is_some()));
}
