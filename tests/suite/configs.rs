//! Every shipped config loads, round-trips through its resolved form, and says no key that does nothing.

use rlvr::config::ablate::ABLATIONS;
use rlvr::config::stages::ScaleStd;
use rlvr::config::{Config, Loaded, Origin, PRESETS};

use crate::support::runs::{rlvr, stdout};

#[test]
fn every_shipped_config_loads_and_is_a_preset() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    files.sort();
    let ablations = ABLATIONS.iter().map(|(name, _)| *name);
    let mut shipped: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).chain(ablations).collect();
    shipped.sort_unstable();
    assert_eq!(files, shipped);
    for (name, _) in PRESETS {
        let config = Config::load(name, &[]).unwrap();
        let resolved = config.to_toml().unwrap();
        assert_eq!(Config::from_toml("resolved", &resolved, &[]).unwrap(), config, "{name}");
        rlvr::task::Task::load(&config.task).unwrap();
    }
}

#[test]
fn defaults_preset_file_and_set_come_in_that_order() {
    let text = "preset = \"demo\"\nseed = 7\n[grpo]\nsteps = 9\n[grpo.loss]\ntype = \"dapo\"";
    let config = Config::from_toml("test", text, &["grpo.steps=11".into(), "run.root=x y".into()]).unwrap();
    assert_eq!((config.seed, config.grpo.steps), (7, 11));
    assert_eq!(config.run.root, std::path::Path::new("x y"));
    assert_eq!(config.grpo.kl_coef, 0.2, "from the preset");
    assert_eq!(config.grpo.advantage_eps, 1e-6, "a default");
    assert_eq!(config.grpo.loss, rlvr::config::loss::LossConfig::Dapo(Default::default()));
}

/// Runs whose config does not know `grpo.scale_std` divided by the population's deviation, and go on so.
#[test]
fn a_run_of_before_keeps_its_deviation() {
    let dir = tempfile::tempdir().unwrap();
    let of_run = |scale: &str, known: &str| {
        let now = Config::load("demo", &[format!("grpo.scale_rewards={scale}")]).unwrap().to_toml().unwrap();
        let line = "scale_std = \"sample\"\n";
        assert_eq!(now.matches(line).count(), 1, "{now}");
        let path = dir.path().join("config.resolved.toml");
        std::fs::write(&path, now.replace(line, known)).unwrap();
        Config::of_run(&path).unwrap().grpo.scale_std
    };
    assert_eq!(of_run("group", ""), ScaleStd::Population);
    assert_eq!(of_run("batch", ""), ScaleStd::Population);
    assert_eq!(of_run("none", ""), ScaleStd::Sample, "nothing divides");
    assert_eq!(of_run("group", "scale_std = \"sample\"\n"), ScaleStd::Sample);
}

#[test]
fn an_unknown_key_is_named_with_its_path_and_the_known_ones() {
    let error = Config::load("demo", &["grpo.group_sise=4".into()]).unwrap_err().to_string();
    assert!(
        error.contains("grpo") && error.contains("group_sise") && error.contains("group_size"),
        "{error}"
    );
}

#[test]
fn enumeration_is_a_stage_and_the_key_of_before_says_so() {
    let stages = "stages=[\"sft\", \"enumerate\"]".to_string();
    let config = Config::load("demo", &[stages]).unwrap();
    assert_eq!((config.enumerate.steps, config.enumerate.kl_coef), (200, 0.2), "the preset has its keys");
    // Every run of before says this of its GRPO stage.
    Config::load("demo", &["grpo.estimator=sampled".into()]).unwrap();
    let error = Config::load("demo", &["grpo.estimator=enumerate".into()]).unwrap_err().to_string();
    assert!(
        error.contains("grpo.estimator") && error.contains("in stages") && error.contains("[enumerate]"),
        "{error}"
    );
    for (set, want) in [
        ("enumerate.steps=0", "enumerate.steps = 0"),
        ("enumerate.temperature=0", "enumerate.temperature = 0"),
        ("enumerate.scale_rewards=batch", "enumerate"),
        ("enumerate.group_size=4", "group_size"),
        ("enumerate.kl_coef=0 enumerate.reference_sync_steps=2", "enumerate.reference_sync_steps"),
    ] {
        let mut sets: Vec<String> = set.split(' ').map(String::from).collect();
        sets.push("stages=[\"enumerate\"]".into());
        let error = Config::load("demo", &sets).unwrap_err().to_string();
        assert!(error.contains(want), "{set}: {error}");
    }
}

