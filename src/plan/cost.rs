//! What each op has to do in a GRPO step, counted from shapes.
//!
//! FLOP: a multiplication, addition, division or exponential is one, and what a backward pass must compute again
//! counts. Matrix products and attention count their products only. Bytes: every input read once, every result
//! written once, what is added to read and written; no more, so an op that reads twice shows a lower rate.

use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::ops::adamw::blockwise::BLOCK;
use crate::ops::attention::{AttentionLayout, Heads};
use crate::types::Segment;

/// The work of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub flop: f64,
    pub bytes: f64,
}

/// Rates that a machine reaches at best; together they draw its roofline.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// FLOP/s of a large square matrix product through the op that models use.
    pub flops: f64,
    /// Bytes read plus bytes written, per second, by copying arrays larger than the caches.
    pub bandwidth: f64,
}

impl Cost {
    fn of(flop: usize, bytes: usize) -> Self {
        Self { flop: flop as f64, bytes: bytes as f64 }
    }

    /// The time the arithmetic takes at these rates, or the traffic, whichever is longer.
    pub fn seconds(self, rates: Rates) -> f64 {
        (self.flop / rates.flops).max(self.bytes / rates.bandwidth)
    }

    /// Which of the two it is: "flop" or "bytes".
    pub fn bound(self, rates: Rates) -> &'static str {
        if self.flop / rates.flops > self.bytes / rates.bandwidth { "flop" } else { "bytes" }
    }
}

/// A GRPO step's groups, all alike, on one model.
#[derive(Clone, Debug)]
pub struct GroupShape {
    pub config: ModelConfig,
    /// Tokens of the prompt.
    pub prompt: usize,
    pub completions: usize,
    /// Tokens of each completion, at least one.
    pub new_tokens: usize,
    pub groups: Groups,
    /// Rows of the ops that see every packed token.
    pub rows: usize,
    /// Bytes of a weight or activation.
    pub size: usize,
    /// Bytes of a number of a matrix's gradient.
    pub gradient_size: usize,
    /// Bytes of logits, in f32, that the head makes at once.
    pub chunk_bytes: usize,
}

/// How many groups come together, each at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// In a pack of the update.
    pub packed: usize,
    /// In a pack of the rollout.
    pub sampled: usize,
    /// In the step.
    pub all: usize,
}

impl Groups {
    pub const ONE: Self = Self { packed: 1, sampled: 1, all: 1 };

    /// Of `all` groups, of which each has `rows` tokens in a pack of the update, that has room for `most_rows`, and takes
    /// `size` in one of the rollout, that has room for `most_size`; at least one group.
    pub fn new(all: usize, [rows, most_rows]: [usize; 2], [size, most_size]: [usize; 2]) -> Self {
        let together = |size: usize, most: usize| (most / size.max(1)).clamp(1, all.max(1));
        Self { packed: together(rows, most_rows), sampled: together(size, most_size), all }
    }
}

