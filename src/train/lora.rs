//! A run that trains adapters: made, carried from stage to stage, kept in checkpoints, given away.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::materials::Materials;
use super::place::merged_bound;
use crate::config::Config;
use crate::config::lora::{LoraConfig, LoraStages};
use crate::disk::named_when_done;
use crate::error::{Error, Result};
use crate::formats::hf::load_decoder;
use crate::formats::peft;
use crate::model::adapter::{Adapter, Shape};
use crate::model::decoder::Decoder;
use crate::run::RunDirectory;

/// What a run knows of its adapters besides the one that the decoder carries.
pub struct Adapters<'a> {
    config: &'a LoraConfig,
    seed: u64,
    /// Those of the stages before, merged into the weights in this order.
    merged: Vec<Adapter>,
}

impl<'a> Adapters<'a> {
    /// Puts the first stage's adapter beside the weights; `None` where all weights are trained.
    pub fn start(config: &'a Config, decoder: &mut Decoder) -> Result<Option<Self>> {
        let Some(lora) = &config.lora else { return Ok(None) };
        let adapters = Self { config: lora, seed: config.seed, merged: Vec::new() };
        adapters.attach_fresh(decoder, 0)?;
        Ok(Some(adapters))
    }

    /// The adapters of a checkpoint, beside and within the weights that the run started from.
    pub fn resume(config: &'a Config, decoder: &mut Decoder, checkpoint: &Path) -> Result<Option<Self>> {
        let Some(lora) = &config.lora else { return Ok(None) };
        let mut merged = Vec::new();
        loop {
            let dir = merged_dir(checkpoint, merged.len());
            if !dir.is_dir() {
                break;
            }
            peft::attach(&dir, decoder)?;
            merged.extend(decoder.adapter());
            decoder.merge()?;
        }
        peft::attach(&checkpoint.join(ADAPTER), decoder)?;
        Ok(Some(Self { config: lora, seed: config.seed, merged }))
    }

    /// A line on what is trained.
    pub fn describe(&self, decoder: &Decoder) -> String {
        let trained: usize = decoder.trainable().map(|(_, tensor)| tensor.elem_count()).sum();
        let frozen = decoder.config.parameter_count();
        let (rank, layers) = (self.config.rank, self.config.targets.names().join(", "));
        format!("lora: {trained} numbers are trained beside {frozen} frozen ones (rank {rank}; {layers})")
    }

    fn attach_fresh(&self, decoder: &mut Decoder, stage: usize) -> Result<()> {
        let shape = Shape::from(self.config);
        let device = decoder.device().clone();
        let fresh = Adapter::fresh(shape, &decoder.config, &device, self.seed, stage as u32)?;
        decoder.attach(fresh)
    }

    /// Before the first step of a stage.
    pub fn enter(&mut self, decoder: &mut Decoder, stage: usize) -> Result<()> {
        if self.is_fresh(stage) && stage > 0 {
            self.merged.extend(decoder.adapter());
            decoder.merge()?;
            self.attach_fresh(decoder, stage)?;
        }
        Ok(())
    }

    /// Whether the stage starts with an adapter that changes nothing yet.
    fn is_fresh(&self, stage: usize) -> bool {
        stage == 0 || self.config.stages == LoraStages::Fresh
    }

    /// The weights as they are after `step` steps of a stage, to hold a KL penalty towards: they share the decoder's
    /// memory, and stand there without the adapter where that changes nothing yet, else with a copy of it. The copy
    /// is kept in `dir`, where one is given, for a run that is resumed.
    pub fn keep_reference(
        &self,
        decoder: &Decoder,
        stage: usize,
        step: u64,
        dir: Option<&PathBuf>,
    ) -> Result<Decoder> {
        let mut reference = decoder.without_adapter();
        if step > 0 || !self.is_fresh(stage) {
            let adapter = decoder.adapter().ok_or_else(no_adapter)?;
            dir.map_or(Ok(()), |dir| peft::save(dir, &adapter, ""))?;
            reference.attach(adapter.deep_copy()?)?;
        }
        Ok(reference)
    }

    /// What [`Self::keep_reference`] gave after `step` steps.
    pub fn load_reference(&self, decoder: &Decoder, stage: usize, step: u64, dir: &Path) -> Result<Decoder> {
        let mut reference = decoder.without_adapter();
        if step > 0 || !self.is_fresh(stage) {
            peft::attach(dir, &mut reference)?;
        }
        Ok(reference)
    }

    /// Those that were merged, and the one that the decoder carries.
    pub fn all(&self, decoder: &Decoder) -> Result<(&[Adapter], Adapter)> {
        Ok((&self.merged, decoder.adapter().ok_or_else(no_adapter)?))
    }

