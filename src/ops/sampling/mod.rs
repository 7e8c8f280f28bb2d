//! From logits to tokens: temperature, top-k, top-p and min-p, by inverse transform of one uniform a draw.
//!
//! Each cut keeps the most probable tokens, so all of them together keep the shortest of their runs: top-k first,
//! then the smallest run of what is left that reaches `top_p` of its probability, then what has at least `min_p`
//! times the largest probability (Nguyen et al., arXiv:2407.01082). Equal logits are kept in vocabulary order, -0
//! after 0.
//! The vocabulary is never sorted, and without a cut no list of it is made.

mod cpu;
mod cuda;

use candle_core::Tensor;

pub(super) use self::cpu::apply_cut;
pub use self::cpu::sample_row;
use crate::error::{Error, Result};
use crate::ops::fault::fault;
use crate::trail;

/// How a token is drawn from a row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens with this much probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Log-probs are those of what the cuts leave, not of the whole distribution. CPU only.
    pub replay_truncation: bool,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, replay_truncation: false }
    }
}

/// A sampled token and its log-probability, nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Under the whole distribution at the sampling temperature (at 1 when greedy), or with `replay_truncation` under
    /// what the cuts leave of it: what the trainer computes.
    pub logprob: f32,
}

/// Draws from every row of `logits_rv: [R, V]`, f32 (on a CUDA device also bf16). `uniforms`, each in [0, 1), are
/// R D in number, and the i-th draws from row i / D: one result a uniform. Temperature 0 takes the largest
/// logit, the first of equals.
///
/// A row that holds a NaN, or whose largest logit is infinite, gives token 0 with a NaN for its log-prob.
///
/// # Errors
/// When the uniforms are no multiple of the rows, or the vocabulary is empty.
pub fn sample(logits_rv: &Tensor, sampling: &Sampling, uniforms: &[f32]) -> Result<Vec<Sampled>> {
    trail::begin("sampling");
    let (rows, vocab) = logits_rv.dims2()?;
    if vocab == 0 || rows == 0 || !uniforms.len().is_multiple_of(rows) {
        let problem = format!("sampling: {} uniforms for logits of {rows} x {vocab}", uniforms.len());
        return if uniforms.is_empty() { Ok(Vec::new()) } else { Err(fault(problem)) };
    }
    if !logits_rv.device().is_cuda() {
        return cpu::sample(logits_rv, sampling, uniforms);
    }
    if sampling.replay_truncation {
        let fix = "Remove it, or set device = \"cpu\"";
        return Err(Error::input("sampling.replay_truncation", "is not there yet on a CUDA device", fix));
    }
    cuda::sample(logits_rv, sampling, uniforms)
}

/// Tokens that came before are drawn less often: their logits are divided by `factor` where they are positive and multiplied by it
/// elsewhere, before temperature and cuts (Keskar et al., CTRL, arXiv:1909.05858; as transformers and vLLM have it).
#[derive(Clone, Copy, Debug)]
pub struct Repetition<'a> {
    /// Above 0; above 1 to repeat less.
    pub factor: f32,
    /// Of each draw, the tokens of its prompt and of what was drawn so far, each as often as it comes.
    pub seen: &'a [Vec<u32>],
}

/// [`sample`] where tokens are penalised. Log-probs are those of the distribution without the penalty: what the trainer computes.
///
/// # Errors
/// As [`sample`]; on a CUDA device.
pub fn sample_penalised(
    logits_rv: &Tensor,
    sampling: &Sampling,
    uniforms: &[f32],
    repetition: Repetition,
) -> Result<Vec<Sampled>> {
    trail::begin("sampling");
    if logits_rv.device().is_cuda() {
        let fix = "Set it to 1, or device = \"cpu\"";
        return Err(Error::input("sampling.repetition_penalty", "is not there yet on a CUDA device", fix));
    }
    let (rows, vocab) = logits_rv.dims2()?;
    if vocab == 0
        || rows == 0
        || !uniforms.len().is_multiple_of(rows)
        || repetition.seen.len() != uniforms.len()
    {
        let (draws, seen) = (uniforms.len(), repetition.seen.len());
        return match draws {
            0 => Ok(Vec::new()),
            _ => Err(fault(format!(
                "sampling: {draws} uniforms and {seen} lists for logits of {rows} x {vocab}"
            ))),
        };
    }
    cpu::sample_penalised(logits_rv, sampling, uniforms, repetition)
}

/// Reciprocal of the temperature; 1 where the largest logit is taken.
fn inverse_temperature(sampling: &Sampling) -> f32 {
    if sampling.temperature == 0.0 { 1.0 } else { (1.0 / sampling.temperature).min(f32::MAX) }
}

/// How far below the largest a logit may lie under min-p; infinite without it.
fn reach(sampling: &Sampling) -> f32 {
    if sampling.min_p > 0.0 { -sampling.min_p.ln() * sampling.temperature } else { f32::INFINITY }
}
