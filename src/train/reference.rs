//! The frozen weights that a KL penalty holds the policy to: kept on disk, so that a resumed run has the same.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::full_disk::patiently;
use super::objective::Surroundings;
use super::state;
use crate::algo::kl::kl;
use crate::config::loss::KlEstimator;
use crate::disk;
use crate::error::{Error, Result};
use crate::formats::hf::load_decoder;
use crate::model::decoder::Decoder;
use crate::model::keep::Keep;
use crate::observe::Sinks;
use crate::pack::runs;
use crate::run::{Checkpoint, hex, sha256};
use crate::types::{Group, PackedBatch};

/// The weights at the start of the stage, or after the last step that the reference was synced at.
pub struct Reference<'a> {
    weights: Decoder,
    /// Of its files, where it has some.
    digest: Option<String>,
    around: Surroundings<'a>,
    sync_steps: Option<u64>,
}

impl<'a> Reference<'a> {
    /// For a stage that starts, or that goes on after `around.done` steps.
    pub fn open(
        around: Surroundings<'a>,
        policy: &Decoder,
        sync_steps: Option<usize>,
        sinks: &mut Sinks,
    ) -> Result<Self> {
        let sync_steps = sync_steps.map(|n| n as u64);
        let (weights, digest) = match around.done {
            0 => patiently(sinks, || keep(&around, 0, policy))?,
            done => {
                let of = sync_steps.map_or(0, |n| done - done % n);
                let dir = dir(&around, of);
                let digest = digest(&dir)?;
                if around.reference.is_some() && around.reference != digest.as_deref() {
                    let problem =
                        "holds other weights than when the checkpoint was written: its SHA-256 differs";
                    let fix = "Put the folder back, or start a new run: the KL penalty would pull elsewhere";
                    return Err(Error::input(dir.display(), problem, fix));
                }
                let weights = match around.adapters {
                    Some(adapters) => adapters.load_reference(policy, around.stage, of, &dir)?,
                    None => load_decoder(&dir, around.config.model.max_positions, &policy.place())?,
                };
                (weights, digest)
            }
        };
        Ok(Self { weights, digest, around, sync_steps })
    }

    /// Follows the policy where a sync is due after `step` steps of the stage.
    pub fn after_step(&mut self, step: u64, policy: &Decoder, sinks: &mut Sinks) -> Result<()> {
        let Some(every) = self.sync_steps.filter(|n| step.is_multiple_of(*n)) else { return Ok(()) };
        (self.weights, self.digest) = patiently(sinks, || keep(&self.around, step, policy))?;
        if !self.around.ranks.is_first() {
            return Ok(());
        }
        // A resume reads the reference of its checkpoint; that of this step is not written yet.
        let checkpoints = Checkpoint::steps(self.around.run)?;
        let of_stage = checkpoints.into_iter().filter_map(|all| all.checked_sub(self.around.before));
        let oldest = of_stage.filter(|steps| *steps > 0).min().unwrap_or(step);
        let mut old = oldest - oldest % every;
        while old > every {
            old -= every;
            let dir = dir(&self.around, old);
            if !dir.exists() {
                break;
            }
            std::fs::remove_dir_all(&dir).map_err(Error::io(&dir, "remove an old reference"))?;
        }
        Ok(())
    }

    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    pub fn weights(&self) -> &Decoder {
        &self.weights
    }

    /// The distance of each completion, summed over its tokens, by group, for rewards; the policy's log-probs are the
    /// sampler's.
    pub fn distances(
        &self,
        groups: &[Group],
        estimator: KlEstimator,
        temperature: f32,
    ) -> Result<Vec<Vec<f64>>> {
        let sizes: Vec<usize> = groups.iter().map(Group::packed_tokens).collect();
        let (owners, rank) = (self.around.ranks.owners(&sizes), self.around.ranks.rank());
        let mine: Vec<usize> = (0..groups.len()).filter(|group| owners[*group] == rank).collect();
        let mut all = Vec::with_capacity(mine.len());
        for run in runs(mine.iter().map(|group| sizes[*group]), self.around.config.pack.max_tokens_per_pack) {
            let mut batch = PackedBatch::default();
            mine[run.clone()].iter().for_each(|group| batch.push(&groups[*group]));
            let logps = logps(&self.weights, &batch, temperature)?;
            let mut rest = logps.as_slice();
            for group in mine[run].iter().map(|group| &groups[*group]) {
                let of_completion = |logprobs: &Vec<f32>| {
                    let (reference, after) = rest.split_at(logprobs.len());
                    rest = after;
                    let pairs = logprobs.iter().zip(reference);
                    pairs.map(|(l, r)| kl(estimator, f64::from(*l), *r).value).sum()
                };
                all.push(group.rollouts.iter().map(|r| &r.logprobs).map(of_completion).collect());
            }
        }
        let by_rank: Vec<Vec<Vec<f64>>> = self.around.ranks.gather(all)?;
        let mut left: Vec<_> = by_rank.into_iter().map(Vec::into_iter).collect();
        let next = |owner: &usize| left.get_mut(*owner).and_then(Iterator::next).unwrap_or_default();
        Ok(owners.iter().map(next).collect())
    }
}

/// Log-probs of the batch's targets under frozen weights, nats.
pub fn logps(weights: &Decoder, batch: &PackedBatch, temperature: f32) -> Result<Vec<f64>> {
    let forward = weights.forward(batch, Keep::Nothing)?;
    let logps = weights.logprobs(&forward, temperature)?.logprobs;
    Ok(logps.into_iter().map(f64::from).collect())
}

/// The policy as it is after `step` steps of the stage, in memory of its own and on disk.
fn keep(around: &Surroundings, step: u64, policy: &Decoder) -> Result<(Decoder, Option<String>)> {
    let dir = dir(around, step);
    let first = around.ranks.is_first();
    let weights = match around.adapters {
        Some(adapters) => adapters.keep_reference(policy, around.stage, step, first.then_some(&dir))?,
        None if !first => policy.deep_copy()?,
        None => {
            std::fs::create_dir_all(&dir)
                .map_err(Error::io(&dir, "create the folder of reference weights"))?;
            state::save_weights(&dir, policy)?;
            policy.deep_copy()?
        }
    };
    let digest = if first { digest(&dir)? } else { None };
    Ok((weights, digest))
}

/// Over the weights' files in a folder, by name; `None` where there are none, as of an adapter that changes nothing.
fn digest(dir: &Path) -> Result<Option<String>> {
    let there = dir.try_exists().map_err(Error::io(dir, "read the reference weights"))?;
    let mut files = if there { disk::entries(dir)? } else { Vec::new() };
    files.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    let mut hash = Sha256::new();
    for path in &files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(sha256(path)?);
    }
    Ok((!files.is_empty()).then(|| hex(&hash.finalize())))
}

/// The folder of the reference that counts from `step` on.
fn dir(around: &Surroundings, step: u64) -> PathBuf {
    let root: &Path = around.run.path();
    match step {
        0 => root.join("reference"),
        step => root.join("reference").join(format!("step-{step}")),
    }
}
