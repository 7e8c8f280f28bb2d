//! Bytes a token takes, and how many tokens come together.

use candle_core::DType;

use crate::model::config::ModelConfig;

/// Bytes of one token's row, in the weights' type; over all layers where it says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBytes {
    /// One hidden state.
    pub(super) hidden: u64,
    /// Inputs of all blocks.
    pub(super) inputs: u64,
    /// Everything the backward pass reads, of all blocks.
    pub(super) activations: u64,
    /// Keys and values of all layers.
    pub(super) keys_values: u64,
    /// The widest moment of one block's forward pass.
    pub(super) forward: u64,
    /// The widest moment of one block's backward pass, its activations included.
    pub(super) backward: u64,
    /// The moment of it in which attention goes back, without the score gradients that a device keeps for it.
    pub(super) attention_backward: u64,
}

impl TokenBytes {
    pub(super) fn new(model: &ModelConfig, dtype: DType) -> Self {
        let width = dtype.size_in_bytes() as u64;
        let layers = model.num_hidden_layers as u64;
        let (hidden, inner) = (model.hidden_size as u64, model.intermediate_size as u64);
        let query = (model.num_attention_heads * model.head_dim) as u64;
        let key = (model.num_key_value_heads * model.head_dim) as u64;
        // x and x_mid; q and what attention gives; k and v; gate and up (`model/block.rs`); log-sums a head in f32.
        let activations =
            width * (2 * hidden + 2 * query + 2 * key + 2 * inner) + 4 * model.num_attention_heads as u64;
        Self {
            hidden: width * hidden,
            inputs: layers * width * hidden,
            activations: layers * activations,
            keys_values: layers * 2 * width * key,
            // Beside them the normed input, the product of gate and up, and the block's output.
            forward: activations + width * (2 * hidden + inner),
            // Beside them dy, what the two norms gave, and dact, dgate, dup and the product of gate and up.
            backward: activations + width * (3 * hidden + 4 * inner),
            // Without gate and up; beside the rest dy and n1, dq and dout, dk and dv, and a sum for each head.
            attention_backward: activations + width * (2 * hidden + 2 * query + 2 * key) - width * 2 * inner
                + 4 * model.num_attention_heads as u64,
        }
    }
}

/// Groups (or rows) that are packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packs {
    /// Tokens of one group as the packing counts them.
    pub(super) size: u64,
    /// In one pack.
    pub(super) groups: u64,
    /// Tokens that go through the blocks in one pack.
    pub(super) rows: u64,
    /// Predicted ones among these.
    pub(super) targets: u64,
}

impl Packs {
    /// `count` groups of `size` tokens each, in packs of at most `most_tokens` but at least one group.
    pub(super) fn new(count: usize, size: u64, most_tokens: usize) -> Self {
        let groups = (most_tokens as u64 / size.max(1)).clamp(1, (count as u64).max(1));
        Self { size, groups, rows: 0, targets: 0 }
    }

    /// With so many input rows and targets a group.
    pub(super) fn of(self, rows: u64, targets: u64) -> Self {
        Self { rows: self.groups * rows, targets: self.groups * targets, ..self }
    }
}
