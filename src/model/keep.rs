//! How much a pass keeps for the backward pass.

use crate::config::ActivationMemory;

/// What a forward pass keeps for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Final hidden states only: reference log-probs, evaluation.
    Nothing,
    /// Block inputs; each block is computed again in the backward pass. Peak memory is one block's
    /// activations plus T x hidden x layers.
    Inputs,
    /// Every activation the backward pass reads: 4/3 the speed of `Inputs` at many times the memory.
    Activations,
}

impl From<ActivationMemory> for Keep {
    fn from(memory: ActivationMemory) -> Self {
        match memory {
            ActivationMemory::Auto | ActivationMemory::Recompute => Self::Inputs,
            ActivationMemory::Keep => Self::Activations,
        }
    }
}