/// A linear layer, or the rows of it that are computed at once.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub name: &'static str,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl GroupShape {
    /// Tokens of one packed group: a completion's last token predicts nothing and is no input.
    fn group_rows(&self) -> usize {
        self.prompt + self.completions * (self.new_tokens - 1)
    }

    /// Tokens of a pack of the update.
    pub fn packed(&self) -> usize {
        self.groups.packed * self.group_rows()
    }

    /// Rows of the head: only what predicts something.
    pub fn targets(&self) -> usize {
        (self.groups.packed * self.completions * self.new_tokens).min(self.rows)
    }

    /// Rows of the head's product: those whose logits are alive at once.
    pub fn head_rows(&self) -> usize {
        self.targets().min((self.chunk_bytes / (4 * self.config.vocab_size)).max(1))
    }

    /// Rows of a decode step in a pack of the rollout.
    pub fn decode_rows(&self) -> usize {
        self.groups.sampled * self.completions
    }

    pub fn heads(&self) -> Heads {
        let c = &self.config;
        Heads { query: c.num_attention_heads, key_value: c.num_key_value_heads, dim: c.head_dim }
    }

    /// # Errors
    /// None that a shape with tokens has.
    pub fn layout(&self) -> Result<AttentionLayout> {
        let (p, r) = (self.prompt, self.new_tokens - 1);
        let completions = if r == 0 { 0 } else { self.completions };
        let mut segments = Vec::new();
        for group in 0..self.groups.packed {
            let (start, prefix) = (group * self.group_rows(), segments.len());
            segments.push(Segment { start, len: p, prefix: None });
            let completion = |i| Segment { start: start + p + i * r, len: r, prefix: Some(prefix) };
            segments.extend((0..completions).map(completion));
        }
        AttentionLayout::new(&segments)
    }

    /// The linear layers of a block, and the head.
    pub fn layers(&self) -> [Layer; 5] {
        let (h, f, heads) = (self.config.hidden_size, self.config.intermediate_size, self.heads());
        let (q, kv) = (heads.query_width(), heads.key_value_width());
        let sizes = [
            ("qkv", h, q + 2 * kv),
            ("o", q, h),
            ("gate_up", h, 2 * f),
            ("down", f, h),
            ("head", h, self.config.vocab_size),
        ];
        let layer = |(name, inputs, outputs)| {
            let rows = if name == "head" { self.head_rows() } else { self.rows };
            Layer { name, rows, inputs, outputs }
        };
        sizes.map(layer)
    }

    /// The product forward, and the input's gradient, which is as much.
    pub fn linear(&self, layer: Layer) -> Cost {
        let Layer { rows: n, inputs: h, outputs: o, .. } = layer;
        Cost::of(2 * n * h * o, self.size * (n * h + o * h + n * o))
    }

    pub fn linear_backward_weight(&self, layer: Layer) -> Cost {
        let Layer { rows: n, inputs: h, outputs: o, .. } = layer;
        Cost::of(2 * n * h * o, self.size * (n * h + n * o) + 2 * self.gradient_size * o * h)
    }

    /// Numbers of all rows' hidden states.
    fn hidden(&self) -> usize {
        self.rows * self.config.hidden_size
    }

    /// Numbers of all rows between gate and down.
    fn inner(&self) -> usize {
        self.rows * self.config.intermediate_size
    }

    pub fn rms_norm_forward(&self) -> Cost {
        Cost::of(4 * self.hidden(), self.size * 2 * self.hidden())
    }

    pub fn rms_norm_backward(&self) -> Cost {
        Cost::of(14 * self.hidden(), self.size * 4 * self.hidden())
    }

    /// The rotation of queries and keys.
    pub fn rope(&self) -> Cost {
        let heads = self.heads();
        let numbers = self.rows * (heads.query_width() + heads.key_value_width());
        Cost::of(3 * numbers, self.size * 2 * numbers + 4 * self.rows * heads.dim)
    }

    pub fn swiglu_forward(&self) -> Cost {
        Cost::of(6 * self.inner(), self.size * 3 * self.inner())
    }

    pub fn swiglu_backward(&self) -> Cost {
        Cost::of(12 * self.inner(), self.size * 6 * self.inner())
    }

    /// Numbers of queries, keys and values of the packed group; bytes of the log-sums.
    fn attention(&self, layout: &AttentionLayout) -> (usize, usize, usize) {
        let (n, heads) = (layout.tokens(), self.heads());
        let (q, kv) = (heads.query_width(), heads.key_value_width());
        (n * (q + 2 * kv), n * q, 4 * n * heads.query)
    }

    pub fn attention_forward(&self, layout: &AttentionLayout) -> Cost {
        let (inputs, output, lse) = self.attention(layout);
        let product = 2 * self.heads().query_width() * layout.pairs();
        Cost::of(2 * product, self.size * (inputs + output) + lse)
    }

    pub fn attention_backward(&self, layout: &AttentionLayout) -> Cost {
        let (inputs, output, lse) = self.attention(layout);
        let product = 2 * self.heads().query_width() * layout.pairs();
        Cost::of(5 * product, self.size * (2 * inputs + 2 * output) + lse)
    }

    /// One token of each completion of a rollout's pack, at the last position.
    pub fn decode_attention(&self) -> Cost {
        let (p, g, own, heads) = (self.prompt, self.decode_rows(), self.new_tokens, self.heads());
        let (q, kv) = (heads.query_width(), heads.key_value_width());
        let keys = self.groups.sampled * p + g * own;
        Cost::of(4 * q * g * (p + own), self.size * (2 * kv * keys + 2 * g * q))
    }

    pub fn token_logprob_forward(&self) -> Cost {
        let (r, h, v) = (self.targets(), self.config.hidden_size, self.config.vocab_size);
        Cost::of(2 * r * h * v, self.size * (r * h + v * h) + 12 * r)
    }

    pub fn token_logprob_backward(&self) -> Cost {
        let (r, h, v) = (self.targets(), self.config.hidden_size, self.config.vocab_size);
        let gradient = 2 * self.gradient_size * v * h;
        Cost::of(6 * r * h * v, self.size * (2 * r * h + v * h) + gradient + 8 * r)
    }

    pub fn embedding_gather(&self) -> Cost {
        Cost::of(0, self.size * 2 * self.hidden())
    }

    pub fn embedding_scatter_add(&self) -> Cost {
        Cost::of(self.hidden(), (self.size + 8) * self.hidden())
    }

    /// Numbers of the largest layer's weight.
    fn weight(&self) -> usize {
        self.config.hidden_size * self.config.intermediate_size
    }

    /// With moments in f32.
    pub fn adamw(&self) -> Cost {
        Cost::of(16 * self.weight(), (2 * self.size + self.gradient_size + 16) * self.weight())
    }

    /// With moments of a byte, and a scale a block.
    pub fn adamw_int8(&self) -> Cost {
        let scales = 16 * self.weight().div_ceil(BLOCK);
        Cost::of(16 * self.weight(), (2 * self.size + self.gradient_size + 4) * self.weight() + scales)
    }

    pub fn sum_squares(&self) -> Cost {
        Cost::of(2 * self.weight(), self.gradient_size * self.weight())
    }

    pub fn add_assign(&self) -> Cost {
        Cost::of(self.weight(), 12 * self.weight())
    }

    pub fn zero(&self) -> Cost {
        Cost::of(0, 4 * self.weight())
    }

    /// A token for each completion of a rollout's pack.
    pub fn sampling(&self) -> Cost {
        let logits = self.decode_rows() * self.config.vocab_size;
        Cost::of(4 * logits, 4 * logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::shapes;

    /// SmolLM2-135M in f32: 576 wide, 1,536 inside, 9 query and 3 key heads of 64, 49,152 tokens.
    fn shape() -> GroupShape {
        let config = shapes::find("smollm2-135m").unwrap();
        let mut shape = GroupShape {
            config,
            prompt: 10,
            completions: 2,
            new_tokens: 3,
            groups: Groups::ONE,
            rows: 0,
            size: 4,
            gradient_size: 4,
            chunk_bytes: 64 << 20,
        };
        shape.rows = shape.packed();
        shape
    }

    #[test]
    fn products_and_traffic_are_those_worked_out_by_hand() {
        let shape = shape();
        // 10 + 2 * 2 tokens go in, 2 * 3 are predicted.
        assert_eq!((shape.packed(), shape.targets()), (14, 6));
        let down = shape.layers()[3];
        let cost = shape.linear(down);
        assert_eq!(cost.flop, (2 * 14 * 1536 * 576) as f64);
        assert_eq!(cost.bytes, (4 * (14 * 1536 + 1536 * 576 + 14 * 576)) as f64);
        assert_eq!(shape.layers()[4].rows, 6);
        // Queries, keys and values are one product; so are gate and up.
        assert_eq!(shape.layers().map(|layer| layer.outputs), [960, 576, 3072, 576, 49152]);
        // Causal pairs of the prompt: 55; each completion: 2 tokens on 10 before them, and 3 among themselves.
        let layout = shape.layout().unwrap();
        assert_eq!(layout.pairs(), 55 + 2 * (20 + 3));
        assert_eq!(shape.attention_forward(&layout).flop, (2 * 2 * 576 * 101) as f64);
        assert_eq!(shape.decode_attention().flop, (4 * 576 * 2 * 13) as f64);
        assert_eq!(shape.token_logprob_backward().flop, 3.0 * shape.token_logprob_forward().flop);
    }

    /// The step of scripts/gpu/run.sh: 32 prompts of 1,500 tokens with 8 answers of 40 on Llama-3.1-8B.
    #[test]
    fn groups_come_together_as_packing_puts_them() {
        let mut shape = shape();
        shape.config = shapes::find("llama-3.1-8b").unwrap();
        (shape.prompt, shape.completions, shape.new_tokens) = (1500, 8, 40);
        shape.groups = Groups::new(32, [1500 + 8 * 39, 7248], [1500 + 8 * 40, 32768]);
        assert_eq!(shape.groups, Groups { packed: 4, sampled: 18, all: 32 });
        shape.rows = shape.packed();
        assert_eq!((shape.rows, shape.decode_rows(), shape.targets()), (7248, 144, 1280));
        // 512.5 KB of logits a row.
        shape.chunk_bytes = 128 << 20;
        assert_eq!(shape.head_rows(), 261);
        let (one, four) = (Groups { packed: 1, ..shape.groups }, shape.layout().unwrap());
        shape.groups = one;
        assert_eq!(four.pairs(), 4 * shape.layout().unwrap().pairs());
        assert_eq!(four.tokens(), 7248);
        assert_eq!(Groups::new(2, [100, 10], [100, 1000]), Groups { packed: 1, sampled: 2, all: 2 });
    }

    #[test]
    fn the_longer_of_both_times_is_the_roofline() {
        let rates = Rates { flops: 100.0, bandwidth: 10.0 };
        let cost = Cost { flop: 300.0, bytes: 20.0 };
        assert_eq!((cost.seconds(rates), cost.bound(rates)), (3.0, "flop"));
        let cost = Cost { flop: 100.0, bytes: 20.0 };
        assert_eq!((cost.seconds(rates), cost.bound(rates)), (2.0, "bytes"));
    }
}
