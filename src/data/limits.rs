//! What is kept of a file, and why a row is dropped.

use crate::types::Prompt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// SFT: a row without a target is an error.
    Required,
    /// GRPO and evaluation.
    Ignored,
    /// What is summed over every answer of the set: a row whose answers cannot be written is an error.
    Answers,
}

/// What is kept of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens, generation prompt included.
    pub max_prompt_tokens: usize,
    /// Tokens, end token included.
    pub max_target_tokens: usize,
    /// The first rows that are not too long; 0 keeps all. Lines after the last kept row are not read.
    pub max_rows: usize,
    pub targets: Targets,
}

/// Why a row is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLong {
    Prompt,
    Target,
}

impl TooLong {
    pub fn of(limits: &Limits, prompt: &Prompt, target: Option<&[u32]>) -> Option<Self> {
        if prompt.token_ids.len() > limits.max_prompt_tokens {
            Some(Self::Prompt)
        } else if target.is_some_and(|ids| ids.len() > limits.max_target_tokens) {
            Some(Self::Target)
        } else {
            None
        }
    }

    pub fn explain(self, limits: &Limits) -> String {
        match self {
            Self::Prompt => format!("prompt longer than max_prompt_tokens = {}", limits.max_prompt_tokens),
            Self::Target => format!("target longer than max_target_tokens = {}", limits.max_target_tokens),
        }
    }
}
