//! The real model: SmolLM2-135M-Instruct, imported from its GGUF, against transformers' numbers.

use std::path::{Path, PathBuf};

use rlvr::formats::hf::load_decoder;
use rlvr::model::decoder::{Decoder, Placement};
use rlvr::model::keep::Keep;
use rlvr::rollout::engine::{Completions, Draws, Engine, Request};
use rlvr::task::Task;
use rlvr::text::{EncoderFiles, PromptEncoder, StopTokens};
use rlvr::types::{Message, PackedBatch};

use serde_json::Value;

use crate::support::golden::golden_dir;
use crate::support::parity_fixture::smollm2_dir;

fn ids(case: &Value, key: &str) -> Vec<u32> {
    serde_json::from_value(case[key].clone()).unwrap()
}

/// The prompt's ids and the sum of its log-probs are those that transformers gave.
fn assert_golden(decoder: &Decoder, prompt: &[u32], case: &Value) {
    assert_eq!(prompt.len() as u64, case["n_tokens"].as_u64().unwrap());
    assert!(prompt.starts_with(&ids(case, "first_ids")) && prompt.ends_with(&ids(case, "last_ids")));
    let mut batch = PackedBatch::default();
    batch.push_sequence(&prompt[..1], &prompt[1..]);
    let forward = decoder.forward(&batch, Keep::Nothing).unwrap();
    let sum: f64 = decoder.logprobs(&forward, 1.0).unwrap().logprobs.iter().map(|l| f64::from(*l)).sum();
    let want = case["sum_logp"].as_f64().unwrap();
    println!("sum of log-probs {sum:.4}, transformers {want:.4}");
    assert!((sum - want).abs() < 1e-3 * want.abs(), "{sum} {want}");
}

#[test]
fn golden_smollm2_chat_token_ids_logprobs_and_greedy_continuation() {
    let Some(model) = smollm2_dir() else { return };
    let path = golden_dir().join("smollm2-135m.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let case = &golden["cases"][0];
    let encoder = PromptEncoder::load(&EncoderFiles::of(model)).unwrap();
    let question = "List two signs in a system log that a backup job was tampered with.";
    let prompt = encoder.encode_prompt(&vec![Message::new("user", question)].into()).unwrap();

    let decoder = load_decoder(model, 256, &Placement::CPU).unwrap();
    assert_golden(&decoder, &prompt.token_ids, case);

    let stop = StopTokens::new(Vec::new());
    let engine = Engine::new(&decoder, &stop, Completions::greedy(24), 4096);
    let groups = engine.generate(&[Request { prompt: &prompt, sample_id: 0 }], Draws::NONE).unwrap().groups;
    assert_eq!(groups[0].rollouts[0].token_ids, ids(case, "greedy24"));
}

/// The golden ids of this case were made without the splitting of digits that SmolLM2's tokenizer asks for.
#[test]
fn golden_smollm2_logprob_of_a_long_conversation() {
    let Some(model) = smollm2_dir() else { return };
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/riskcue");
    let rows = std::env::var_os("RLVR_RISKCUE_DIR").map_or_else(beside, PathBuf::from).join("valid.jsonl");
    let Ok(rows) = std::fs::read_to_string(&rows) else {
        println!(
            "not checked: RiskCue names no licence, so its rows are not here; RLVR_RISKCUE_DIR says where"
        );
        return;
    };
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let golden = json(&golden_dir().join("smollm2-135m.json"));
    let case = &golden["cases"][1];

    let whole_digits = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap();
        match name.to_str() {
            Some("tokenizer.json") => {
                let mut tokenizer = json(&entry);
                let steps = tokenizer["pre_tokenizer"]["pretokenizers"].as_array_mut().unwrap();
                steps.retain(|step| step["type"] != "Digits");
                std::fs::write(whole_digits.path().join(name), tokenizer.to_string()).unwrap();
            }
            Some(text) if text.ends_with("json") => {
                std::fs::copy(&entry, whole_digits.path().join(name)).unwrap();
            }
            _ => {}
        }
    }
    let encoder = PromptEncoder::load(&EncoderFiles::of(whole_digits.path())).unwrap();
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let conversation = Task::load("riskcue").unwrap().conversation(&row, Path::new("rows"), 1).unwrap();
    let prompt = encoder.encode_prompt(&conversation).unwrap().token_ids;

    let decoder = load_decoder(model, prompt.len(), &Placement::CPU).unwrap();
    assert_golden(&decoder, &prompt, case);
}
