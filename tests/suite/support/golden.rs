//! Where the golden files are: what reference implementations compute, made once (tests/golden/README.md).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rlvr::formats::hf::{config_json, weights};
use rlvr::model::decoder::Decoder;
use rlvr::types::PackedBatch;

use super::tensors::{floats, integers};

/// `tests/golden`, or the folder that `RLVR_GOLDEN_DIR` names.
///
/// # Panics
/// Where `RLVR_GOLDEN_DIR` names no folder.
pub fn golden_dir() -> PathBuf {
    choose(std::env::var_os("RLVR_GOLDEN_DIR").map(PathBuf::from))
}

fn choose(named: Option<PathBuf>) -> PathBuf {
    let Some(folder) = named else { return Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden") };
    assert!(
        folder.is_dir(),
        "RLVR_GOLDEN_DIR = {}: no such folder. Unset it to use tests/golden",
        folder.display()
    );
    folder
}

/// A model of the golden set, and what transformers or PEFT compute with it.
pub struct Golden {
    pub tensors: HashMap<String, Tensor>,
    pub decoder: Decoder,
}

impl Golden {
    pub fn load(dir: &Path) -> Self {
        Self { tensors: expected(dir), decoder: decoder(dir) }
    }
}

/// The group as one packed batch, and its advantages.
pub fn group(golden: &Golden) -> (PackedBatch, Vec<f32>) {
    let prompt = integers(&golden.tensors["prompt"]);
    let flat = integers(&golden.tensors["completions"]);
    let mut rest = &flat[..];
    let mut completions = Vec::new();
    for len in integers(&golden.tensors["completion_lengths"]) {
        let (head, tail) = rest.split_at(len as usize);
        completions.push(head);
        rest = tail;
    }
    let mut batch = PackedBatch::default();
    batch.push_group(&prompt, completions.into_iter());
    (batch, floats(&golden.tensors["advantages"]))
}

/// A golden folder's weights, in f32 on the CPU.
pub fn decoder(dir: &Path) -> Decoder {
    let config = config_json::load(dir).unwrap();
    let tensors = weights::load(dir, &config, &Device::Cpu, DType::F32).unwrap();
    Decoder::new(config, tensors, 256).unwrap()
}

/// A golden folder's expected values.
pub fn expected(dir: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap()
}

#[test]
fn the_projects_own_files_are_used_and_another_folder_where_it_is_named() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(choose(None).join("losses.json").is_file());
    assert_eq!(choose(Some(here.into())), here);
}

#[test]
#[should_panic(expected = "no such folder")]
fn a_named_folder_that_is_missing_fails() {
    choose(Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("no-such-folder")));
}
