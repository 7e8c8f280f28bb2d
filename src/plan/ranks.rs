//! A step cut over ranks: whole groups on each, and what of gradients and optimiser a rank holds.

use super::{Item, Sum, Target};
use crate::config::{Config, Stage};
use crate::model::config::ModelConfig;

/// What of the optimiser each rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// All of it; gradients are all-reduced.
    None,
    /// Moments and masters of its own part; whole gradients, reduce-scattered after the last pack of an update.
    Zero1,
    /// The same, and gradients of its own part: every block's is reduce-scattered as soon as a pack's backward pass has it.
    Zero2,
}

impl Shard {
    pub const ALL: [Self; 3] = [Self::None, Self::Zero1, Self::Zero2];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zero1 => "zero1",
            Self::Zero2 => "zero2",
        }
    }
}

/// All ranks of a run, one a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// At least 1.
    pub size: usize,
    /// Of all weights: an adapter is never cut.
    pub shard: Shard,
}

impl World {
    pub const ONE: Self = Self { size: 1, shard: Shard::None };

    /// Of `count` groups or rows those of the fullest rank.
    pub fn share(self, count: usize) -> usize {
        count.div_ceil(self.size)
    }
}

/// Where a plan's numbers are counted: the fullest of some ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    pub target: Target,
    pub world: World,
}

impl From<Target> for Rank {
    fn from(target: Target) -> Self {
        Self { target, world: World::ONE }
    }
}

/// Numbers of the gradients that come and go together, in the order of a backward pass: the head with the last norm, the blocks
/// from the last to the first, the embedding; a tied head's is complete with the embedding's.
pub fn buckets(model: &ModelConfig) -> Vec<u64> {
    let layers = model.num_hidden_layers;
    let mut sizes = vec![0; layers + 2];
    for (name, shape) in model.parameter_names() {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let at = match layer {
            Some(layer) => layers - usize::min(layer, layers),
            None if name.starts_with("model.embed_tokens.") => layers + 1,
            None => 0,
        };
        sizes[at] += shape.iter().product::<usize>() as u64;
    }
    sizes
}

/// Numbers of gradients alive while one bucket is sent and the next is made.
fn on_their_way(model: &ModelConfig) -> u64 {
    let buckets = buckets(model);
    let largest = buckets.windows(2).map(|pair| pair[0] + pair[1]).max().unwrap_or(0);
    // A tied head's gradient stands from the head to the embedding, beside two blocks'.
    if model.tie_word_embeddings {
        buckets[1..].iter().rev().take(3).sum::<u64>().max(largest)
    } else {
        largest
    }
}

/// What a stage has a step, by its name: groups, or rows.
pub fn counts(config: &Config) -> impl Iterator<Item = (&'static str, &'static str, usize)> + '_ {
    config.stages.iter().map(|stage| match stage {
        Stage::Sft => ("sft.rows_per_step", "rows", config.sft.rows_per_step),
        Stage::Grpo => ("grpo.prompts_per_step", "groups", config.grpo.prompts_per_step),
        Stage::Enumerate => ("enumerate.prompts_per_step", "groups", config.enumerate.prompts_per_step),
    })
}

