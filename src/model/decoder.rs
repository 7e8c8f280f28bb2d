//! The decoder: one set of weights for rollout, reference, training and evaluation.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::block::{Activations, Block, BlockParameters, Pass, Passed, QkNorm, Together};
use super::config::ModelConfig;
use super::forward::{Distribution, Forward, Kept, Rows};
use super::gradients::Gradients;
use super::keep::Keep;
use super::projection::Projection;
use crate::error::{Error, Result};
use crate::ops::attention::Heads;
use crate::ops::indices::Indices;
use crate::ops::memory::{self, Normal};
use crate::ops::rope::RopeTable;
use crate::ops::token_logprob::{self, Slopes, TokenLogprobs};
use crate::ops::{elementwise, embedding, linear, rms_norm};
use crate::rng::{Purpose, Stream};
use crate::stop;
use crate::types::{PackedBatch, Target};

/// A decoder of the families of [`super::config::Family`]: f32 or bf16. Clones share the weights' memory.
#[derive(Clone)]
pub struct Decoder {
    pub config: ModelConfig,
    /// HF names, in `ModelConfig::parameter_names` order; then those of the adapter's tensors.
    pub(super) names: Vec<String>,
    pub(super) weights: Vec<Tensor>,
    /// How many of them are the model's own; frozen while there is an adapter.
    base: usize,
    pub(super) adapter: Option<super::adapter::Shape>,
    /// The adapter's tensors as products read them.
    pub(super) operands: Vec<Tensor>,
    pub(super) blocks: Vec<BlockParameters>,
    embedding: usize,
    final_norm: usize,
    /// The embedding when tied.
    head: usize,
    /// Rows of the head that are no token's.
    missing: Vec<Range<usize>>,
    /// What errors call it.
    name: String,
    rope: RopeTable,
    /// Of each block.
    together: Vec<Together>,
}

/// Where a model's weights live, and as what.
#[derive(Clone, Debug)]
pub struct Placement {
    pub device: Device,
    /// f32 or bf16.
    pub dtype: DType,
    /// Ids that no token of the tokenizer has, ascending. Embeddings are often padded to a round number of rows: such an
    /// id is never drawn and has no probability. May reach past the vocabulary.
    pub missing: Vec<Range<usize>>,
}

impl Placement {
    /// f32 on the CPU.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32, missing: Vec::new() };
}