    /// All adapters of the run as one, beside the weights that it started from.
    fn whole(&self, decoder: &Decoder) -> Result<Adapter> {
        let last = decoder.adapter().ok_or_else(no_adapter)?;
        let mut all = self.merged.iter().chain([&last]);
        let first = all.next().ok_or_else(no_adapter)?.clone();
        all.try_fold(first, |sum, next| sum.and(next))
    }

    /// The run's adapter in PEFT layout into `dir`, unchecked.
    pub fn write_whole(
        &self,
        config: &Config,
        decoder: &Decoder,
        run: &RunDirectory,
        dir: &Path,
    ) -> Result<()> {
        peft::save(dir, &self.whole(decoder)?, &base_dir(config, run).display().to_string())
    }

    /// Writes the run's adapter in PEFT layout as `target`, loads it back and compares log-probs before it gets its name; and the
    /// weights it stands beside, where they were made from the seed and lie in no folder yet.
    pub fn save(
        &self,
        config: &Config,
        materials: &Materials,
        decoder: &Decoder,
        run: &RunDirectory,
        target: &Path,
    ) -> Result<()> {
        let mut base = self.base(config, decoder)?;
        if config.model.path.is_none() {
            named_when_done(&base_dir(config, run), |aside| materials.write_model(&base, aside))?;
        }
        named_when_done(target, |aside| {
            self.write_whole(config, decoder, run, aside)?;
            peft::attach(aside, &mut base)?;
            materials.compare(decoder, &base, merged_bound(decoder), target)
        })
    }

    /// The weights the run started from: the decoder's own, or made again where adapters were merged into them.
    pub fn base(&self, config: &Config, decoder: &Decoder) -> Result<Decoder> {
        let positions = config.model.max_positions;
        match &config.model.path {
            _ if self.merged.is_empty() => Ok(decoder.without_adapter()),
            Some(dir) => load_decoder(dir, positions, &decoder.place()),
            None => Decoder::random_on(&decoder.place(), decoder.config.clone(), config.seed, positions),
        }
    }
}

/// [`Adapters::all`] into a checkpoint.
pub fn write(dir: &Path, merged: &[Adapter], last: &Adapter) -> Result<()> {
    for (i, adapter) in merged.iter().enumerate() {
        peft::save(&merged_dir(dir, i), adapter, "")?;
    }
    peft::save(&dir.join(ADAPTER), last, "")
}

const ADAPTER: &str = "adapter";

/// The weights that a run's adapter stands beside: the model's folder, or one made for those of a seed.
fn base_dir(config: &Config, run: &RunDirectory) -> PathBuf {
    config.model.path.clone().unwrap_or_else(|| run.path().join("base"))
}

fn merged_dir(checkpoint: &Path, number: usize) -> PathBuf {
    checkpoint.join(format!("merged-{number}"))
}

fn no_adapter() -> Error {
    Error::Compute("the decoder has lost its adapter".into())
}

/// SHA-256 over a model's numbers and, of every tensor, its name, its shape and three of its rows: what a
/// checkpoint that holds an adapter only knows of the weights it was trained beside.
pub fn base_digest(decoder: &Decoder) -> Result<String> {
    let mut hash = Sha256::new();
    let config = &decoder.config;
    config.rope_inverse_frequencies().iter().for_each(|f| hash.update(f.to_le_bytes()));
    hash.update(config.rms_norm_eps.to_le_bytes());
    for (name, weight) in decoder.parameters() {
        hash.update(format!("{name} {:?} {:?}", weight.dims(), weight.dtype()));
        let rows = if weight.rank() == 1 { weight.reshape((1, ()))? } else { weight.clone() };
        let count = rows.dim(0)?;
        for row in [0, count / 2, count - 1] {
            let values = row_values(&rows.narrow(0, row, 1)?)?;
            values.iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn row_values(row: &Tensor) -> Result<Vec<f32>> {
    let row = row.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(row.flatten_all()?.to_vec1::<f32>()?)
}

/// Refuses to go on beside other weights than those of [`base_digest`] `then`.
pub fn check_base(config: &Config, decoder: &Decoder, then: Option<&str>) -> Result<()> {
    if then == Some(base_digest(decoder)?.as_str()) {
        return Ok(());
    }
    let place = config.model.path.as_ref().map_or("model.random".into(), |dir| dir.display().to_string());
    let problem = "holds other weights than when the run was started, and the checkpoint has only the adapter \
                   that was trained beside those";
    Err(Error::input(place, problem, "Put the old model folder back, or start a new run"))
}