fn read(text: &str, sets: &[&str]) -> Result<Loaded, String> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Loaded::from_toml("my.toml", text, &sets).map_err(|error| error.to_string())
}

#[test]
fn of_two_keys_that_exclude_each_other_the_one_on_top_counts_and_it_is_said() {
    let small = "preset = \"riskcue-smollm2-135m\"\n";
    let demo = "preset = \"demo\"\n";
    let files = ["data.train=a.jsonl", "data.valid=b.jsonl"];
    for (text, sets, want) in [
        (
            small,
            &["sft.epochs=0.01"][..],
            "--set sft.epochs=0.01 takes the place of sft.steps = 160 (preset riskcue-smollm2-135m:",
        ),
        (small, &["grpo.optim.warmup_ratio=0.5"], "takes the place of grpo.optim.warmup_steps = 2"),
        (small, &["enumerate.optim.warmup_ratio=0.5"], "takes the place of enumerate.optim.warmup_steps = 2"),
        (demo, &["sft.steps=7"], "--set sft.steps=7 takes the place of sft.epochs = 1.0"),
        (demo, &["sft.optim.warmup_steps=3"], "takes the place of sft.optim.warmup_ratio = 0.1"),
        (demo, &["model.path=x"], "--set model.path=x takes the place of [model.random]"),
        (demo, &files, "takes the place of [data.synthetic]"),
        (
            "preset = \"demo\"\n[sft]\nsteps = 7\n",
            &[],
            "sft.steps = 7 (my.toml:3) takes the place of sft.epochs",
        ),
    ] {
        let loaded = read(text, sets).unwrap();
        assert!(loaded.notes.iter().any(|note| note.contains(want)), "{sets:?}: {:?}", loaded.notes);
        let again = Config::from_toml("again", &loaded.config.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(again, loaded.config, "what is recorded is what was meant");
    }
    let loaded = read(small, &["sft.epochs=0.5"]).unwrap();
    assert_eq!((loaded.config.sft.steps, loaded.config.sft.epochs()), (0, 0.5));
    assert!(read(demo, &["sft.optim.warmup_steps=3"]).unwrap().config.sft.optim.warmup_ratio == 0.0);
}

#[test]
fn side_by_side_they_are_refused_with_both_places() {
    let data = "[model]\npath = \"m\"\n[data]\ntrain = \"a\"\nvalid = \"b\"\n";
    for (text, sets, wants) in [
        (
            "preset = \"demo\"\n[sft]\nsteps = 7\nepochs = 2.0\n".into(),
            &[][..],
            ["my.toml:3: sft.steps is given together with sft.epochs (my.toml:4)", "set it to 0"],
        ),
        (
            "preset = \"demo\"".into(),
            &["sft.steps=7", "sft.epochs=2"],
            ["--set sft.steps=7: ", "(--set sft.epochs=2)"],
        ),
        (
            format!("{data}[model.random]\nlayers = 2\n"),
            &[],
            ["model.path is given together with [model.random]", "Keep one"],
        ),
        (
            format!("{data}[data.synthetic]\nsft_rows = 2\n"),
            &[],
            ["data.train is given together with [data.synthetic]", "Keep one"],
        ),
        (
            format!("{data}[grpo]\nscale_rewards = \"none\"\nadvantage_eps = 1e-4"),
            &[],
            ["grpo.advantage_eps: has no effect", "Remove one"],
        ),
        (
            format!("{data}[grpo]\nscale_rewards = \"none\"\nscale_std = \"population\""),
            &[],
            ["grpo.scale_std: has no effect", "Remove one"],
        ),
        (
            format!("{data}[grpo]\nscale_rewards = \"none\"\ncombine_rewards = \"normalize_then_sum\""),
            &[],
            ["grpo.scale_rewards: has no effect", "Remove one"],
        ),
        (
            "preset = \"demo\"".into(),
            &["data.max_valid_rows=7"],
            ["data.max_valid_rows: has no effect on synthetic logs", "data.synthetic.valid_rows"],
        ),
    ] {
        let error = read(&text, sets).unwrap_err();
        assert!(wants.iter().all(|want| error.contains(want)), "{error}");
    }
    // 0 is "not given".
    assert_eq!(read("preset = \"demo\"", &["sft.steps=0", "sft.epochs=2"]).unwrap().config.sft.epochs(), 2.0);
}

#[test]
fn a_typed_key_of_a_stage_that_does_not_run_is_said_to_have_no_effect() {
    let sets = ["stages=[\"sft\"]", "grpo.steps=4", "eval.every_steps=3"];
    let notes = read("preset = \"demo\"\n[grpo]\ngroup_size = 4", &sets).unwrap().notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes.iter().all(|note| note.ends_with("has no effect: stages = [sft]")), "{notes:?}");
}

