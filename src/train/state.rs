//! What a checkpoint holds: weights, optimiser moments, the cursor, the evaluations so far. Randomness needs no
//! state: it is keyed by seed and step.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::best::{self, Choice, Evaluated};
use super::inputs::Inputs;
use crate::algo::entropy::EntropyControl;
use crate::data::difficulty::Difficulty;
use crate::disk;
use crate::dist::Share;
use crate::error::{Error, Result};
use crate::formats::hf::weights::{self, SaveOptions};
use crate::model::decoder::Decoder;
use crate::optim::adamw::AdamW;
use crate::run::{link_file, link_folder, replace_file};
use crate::trail;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Index into `config.stages`; past the last when all are done.
    pub stage: usize,
    /// Optimiser steps of that stage done: it keys data order and draws.
    pub step: u64,
    /// Optimiser steps of all stages done.
    pub total_steps: u64,
    /// Tokens trained on so far, a shared prompt counted once.
    #[serde(default)]
    pub num_tokens: u64,
    /// Seconds that the run has taken, all its resumes together.
    #[serde(default)]
    pub seconds: f64,
    /// Updates in the optimiser's moments; `None` between stages, where there is no optimiser.
    pub optimizer_updates: Option<u64>,
    /// `lora::base_digest` of the weights that a run with adapters started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Digests of what the run reads.
    #[serde(default, skip_serializing_if = "Inputs::is_empty")]
    pub inputs: Inputs,
    /// SHA-256 of the weights that a KL penalty holds the policy to, within a stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The coefficient of the entropy bonus, within a stage in which it adapts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyControl>,
    /// Running success rates, of a stage that orders its prompts by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difficulty: Option<Difficulty>,
    /// Which evaluation was the best so far.
    #[serde(default)]
    pub choice: Choice,
    /// The evaluation that is due after the last step is still to come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owes_evaluation: bool,
    /// Loss of the stage's first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_loss: Option<f64>,
    /// Evaluations for the final table.
    pub results: Vec<Evaluated>,
}

impl Cursor {
    pub fn enter_next_stage(&mut self) {
        self.stage += 1;
        self.step = 0;
        self.optimizer_updates = None;
        (self.difficulty, self.reference, self.entropy) = (None, None, None);
        self.owes_evaluation = false;
        self.first_loss = None;
        self.choice.enter_stage();
    }
}

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Writes `state`, as `AdamW::state` gives it, into `dir`, which the caller makes durable.
pub fn write_optimizer(dir: &Path, state: &HashMap<String, Tensor>) -> Result<()> {
    let path = dir.join(OPTIMIZER);
    trail::begin("write the optimiser state");
    candle_core::safetensors::save(state, &path)
        .map_err(|e| Error::io(&path, "write the optimiser state")(std::io::Error::other(e.to_string())))
}

/// Writes where the run stands into `dir`, which the caller makes durable.
pub fn write(dir: &Path, cursor: &Cursor) -> Result<()> {
    let json = serde_json::to_vec_pretty(cursor).map_err(|e| Error::Compute(e.into()))?;
    replace_file(&dir.join(STATE), &json)
}

/// The decoder's weights in HF layout: as they are, or with its adapter merged, one tensor at a time.
pub fn save_weights(dir: &Path, decoder: &Decoder) -> Result<()> {
    let options = SaveOptions::new(decoder.dtype());
    weights::save_with(dir, &decoder.config, options, |name| decoder.merged_weight(name)).map(|_| ())
}

/// Takes weights and optimiser from a checkpoint of the same step, whose files nobody writes to.
pub fn link(from: &Path, dir: &Path, with_optimizer: bool) -> Result<()> {
    for source in disk::entries(from)? {
        let name = source.file_name().unwrap_or_default();
        let is_optimizer = name == OPTIMIZER;
        let is_weight = name.to_string_lossy().contains(".safetensors") || name == "config.json";
        if source.is_dir() && name != best::FOLDER {
            link_folder(&source, &dir.join(name))?;
        } else if is_optimizer && with_optimizer || is_weight && !is_optimizer {
            link_file(&source, &dir.join(name))?;
        }
    }
    Ok(())
}

pub fn read_cursor(dir: &Path) -> Result<Cursor> {
    let path = dir.join(STATE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read the checkpoint"))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::input(
            path.display(),
            format!("is not a checkpoint state: {e}"),
            "Resume from another checkpoint",
        )
    })
}

/// The optimiser, or `share` of it, of a checkpoint written within a stage.
pub fn read_optimizer(dir: &Path, cursor: &Cursor, decoder: &Decoder, share: Share) -> Result<Option<AdamW>> {
    let Some(updates) = cursor.optimizer_updates else { return Ok(None) };
    let path = dir.join(OPTIMIZER);
    let broken = |problem: String| Error::input(path.display(), problem, "Resume from another checkpoint");
    let file = weights::TensorFile::open(&path)?;
    let find = |name: &str| file.get(name).unwrap_or_else(|| Err(broken(format!("has no tensor {name}"))));
    AdamW::restore_share(decoder, updates, find, share).map(Some)
}