impl Sum<'_> {
    /// Whether each rank updates a part of the weights.
    pub(super) fn sharded(&self) -> bool {
        self.world.size > 1 && self.world.shard != Shard::None && self.config.lora.is_none()
    }

    /// Numbers that have moments and masters on this rank.
    pub(super) fn updated(&self) -> u64 {
        if self.sharded() { self.trained().div_ceil(self.world.size as u64) } else { self.trained() }
    }

    /// Numbers of gradients that stand until the optimiser's step.
    pub(super) fn kept_gradients(&self) -> u64 {
        if self.world.shard == Shard::Zero2 { self.updated() } else { self.trained() }
    }

    /// Gradients that were made and are not yet reduced, numbers of `width` bytes.
    pub(super) fn sent_gradients(&self, width: u64) -> Item {
        let flying = self.sharded() && self.world.shard == Shard::Zero2;
        let numbers = if flying { on_their_way(self.model) } else { 0 };
        Item { what: "gradients on their way".into(), bytes: numbers * width }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::plan::{Phase, Plan, shapes};

    const GIB: f64 = (1u64 << 30) as f64;
    const CUDA: Target = Target { cuda: true, dtype: DType::BF16, answers: 0 };

    fn config(settings: &[&str]) -> Config {
        let step = ["data.max_prompt_tokens=1500", "grpo.max_completion_tokens=40", "stages=[\"grpo\"]"];
        let all: Vec<String> = step.iter().chain(settings).map(|s| s.to_string()).collect();
        Config::load("riskcue-llama3.1-8b", &all).unwrap()
    }

    fn update(config: &Config, size: usize, shard: Shard) -> Phase {
        let rank = Rank { target: CUDA, world: World { size, shard } };
        let plan = Plan::new(&shapes::find("llama-3.1-8b").unwrap(), config, rank);
        plan.phases.into_iter().find(|phase| phase.name == "grpo update").unwrap()
    }

    fn gib(phase: &Phase, what: &str) -> f64 {
        phase.items.iter().find(|item| item.what == what).map_or(0.0, |item| item.bytes as f64 / GIB)
    }

    #[test]
    fn the_buckets_are_all_parameters_in_the_order_of_a_backward_pass() {
        for name in ["llama-3.1-8b", "smollm2-135m", "qwen3-4b"] {
            let model = shapes::find(name).unwrap();
            let buckets = buckets(&model);
            assert_eq!(buckets.iter().sum::<u64>(), model.parameter_count());
            let table = (model.vocab_size * model.hidden_size) as u64;
            assert_eq!(*buckets.last().unwrap(), table);
            let head = if model.tie_word_embeddings { 0 } else { table };
            assert_eq!(buckets[0], head + model.hidden_size as u64);
            assert!(buckets[1..=model.num_hidden_layers].iter().all(|block| *block == buckets[1]));
        }
    }

    /// 8.03 billion weights on 8 cards by hand: 14.96 GiB of weights, an eighth of 59.8 GiB of f32 moments, and of 14.96 GiB of bf16
    /// gradients an eighth and what is on its way (head 525 million and a block 218 million, 2 bytes), or all.
    #[test]
    fn eight_cards_hold_an_eighth_of_the_optimiser() {
        let config =
            config(&["grpo.optim.moments=f32", "pack.activations=recompute", "pack.max_reused_tokens=0"]);
        let whole = update(&config, 1, Shard::None);
        let (zero1, zero2) = (update(&config, 8, Shard::Zero1), update(&config, 8, Shard::Zero2));
        for (phase, moments, gradients, flying) in
            [(&whole, 59.83, 14.96, 0.0), (&zero1, 7.48, 14.96, 0.0), (&zero2, 7.48, 1.87, 1.385)]
        {
            assert!((gib(phase, "weights") - 14.96).abs() < 0.01);
            for (what, want) in
                [("moments", moments), ("gradients", gradients), ("gradients on their way", flying)]
            {
                assert!((gib(phase, what) - want).abs() < 0.01, "{what}: {phase:?}");
            }
        }
        assert!(zero2.bytes() < zero1.bytes() && zero1.bytes() < update(&config, 8, Shard::None).bytes());
        for phase in [zero1, zero2] {
            let all = phase.bytes() as f64 / GIB;
            assert!((26.0..45.0).contains(&all), "{all:.1}");
        }
        let masters = self::config(&["grpo.optim.bf16_weights=masters"]);
        assert!((gib(&update(&masters, 8, Shard::Zero2), "f32 masters") - 29.92 / 8.0).abs() < 0.01);
    }

    #[test]
    fn an_adapter_is_not_cut_and_no_rank_keeps_more_than_its_groups() {
        let adapter = config(&["lora.rank=16", "grpo.optim.moments=f32", "grpo.optim.gradients=f32"]);
        let (one, eight) = (update(&adapter, 1, Shard::None), update(&adapter, 8, Shard::None));
        assert_eq!(gib(&one, "moments"), gib(&eight, "moments"));
        let taped = config(&["pack.max_reused_tokens=1000000", "pack.activations=recompute"]);
        let kept = |size| gib(&update(&taped, size, Shard::Zero2), "activations kept");
        assert!((kept(1) / kept(8) - 8.0).abs() < 0.01 && kept(12) > kept(16), "{} {}", kept(12), kept(16));
    }
}