#[test]
fn a_run_of_before_that_wrote_down_both_goes_on_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.resolved.toml");
    let text = Config::load("riskcue-smollm2-135m", &[]).unwrap().to_toml().unwrap();
    let text = text.replace("[sft]\n", "[sft]\nepochs = 1.0\n");
    assert!(text.contains("epochs = 1.0") && text.contains("steps = 160"));
    std::fs::write(&file, text).unwrap();
    assert_eq!(Config::of_run(&file).unwrap().sft.steps, 160);
}

#[test]
fn every_value_knows_where_it_is_from() {
    let loaded =
        read("preset = \"demo\"\n\n[grpo]\nsteps = 9\nloss = { type = \"dapo\" }", &["seed=3"]).unwrap();
    let origin = |key: &str| loaded.origin_under(key).to_string();
    assert_eq!(origin("seed"), "--set");
    assert_eq!(origin("grpo.steps"), "my.toml:4");
    assert_eq!(origin("grpo.loss.type"), "my.toml:5");
    assert!(origin("grpo.kl_coef").starts_with("preset demo:"), "{}", origin("grpo.kl_coef"));
    assert_eq!(loaded.origin_under("grpo.baseline"), &Origin::Default);
    let wrong = read("preset = \"demo\"\n[grpo]\n\nsteps = 1.5", &[]).unwrap_err();
    assert!(wrong.starts_with("my.toml:4: grpo.steps: "), "{wrong}");
}

#[test]
fn a_dry_run_prints_every_key_and_a_config_that_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let set =
        ["device=cpu", "data.synthetic.sft_rows=200", "lora.rank=4", "grpo.loss.type=dapo", "run.name=x"];
    let mut args = vec!["train", "demo", "--dry-run"];
    set.iter().for_each(|set| args.extend(["--set", set]));
    let text = stdout(&args);
    let file = dir.path().join("again.toml");
    std::fs::write(&file, &text).unwrap();
    let sets: Vec<String> = set.iter().map(|set| set.to_string()).collect();
    let config = Config::load("demo", &sets).unwrap();
    assert_eq!(Config::load(file.to_str().unwrap(), &[]).unwrap(), config);
    let says = |want: &str| assert!(text.lines().any(|line| line.contains(want)), "{want}\n{text}");
    let resolved = rlvr::config::keys_of("resolved", &config.to_toml().unwrap()).unwrap();
    for key in rlvr::config::keys::all().filter(|key| key.path != "preset") {
        let name = key.path.rsplit('.').next().unwrap();
        let other_type = !key.types.is_empty() && !resolved.contains_key(&key.path);
        assert!(other_type || text.contains(&format!("{name} =")), "{} is not printed", key.path);
    }
    says("rank = 4                                     # --set; default 16");
    says("steps = 200                                  # preset demo:");
    says("# kl_estimator =                             # Default: `k3` in the loss");
    says("[enumerate]                                  # not asked for: stages = [sft, grpo]");
    says("# task      demo: 10 labels");
    says("# rows      the first 64 of each kind, kept: sft 64, grpo 64, valid 64");
    says("# memory    ");
    assert!(!std::path::Path::new("runs/x").exists());
}

#[test]
fn a_dry_run_refuses_what_a_run_would_in_the_same_words() {
    let root = tempfile::tempdir().unwrap();
    let root = format!("run.root={}", root.path().display());
    for set in ["model.path=/nope", "task=nope.toml", "task=mcip", "data.max_prompt_tokens=9", "run.name=a b"]
    {
        let words =
            ["train", "demo", "--set", "device=cpu", "--set", &root, "--set", "grpo.steps=1", "--set", set];
        let said = |more: &[&str]| {
            let output = rlvr(&[&words[..], more].concat());
            assert_eq!(output.status.code(), Some(2), "{set}");
            String::from_utf8(output.stderr).unwrap().lines().last().unwrap_or_default().to_string()
        };
        let (dry, wet) = (said(&["--dry-run"]), said(&[]));
        assert_eq!(dry, wet, "{set}");
        assert!(dry.starts_with("error: "), "{dry}");
    }
}
