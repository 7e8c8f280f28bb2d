//! Every shipped config loads, round-trips through its resolved form, and says no key that does nothing.

use rlvr::config::ablate::ABLATIONS;
use rlvr::config::{Config, PRESETS};

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
