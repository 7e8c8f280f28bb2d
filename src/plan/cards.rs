//! What fits which card: a config's peak for known shapes, by what is trained and by how activations are spent.

use candle_core::DType;

use super::advice::optim;
use super::{Plan, Target, shapes};
use crate::config::lora::LoraConfig;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, MomentsConfig};
use crate::config::{ActivationMemory, Config, TokenBudget};
use crate::error::Result;

/// Memory of cards as they are sold, in 10^9 bytes.
pub const CARDS: [u64; 5] = [24, 40, 48, 80, 141];
/// Left free on each: kernels that libraries load when they are first called.
pub const FREE: u64 = 3 << 29;
const MODELS: [&str; 5] = ["llama-3.2-1b", "llama-3.2-3b", "qwen3-4b", "llama-3.1-8b", "qwen3-14b"];
const RANK: usize = 16;

/// What is trained, and in which types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// f32 masters, moments and gradients.
    Exact,
    /// Weights rounded stochastically, moments of a byte, bf16 gradients.
    Small,
    /// An adapter of rank 16 on all linear layers.
    Adapter,
}

impl Trained {
    const ALL: [Self; 3] = [Self::Exact, Self::Small, Self::Adapter];

    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "all weights, f32 masters and moments",
            Self::Small => "all weights, 8-bit moments",
            Self::Adapter => "LoRA, rank 16",
        }
    }

    fn set(self, config: &mut Config) {
        let (moments, weights, gradients) = match self {
            Self::Exact => (MomentsConfig::F32, Bf16WeightsConfig::Masters, GradientsConfig::F32),
            Self::Small => {
                (MomentsConfig::Int8, Bf16WeightsConfig::StochasticRounding, GradientsConfig::Bf16)
            }
            Self::Adapter => (MomentsConfig::F32, Bf16WeightsConfig::Auto, GradientsConfig::F32),
        };
        for stage in config.stages.clone() {
            let optim = optim(config, stage);
            (optim.moments, optim.bf16_weights, optim.gradients) = (moments, weights, gradients);
        }
        let adapter = || LoraConfig { rank: RANK, ..LoraConfig::default() };
        config.lora = (self == Self::Adapter).then(adapter);
    }
}

/// How activations are spent, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All that the backward pass reads is kept.
    Kept,
    /// The rollout leaves the blocks' inputs of the whole step to the update.
    Tape,
    /// Blocks are computed again.
    Recomputed,
    /// The same with packs of 2,048 tokens, 8,192 in rollouts.
    SmallPacks,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Kept, Self::Tape, Self::Recomputed, Self::SmallPacks];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Tape => "tape",
            Self::Recomputed => "recomputed",
            Self::SmallPacks => "small packs",
        }
    }

    fn set(self, config: &mut Config) {
        let pack = &mut config.pack;
        pack.activations = match self {
            Self::Kept => ActivationMemory::Keep,
            _ => ActivationMemory::Recompute,
        };
        pack.max_reused_tokens = TokenBudget::Tokens(if self == Self::Tape { usize::MAX } else { 0 });
        if self == Self::SmallPacks {
            (pack.max_tokens_per_pack, pack.max_rollout_tokens) = (2048, TokenBudget::Tokens(8192));
        }
    }
}

/// One shape, trained one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub model: &'static str,
    pub trained: Trained,
    /// Peak in bytes of each of [`Way::ALL`].
    pub peaks: [u64; 4],
}

impl Row {
    /// The fastest way that fits a card of so many 10^9 bytes.
    pub fn on(&self, card: u64) -> Option<Way> {
        let room = card * 1_000_000_000 - FREE;
        Way::ALL.into_iter().zip(self.peaks).find(|(_, peak)| *peak <= room).map(|(way, _)| way)
    }
}

/// The config's run in bf16 on a CUDA device, for all shapes; `answers` as in [`Target`].
///
/// # Errors
/// None: all shapes are known.
pub fn rows(config: &Config, answers: usize) -> Result<Vec<Row>> {
    let target = Target { cuda: true, dtype: DType::BF16, answers };
    let mut rows = Vec::new();
    for model in MODELS {
        let shape = shapes::find(model)?;
        for trained in Trained::ALL {
            let peaks = Way::ALL.map(|way| {
                let mut config = config.clone();
                trained.set(&mut config);
                way.set(&mut config);
                Plan::new(&shape, &config, target).peak()
            });
            rows.push(Row { model, trained, peaks });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<Row> {
        let settings = ["data.max_prompt_tokens=1500".to_string(), "grpo.max_completion_tokens=40".into()];
        rows(&Config::load("riskcue-llama3.1-8b", &settings).unwrap(), 0).unwrap()
    }

    #[test]
    fn less_is_kept_with_every_way_and_larger_cards_hold_more() {
        for row in table() {
            let [kept, tape, recomputed, small] = row.peaks;
            assert!(kept >= recomputed && tape >= recomputed && recomputed >= small, "{row:?}");
            let at = |card| {
                row.on(card).map_or(usize::MAX, |way| Way::ALL.iter().position(|w| *w == way).unwrap())
            };
            assert!(CARDS.windows(2).all(|pair| at(pair[1]) <= at(pair[0])), "{row:?}");
        }
    }

    #[test]
    fn an_8b_model_fits_80_gb_with_8_bit_moments_and_not_with_masters() {
        let of = |trained| {
            table().into_iter().find(|r| (r.model, r.trained) == ("llama-3.1-8b", trained)).unwrap()
        };
        assert_eq!(of(Trained::Small).on(80), Some(Way::Kept));
        assert_eq!((of(Trained::Exact).on(80), of(Trained::Small).on(40)), (None, None));
        // Weights are 14.96 GiB.
        assert!(of(Trained::Adapter).on(24).is_some());
    }
}
