use super::*;
use crate::formats::hf::config_json;
use serde_json::{Value, json};

const GIB: f64 = (1u64 << 30) as f64;

fn model(sizes: Value) -> ModelConfig {
    let mut json = json!({"model_type": "llama", "max_position_embeddings": 8192});
    json.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    config_json::from_json(&json, "shape").unwrap()
}

fn smollm2() -> ModelConfig {
    model(
        json!({"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true}),
    )
}

fn llama_8b() -> ModelConfig {
    model(json!({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}))
}

fn config(settings: &[&str]) -> Config {
    let mut all = vec!["stages=[\"grpo\"]".to_string()];
    all.extend(settings.iter().map(|setting| setting.to_string()));
    Config::load("riskcue-llama3.1-8b", &all).unwrap()
}

fn update_gib(model: &ModelConfig, config: &Config, target: Target) -> f64 {
    let plan = Plan::new(model, config, target);
    let phase = plan.phases.iter().find(|phase| phase.name == "grpo update").unwrap();
    phase.bytes() as f64 / GIB
}

/// README.md and benches/results/cpu.md: peak resident memory of `rlvr bench step`, 1,024 + 48 tokens.
#[test]
fn the_peak_is_what_was_measured_on_the_cpu() {
    let cpu = Target { cuda: false, dtype: DType::F32, answers: 0 };
    for (activations, group, measured) in
        [("keep", 8, 3.09), ("recompute", 8, 2.19), ("keep", 16, 3.37), ("recompute", 16, 2.25)]
    {
        let config = config(&[
            "data.max_prompt_tokens=1024",
            "grpo.max_completion_tokens=48",
            "grpo.prompts_per_step=1",
            "grpo.optim.moments=f32",
            "grpo.optim.gradients=f32",
            &format!("grpo.group_size={group}"),
            &format!("pack.activations=\"{activations}\""),
        ]);
        let planned = update_gib(&smollm2(), &config, cpu);
        let ratio = planned / measured;
        assert!((0.97..1.1).contains(&ratio), "{activations} {group}: {planned:.2} for {measured}");
    }
}

/// Against sums made by hand, for 32 prompts of 1,500 tokens with 8 answers of 40.
#[test]
fn the_peak_of_an_8b_model_is_that_of_the_table() {
    let cuda = Target { cuda: true, dtype: DType::BF16, answers: 0 };
    for (moments, weights, gradients, peak) in [
        ("f32", "masters", "f32", 138.7),
        ("f32", "stochastic_rounding", "f32", 108.8),
        ("int8", "masters", "bf16", 79.1),
        ("int8", "stochastic_rounding", "bf16", 49.1),
    ] {
        let config = config(&[
            "data.max_prompt_tokens=1500",
            "grpo.max_completion_tokens=40",
            "pack.max_reused_tokens=0",
            &format!("grpo.optim.moments=\"{moments}\""),
            &format!("grpo.optim.bf16_weights=\"{weights}\""),
            &format!("grpo.optim.gradients=\"{gradients}\""),
        ]);
        let planned = update_gib(&llama_8b(), &config, cuda);
        assert!((planned - peak).abs() < 0.6, "{moments} {weights} {gradients}: {planned:.2} for {peak}");
    }
    let with_kl = config(&["grpo.kl_coef=0.1"]);
    let more = update_gib(&llama_8b(), &with_kl, cuda) - update_gib(&llama_8b(), &config(&[]), cuda);
    assert!((more - 14.96).abs() < 0.01, "{more}");
}

/// The preset as it is shipped, on the card that people rent.
#[test]
fn the_shipped_8b_preset_fits_a_card_of_80_gb() {
    let cuda = Target { cuda: true, dtype: DType::BF16, answers: 0 };
    let preset = Config::load("riskcue-llama3.1-8b", &[]).unwrap();
    let peak = Plan::new(&llama_8b(), &preset, cuda).peak() as f64 / GIB;
    assert!((48.0..56.0).contains(&peak), "{peak:.1} GiB");
}

#[test]
fn advice_brings_the_peak_down_step_by_step_until_it_fits() {
    let cuda = Target { cuda: true, dtype: DType::BF16, answers: 0 };
    let config = config(&["pack.activations=\"keep\""]);
    let all = Plan::new(&llama_8b(), &config, cuda).peak();
    let budget = 60 * (1 << 30);
    let changes = advise(&llama_8b(), &config, cuda, budget);
    let peaks: Vec<u64> = std::iter::once(all).chain(changes.iter().map(|change| change.peak)).collect();
    assert!(peaks.windows(2).all(|pair| pair[1] < pair[0]), "{peaks:?}");
    assert!(changes.last().unwrap().peak <= budget && peaks[peaks.len() - 2] > budget, "{changes:?}");
    // What it says is true of a config that is loaded with it.
    let settings = changes.iter().flat_map(|change| change.setting.split(' '));
    let settings: Vec<&str> = std::iter::once("pack.activations=\"keep\"").chain(settings).collect();
    assert_eq!(Plan::new(&llama_8b(), &self::config(&settings), cuda).peak(), changes.last().unwrap().peak);
    assert!(advise(&llama_8b(), &config, cuda, all).is_empty());
    assert!(advise(&llama_8b(), &config, cuda, 1 << 30).last().unwrap().peak > 1 << 30);
}
