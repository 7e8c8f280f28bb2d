//! Rotary angles of longer contexts: the kinds of `rope_scaling` that `config.json` may ask for.

/// How the angles of plain rotary embeddings are changed. Numbers as transformers 5.23 computes them
/// (`modeling_rope_utils.py`), held against its output in `tests/suite/families.rs`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    Llama3(Llama3Scaling),
    Yarn(YarnScaling),
}

/// Kind `llama3`: long wavelengths are stretched by `factor`, short ones kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    /// Context length before the scaling, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Kind `yarn`, Peng et al., arXiv:2309.00071: pairs that turn less than `beta_slow` times in the original context
/// are stretched by `factor`, those that turn more than `beta_fast` times kept, the ones between interpolated.
#[derive(Clone, Debug, PartialEq)]
pub struct YarnScaling {
    pub factor: f64,
    /// Context length before the scaling, in tokens.
    pub original_max_position_embeddings: usize,
    /// 32 when absent.
    pub beta_fast: Option<f64>,
    /// 1 when absent.
    pub beta_slow: Option<f64>,
    /// Whether the bounds of the interpolation are whole pairs; true when absent.
    pub truncate: Option<bool>,
    /// Multiplies sines and cosines; when absent it follows from `factor` and the two below.
    pub attention_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    /// Written by some models, DeepSeek-R1-0528-Qwen3-8B among them, and read by vLLM and llama.cpp. transformers
    /// does not know it, and neither does the computation here; it is carried along.
    pub attn_factor: Option<f64>,
}

impl RopeScaling {
    /// Angles per position of the pairs of a head, scaled; radians. `plain`: `theta^(-2i / dim)` for pair i.
    pub fn scale(&self, plain: &[f64], theta: f64) -> Vec<f64> {
        match self {
            Self::Linear { factor } => plain.iter().map(|frequency| frequency / factor).collect(),
            Self::Llama3(scaling) => plain.iter().map(|&frequency| scaling.apply(frequency)).collect(),
            Self::Yarn(scaling) => scaling.apply(plain, theta),
        }
    }

    /// What sines and cosines are multiplied by, and so queries and keys alike.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Linear { .. } | Self::Llama3(_) => 1.0,
            Self::Yarn(scaling) => scaling.attention_factor(),
        }
    }
}

impl Llama3Scaling {
    /// One frequency in radians a token, scaled. Wavelengths past `original / low_freq_factor` tokens are
    /// stretched by `factor`, those below `original / high_freq_factor` kept, and the ones between interpolated.
    pub fn apply(&self, frequency: f64) -> f64 {
        let wavelength_tokens = 2.0 * std::f64::consts::PI / frequency;
        let turns = self.original_max_position_embeddings as f64 / wavelength_tokens;
        if turns > self.high_freq_factor {
            frequency
        } else if turns < self.low_freq_factor {
            frequency / self.factor
        } else {
            let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            frequency * (kept + (1.0 - kept) / self.factor)
        }
    }
}

impl YarnScaling {
    fn apply(&self, plain: &[f64], theta: f64) -> Vec<f64> {
        let dim = 2 * plain.len();
        // The pair, as a channel number, that turns so often in the original context.
        let original = self.original_max_position_embeddings as f64;
        let channel = |turns: f64| {
            dim as f64 * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) =
            (channel(self.beta_fast.unwrap_or(32.0)), channel(self.beta_slow.unwrap_or(1.0)));
        if self.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min((dim - 1) as f64));
        if low == high {
            high += 0.001;
        }
        let scaled = plain.iter().enumerate().map(|(pair, frequency)| {
            let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (stretched / self.factor + (1.0 - stretched))
        });
        scaled.collect()
    }

    fn attention_factor(&self) -> f64 {
        let scale =
            |mscale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all_dim)) => scale(mscale) / scale(all_dim),
            (None, ..) => scale(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_divides_and_interpolates() {
        // Wavelengths of 1, 1/4, 1/16 radians a token: 6.28, 25.13 and 100.5 tokens; 32 tokens hold 5.09, 1.273 and
        // 0.318 turns. Past 4 turns kept, under 1 divided by 8, else kept by (1.27324 - 1) / 3 = 0.0910799.
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        assert_eq!(scaling.apply(1.0), 1.0);
        assert!((scaling.apply(0.25) - 0.25 * (0.0910799 + 0.9089201 / 8.0)).abs() < 1e-7);
        assert_eq!(scaling.apply(0.0625), 0.0078125);
    }
}