impl Decoder {
    /// `tensors`: every name of `config.parameter_names()`, all on one device, all f32 or all bf16; other types
    /// become f32 on the CPU. `max_positions` bounds prompt plus completion.
    pub fn new(
        config: ModelConfig,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        max_positions: usize,
    ) -> Result<Self> {
        let mut by_name: HashMap<String, Tensor> = tensors.into_iter().collect();
        let mut names = Vec::new();
        let mut weights = Vec::new();
        for (name, shape) in config.parameter_names() {
            let tensor = by_name.remove(&name).ok_or_else(|| {
                Error::input(&name, "the tensor is missing", "Load a checkpoint that has all weights")
            })?;
            if tensor.dims() != shape.as_slice() {
                return Err(Error::input(
                    &name,
                    format!("has shape {:?}, config.json asks for {shape:?}", tensor.dims()),
                    "Use the config.json that belongs to the weights",
                ));
            }
            names.push(name);
            weights.push(memory::operand(&tensor)?);
        }
        let first = weights.first().map(Tensor::dtype);
        if let Some(i) = weights.iter().position(|w| Some(w.dtype()) != first) {
            let problem = format!("is {:?}, the weights before it are not", weights[i].dtype());
            return Err(Error::input(&names[i], problem, "Load all weights in one type"));
        }
        let index: HashMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        let find = |name: String| {
            index
                .get(name.as_str())
                .copied()
                .ok_or_else(|| Error::Compute(format!("no weight {name}").into()))
        };
        let mut blocks = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let projection = |name: &str| -> Result<Projection> {
                let at = format!("model.layers.{layer}.{name}");
                let bias = index.get(format!("{at}.bias").as_str()).copied();
                Ok(Projection { weight: find(format!("{at}.weight"))?, bias, adapter: None })
            };
            let find = |name: &str| find(format!("model.layers.{layer}.{name}.weight"));
            let qk_norm = match config.family.has_qk_norm() {
                true => Some(QkNorm { q: find("self_attn.q_norm")?, k: find("self_attn.k_norm")? }),
                false => None,
            };
            blocks.push(BlockParameters {
                input_norm: find("input_layernorm")?,
                q: projection("self_attn.q_proj")?,
                k: projection("self_attn.k_proj")?,
                v: projection("self_attn.v_proj")?,
                qk_norm,
                o: projection("self_attn.o_proj")?,
                post_norm: find("post_attention_layernorm")?,
                gate: projection("mlp.gate_proj")?,
                up: projection("mlp.up_proj")?,
                down: projection("mlp.down_proj")?,
            });
        }
        let embedding = find("model.embed_tokens.weight".into())?;
        let head = if config.tie_word_embeddings { embedding } else { find("lm_head.weight".into())? };
        let final_norm = find("model.norm.weight".into())?;
        let positions = max_positions.min(config.max_position_embeddings);
        let rope = RopeTable::new(&config.rope_inverse_frequencies(), positions)
            .scaled_by(config.rope_attention_factor());
        let base = weights.len();
        // A block's weights are given back as soon as they lie together.
        drop(by_name);
        let mut decoder = Self {
            names,
            weights,
            base,
            adapter: None,
            operands: Vec::new(),
            blocks,
            embedding,
            final_norm,
            head,
            missing: Vec::new(),
            name: "the model".into(),
            rope,
            together: Vec::new(),
            config,
        };
        decoder.join_weights()?;
        Ok(decoder)
    }

    /// As a model of that name in errors, without these ids ([`Placement::missing`]).
    ///
    /// # Errors
    /// No id is left.
    pub fn named(mut self, name: impl ToString, missing: &[Range<usize>]) -> Result<Self> {
        self.name = name.to_string();
        let rows = self.config.vocab_size;
        let within = missing.iter().map(|ids| ids.start.min(rows)..ids.end.min(rows));
        self.missing = within.filter(|ids| !ids.is_empty()).collect();
        match self.missing.iter().map(Range::len).sum::<usize>() < rows {
            true => Ok(self),
            false => Err(Error::input(self.name, "has no id of the tokenizer's", "Use its own tokenizer")),
        }
    }

    /// Reads the adapter's tensors again, after an update of them in place.
    pub fn adapter_changed(&mut self) -> Result<()> {
        self.operands = super::adapter::operands(&self.weights[self.base..], self.dtype())?;
        Ok(())
    }

    /// Brings the weights of layers that are one product together, again whenever tensors of `weights` were replaced.
    pub(super) fn join_weights(&mut self) -> Result<()> {
        let weights = &mut self.weights;
        self.together = self.blocks.iter().map(|at| Together::new(weights, at)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Fresh weights from a seed: norms 1; biases 0; matrices normal with deviation `1 / sqrt(inputs)`, those that write
    /// to the residual stream divided by `sqrt(2 layers)`.
    pub fn random(config: ModelConfig, seed: u64, max_positions: usize) -> Result<Self> {
        Self::random_on(&Placement::CPU, config, seed, max_positions)
    }

    /// [`Self::random`] made where it will live. On a CUDA device values differ in the last bits.
    pub fn random_on(
        place: &Placement,
        config: ModelConfig,
        seed: u64,
        max_positions: usize,
    ) -> Result<Self> {
        let residual = 1.0 / (2.0 * config.num_hidden_layers as f32).sqrt();
        let mut tensors = Vec::new();
        for (i, (name, shape)) in config.parameter_names().into_iter().enumerate() {
            let tensor = if shape.len() == 1 {
                let value = if name.ends_with(".bias") { 0.0 } else { 1.0 };
                memory::filled(&place.device, shape, place.dtype, value)?
            } else {
                let to_residual = name.contains("o_proj") || name.contains("down_proj");
                let deviation = if to_residual { residual } else { 1.0 } / (shape[1] as f32).sqrt();
                let stream = Stream::new(seed, Purpose::WeightInit, [i as u32, 0, 0]);
                let weights = Normal { shape: shape.into(), dtype: place.dtype, deviation, stream };
                memory::normal(&place.device, &weights)?
            };
            tensors.push((name, tensor));
        }
        Self::new(config, tensors, max_positions)?.named("the model", &place.missing)
    }

    /// The model's own weights, in memory of their own, without the adapter.
    pub fn deep_copy(&self) -> Result<Self> {
        let tensors = self.parameters().map(|(n, w)| Ok((n.to_string(), memory::duplicate(w)?)));
        let copy =
            Self::new(self.config.clone(), tensors.collect::<Result<Vec<_>>>()?, self.rope.positions());
        copy?.named(&self.name, &self.missing)
    }

    pub fn place(&self) -> Placement {
        Placement { device: self.device().clone(), dtype: self.dtype(), missing: self.missing.clone() }
    }

    pub fn device(&self) -> &Device {
        self.weights[self.embedding].device()
    }

    /// The type of weights and activations.
    pub fn dtype(&self) -> DType {
        self.weights[self.embedding].dtype()
    }

    /// Longest sequence, prompt plus completion, in tokens.
    pub fn max_positions(&self) -> usize {
        self.rope.positions()
    }

    pub fn heads(&self) -> Heads {
        Heads {
            query: self.config.num_attention_heads,
            key_value: self.config.num_key_value_heads,
            dim: self.config.head_dim,
        }
    }

    /// HF name and tensor of every parameter of the model itself, without an adapter's.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.names.iter().map(String::as_str).zip(&self.weights).take(self.base)
    }

    /// What is trained: the adapter's tensors under PEFT's names, or without an adapter all of
    /// [`Self::parameters`]. The optimiser updates them in place.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.names.iter().map(String::as_str).zip(&self.weights).skip(self.frozen_count())
    }

    pub(super) fn base_count(&self) -> usize {
        self.base
    }

    fn frozen_count(&self) -> usize {
        if self.adapter.is_some() { self.base } else { 0 }
    }

    /// No gradient yet, for everything that is trained.
    pub fn zero_gradients(&self) -> Gradients {
        self.zero_gradients_in(DType::F32)
    }

    /// [`Self::zero_gradients`] with those of matrices in `dtype`: f32, or the type of what is trained.
    pub fn zero_gradients_in(&self, dtype: DType) -> Gradients {
        Gradients::new(&self.weights, self.frozen_count(), dtype)
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }

    fn block(&self, layer: usize) -> Block<'_> {
        Block {
            weights: &self.weights,
            at: self.blocks[layer],
            operands: &self.operands,
            together: &self.together[layer],
        }
    }

    fn pass<'a>(&'a self, rows: &'a Rows) -> Pass<'a> {
        let Rows { layout, positions, .. } = rows;
        Pass { layout, positions, rope: &self.rope, heads: self.heads(), eps: self.eps() }
    }

    /// Hidden states of every token of the batch.
    pub fn forward(&self, batch: &PackedBatch, keep: Keep) -> Result<Forward> {
        self.forward_with(batch, |_, a| {
            Ok(match keep {
                Keep::Nothing => None,
                Keep::Inputs => Some(Kept::Input(a.x)),
                Keep::Activations => Some(Kept::Activations(Box::new(a))),
            })
        })
    }

    /// As [`Self::forward`]; `visit` sees each layer's rotated keys and activations, and says what to keep of them.
    pub(super) fn forward_with(
        &self,
        batch: &PackedBatch,
        mut visit: impl FnMut(Tensor, Activations) -> Result<Option<Kept>>,
    ) -> Result<Forward> {
        let rows = Rows::new(batch)?;
        let mut x = embedding::gather(&self.weights[self.embedding], &rows.tokens)?;
        let mut kept = Vec::new();
        for layer in 0..self.blocks.len() {
            stop::look()?;
            let Passed { y, k, activations } = self.block(layer).forward(self.pass(&rows), x)?;
            kept.extend(visit(k, activations)?);
            x = y;
        }
        Ok(Forward { hidden: x, kept, rows })
    }

    /// Refuses log-probs of logits that are no distribution: whatever numbers are made of them would look like some.
    ///
    /// # Errors
    /// A log-prob that is not finite.
    pub fn refuse_no_distribution(&self, mut logprobs: impl Iterator<Item = f32>) -> Result<()> {
        match logprobs.all(f32::is_finite) {
            true => Ok(()),
            false => Err(Error::NoDistribution { model: self.name.clone() }),
        }
    }

    /// Log-probabilities of the batch's targets, `[targets]`; the LM head runs on their rows only.
    ///
    /// # Errors
    /// Logits that are no distribution.
    pub fn logprobs(&self, forward: &Forward, under: impl Into<Distribution>) -> Result<TokenLogprobs> {
        let targets = &forward.rows.targets;
        if targets.is_empty() {
            return Ok(TokenLogprobs::default());
        }
        let Distribution { temperature, cut } = under.into();
        let raw = self.target_rows(&forward.hidden, targets)?;
        let normed = rms_norm::forward(&raw, &self.weights[self.final_norm], self.eps())?;
        let tokens = self.target_tokens(targets)?;
        let inputs = self.head_inputs(&normed, &tokens, temperature);
        let found = token_logprob::forward_within(inputs, cut.as_ref())?;
        self.refuse_no_distribution(found.logprobs.iter().copied())?;
        Ok(found)
    }

    /// Adds the gradient of `sum_i dlogprobs[i] * logprob[i] + dentropies[i] * entropy[i]` to `gradients`, with the
    /// log-probs and entropies of [`Self::logprobs`] under the same distribution.
    pub fn backward<'s>(
        &self,
        forward: Forward,
        under: impl Into<Distribution>,
        slopes: impl Into<Slopes<'s>>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.backward_by_block(forward, under, slopes, gradients, &mut |_, _| Ok(()))
    }

    /// [`Self::backward`]; `done` is told of each block, from the last to the first, once its gradients are whole.
    pub fn backward_by_block<'s>(
        &self,
        forward: Forward,
        under: impl Into<Distribution>,
        slopes: impl Into<Slopes<'s>>,
        gradients: &mut Gradients,
        done: &mut dyn FnMut(usize, &mut Gradients) -> Result<()>,
    ) -> Result<()> {
        let Forward { hidden, kept, rows } = forward;
        if kept.len() != self.blocks.len() {
            return Err(Error::Compute("backward needs a forward pass that kept inputs".into()));
        }
        let Distribution { temperature, cut } = under.into();
        let mut dx = hidden.zeros_like()?;
        if !rows.targets.is_empty() {
            let raw = self.target_rows(&hidden, &rows.targets)?;
            let norm = rms_norm::Input { x_nh: &raw, w_h: &self.weights[self.final_norm], eps: self.eps() };
            let normed = rms_norm::forward(&raw, norm.w_h, norm.eps)?;
            let tokens = self.target_tokens(&rows.targets)?;
            let inputs = self.head_inputs(&normed, &tokens, temperature);
            let slopes = Slopes { cut: cut.as_ref(), ..slopes.into() };
            let dnormed = token_logprob::backward(inputs, slopes, gradients.at(self.head)?)?;
            let draw = raw.zeros_like()?;
            rms_norm::backward(norm, &dnormed, &draw, gradients.at(self.final_norm)?)?;
            let target_rows: Indices = rows.targets.iter().map(|t| t.row).collect();
            embedding::scatter_add(&dx, &target_rows, &draw)?;
        }
        drop(hidden);
        for (layer, kept) in kept.into_iter().enumerate().rev() {
            stop::look()?;
            let (block, pass) = (self.block(layer), self.pass(&rows));
            dx = match kept {
                Kept::Input(x) => block.backward_from_input(pass, x, dx, gradients)?,
                Kept::Activations(a) => block.backward(pass, *a, dx, gradients)?,
                Kept::Taped(taped) => match <[Tensor; 8]>::try_from(taped.gather()?) {
                    Ok(tensors) => block.backward(pass, Activations::from_tensors(tensors), dx, gradients)?,
                    Err(mut input) => {
                        let x = input.pop().ok_or_else(|| Error::Compute("an empty tape".into()))?;
                        block.backward_from_input(pass, x, dx, gradients)?
                    }
                },
            };
            done(layer, gradients)?;
        }
        match gradients.at(self.embedding)? {
            Some(gradient) => embedding::scatter_add(gradient, &rows.tokens, &dx),
            None => Ok(()),
        }
    }

    /// Logits of hidden rows `[R, H]` -> `[R, V]`, f32: decode steps only, a few rows.
    pub fn logits(&self, hidden_rh: &Tensor) -> Result<Tensor> {
        let normed = rms_norm::forward(hidden_rh, &self.weights[self.final_norm], self.eps())?;
        let logits = linear::logits(&normed, &self.weights[self.head])?;
        elementwise::fill_columns(&logits, &self.missing, token_logprob::NO_TOKEN)?;
        Ok(logits)
    }

    /// One decode step's pieces for `kv_cache`: the embedding of the new tokens.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        embedding::gather(&self.weights[self.embedding], &Indices::new(tokens))
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = Block<'_>> {
        (0..self.blocks.len()).map(|layer| self.block(layer))
    }

    pub(super) fn rope(&self) -> &RopeTable {
        &self.rope
    }

    fn target_rows(&self, hidden: &Tensor, targets: &[Target]) -> Result<Tensor> {
        embedding::gather(hidden, &targets.iter().map(|t| t.row).collect())
    }

    fn target_tokens(&self, targets: &[Target]) -> Result<Vec<u32>> {
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        match tokens.iter().find(|t| **t as usize >= self.config.vocab_size) {
            None => Ok(tokens),
            Some(token) => Err(Error::input(
                format!("token id {token}"),
                format!("is outside the vocabulary of {}", self.config.vocab_size),
                "Use the tokenizer that belongs to the model",
            )),
        }
    }

    fn head_inputs<'a>(
        &'a self,
        normed: &'a Tensor,
        targets: &'a [u32],
        temperature: f32,
    ) -> token_logprob::Inputs<'a> {
        let (head_vh, missing) = (&self.weights[self.head], &self.missing[..]);
        token_logprob::Inputs { hidden_rh: normed, head_vh, targets, temperature, missing }
    }
}
