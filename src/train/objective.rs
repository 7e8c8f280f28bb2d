//! What a stage does in a step: the signature that SFT, GRPO and enumeration share.

use super::learner::Learner;
use super::lora::Adapters;
use super::materials::Materials;
use crate::algo::entropy::EntropyControl;
use crate::config::Config;
use crate::config::optim::OptimConfig;
use crate::data::difficulty::Difficulty;
use crate::dist::Ranks;
use crate::error::Result;
use crate::observe::{Metrics, Sinks};
use crate::run::RunDirectory;

/// What a stage works with.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub config: &'a Config,
    pub run: &'a RunDirectory,
    pub materials: &'a Materials,
    /// `None`: all weights are trained.
    pub adapters: Option<&'a Adapters<'a>>,
    pub ranks: &'a Ranks,
    /// Index of the stage in `config.stages`.
    pub stage: usize,
    /// Its steps that were made before.
    pub done: u64,
    /// Steps of the stages before it.
    pub before: u64,
    /// What [`Objective::reference`] was at the checkpoint that it goes on from.
    pub reference: Option<&'a str>,
    /// Likewise of [`Objective::entropy`].
    pub entropy: Option<EntropyControl>,
}

/// One optimiser step of a stage.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Counted from 0 within the stage.
    pub step: u64,
    pub learning_rate: f64,
}

pub trait Objective {
    /// Optimiser steps of the whole stage.
    fn steps(&self) -> u64;

    fn optim(&self) -> &OptimConfig;

    /// Makes one step: adds gradients, spends them, and says what there is to say of it.
    fn step(&mut self, learner: &mut Learner, at: At, sinks: &mut Sinks) -> Result<Metrics>;

    /// Whether the stage is evaluated between its steps as well, every `eval.every_steps`.
    fn is_evaluated_within(&self) -> bool {
        true
    }

    /// SHA-256 of the weights that its KL penalty holds the policy to.
    fn reference(&self) -> Option<&str> {
        None
    }

    /// Where a coefficient that adapts stands.
    fn entropy(&self) -> Option<EntropyControl> {
        None
    }

    /// What of its state a checkpoint has to keep.
    fn difficulty(&self) -> Option<&Difficulty> {
        None
    }
}
