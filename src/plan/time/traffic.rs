//! What the cards of a run send each other in a step, all of which it waits for.

use super::{Network, Roofline};
use crate::config::Stage;
use crate::error::Result;
use crate::plan::Shard;
use crate::plan::ranks::buckets;

/// Of a step and card. Nothing of it is hidden by computing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes that it sends of gradients, and as many as it receives.
    pub gradients: f64,
    /// Of weights.
    pub weights: f64,
    pub collectives: usize,
    /// Seconds of all collectives, which a step waits for.
    pub seconds: f64,
}

/// The update's packs that are alike: how often, and seconds of one.
#[derive(Clone, Copy, Debug)]
pub struct Pack {
    pub times: f64,
    /// A forward pass of all blocks.
    pub forward: f64,
    /// The head, forward and backward.
    pub head: f64,
    /// A block's backward pass, and what it computes again.
    pub block: f64,
}

impl Traffic {
    /// Of a stage's step.
    ///
    /// # Errors
    /// None that a shape with tokens has.
    pub fn of(line: &Roofline, network: &Network, stage: Stage) -> Result<Self> {
        let optim = line.optim(stage);
        let (rows, _) = line.stage(stage);
        let updates = if stage == Stage::Grpo { line.config.grpo.updates() } else { 1 };
        let minibatches = if stage == Stage::Grpo { line.config.grpo.minibatches } else { 1 };
        let packs = line.packs(rows.over(minibatches), optim)?.iter().map(|pack| pack.times).sum();
        let gradient = line.gradient_bytes(optim) as f64;
        let mut one = match &line.config.lora {
            Some(_) => Self::of_adapter(4.0 * line.trained(), network),
            None => Self::of_weights(line, packs, gradient, network),
        };
        // The gradients' norm, of which each rank has its part.
        if line.sharded() {
            one.add(network.all_reduce(4.0));
        }
        let updates = updates as f64;
        let mut all = Self {
            gradients: one.gradients * updates,
            weights: one.weights * updates,
            collectives: one.collectives * updates as usize,
            seconds: one.seconds * updates,
        };
        // Rewards and counts of all ranks, once a step.
        all.add(network.half(0.0));
        Ok(all)
    }

    fn add(&mut self, seconds: f64) {
        self.collectives += 1;
        self.seconds += seconds;
    }

    fn of_adapter(bytes: f64, network: &Network) -> Self {
        let mut one = Self { gradients: 2.0 * network.sent(bytes), ..Self::default() };
        one.add(network.all_reduce(bytes));
        one
    }

    /// Gradients go block by block: of every pack with ZeRO-2, else after the last pack. Weights come back after the optimiser's step.
    fn of_weights(line: &Roofline, packs: f64, gradient: f64, network: &Network) -> Self {
        let shard = line.world.shard;
        let mut one = Self::default();
        for bucket in &buckets(line.model) {
            let bytes = *bucket as f64 * gradient;
            let (seconds, halves) = match shard {
                Shard::None => (network.all_reduce(bytes), 2.0),
                Shard::Zero1 | Shard::Zero2 => (network.half(bytes), 1.0),
            };
            let times = if shard == Shard::Zero2 { packs as usize } else { 1 };
            for _ in 0..times {
                one.add(seconds);
                one.gradients += halves * network.sent(bytes);
            }
            if shard != Shard::None {
                let bytes = (*bucket * line.target.dtype.size_in_bytes() as u64) as f64;
                one.add(network.half(bytes));
                one.weights += network.sent(bytes);
            }
        }
        one
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::config::Config;
    use crate::plan::time::{Gpu, Link};
    use crate::plan::{Target, World, shapes};

    const CUDA: Target = Target { cuda: true, dtype: DType::BF16, answers: 0 };

    fn traffic(settings: &[&str], sizes: [usize; 2], links: &[&str], shard: Shard) -> Traffic {
        let step =
            ["data.max_prompt_tokens=1500", "grpo.max_completion_tokens=40", "pack.max_reused_tokens=0"];
        let all: Vec<String> = step.iter().chain(settings).map(|s| s.to_string()).collect();
        let config = Config::load("riskcue-llama3.1-8b", &all).unwrap();
        let gpu = Gpu::find("--gpu", "h100").unwrap();
        let links: Vec<Link> = links.iter().map(|name| Link::find(name).unwrap()).collect();
        let network = Network::new(sizes, &links, 1, Some(gpu)).unwrap();
        let world = World { size: network.size(), shard };
        let model = shapes::find("llama-3.1-8b").unwrap();
        let line =
            Roofline { model: &model, config: &config, target: CUDA, rates: gpu.rates(DType::BF16), world };
        Traffic::of(&line, &network, Stage::Grpo).unwrap()
    }

    /// 8.03 billion numbers of 2 bytes, of which a card sends seven eighths; 32 groups of 1,812 tokens are one pack of four a card.
    #[test]
    fn bytes_are_those_of_rings_by_hand() {
        let weights = 8.030e9 * 2.0 * 7.0 / 8.0;
        for (shard, gradients, back) in
            [(Shard::None, 2.0, 0.0), (Shard::Zero1, 1.0, 1.0), (Shard::Zero2, 1.0, 1.0)]
        {
            let found = traffic(&[], [8, 1], &[], shard);
            assert!((found.gradients / weights - gradients).abs() < 1e-3, "{shard:?}: {found:?}");
            assert!((found.weights / weights - back).abs() < 1e-3, "{shard:?}: {found:?}");
        }
        // 34 buckets, there and back; the norm; the counts.
        assert_eq!(traffic(&[], [8, 1], &[], Shard::Zero2).collectives, 34 * 2 + 2);
        let packs = traffic(&["pack.max_tokens_per_pack=2048"], [8, 1], &[], Shard::Zero2);
        assert!((packs.gradients / weights - 4.0).abs() < 1e-3, "{packs:?}");
        let once = traffic(&["pack.max_tokens_per_pack=2048"], [8, 1], &[], Shard::Zero1);
        assert!((once.gradients / weights - 1.0).abs() < 1e-3, "{once:?}");
        let twice = traffic(&["grpo.minibatches=2"], [8, 1], &[], Shard::Zero2);
        assert!((twice.weights / weights - 2.0).abs() < 1e-3, "{twice:?}");
        let f32 = traffic(&["grpo.optim.gradients=f32"], [8, 1], &[], Shard::Zero2);
        assert!((f32.gradients / weights - 2.0).abs() < 1e-3, "{f32:?}");
    }

    #[test]
    fn a_step_waits_for_what_the_links_take() {
        // Gradients and weights of two bytes there and back at 0.8 of 450 GB/s, and some seventy latencies.
        let fast = traffic(&[], [8, 1], &["nvlink"], Shard::Zero2);
        let bytes = 2.0 * 8.030e9 * 2.0 * 7.0 / 8.0 / 360e9;
        assert!((fast.seconds - bytes) / bytes < 0.15 && fast.seconds > bytes, "{fast:?}");
        let order =
            [&["nvlink"][..], &["pcie4"]].map(|links| traffic(&[], [8, 1], links, Shard::Zero1).seconds);
        assert!(order[0] < order[1], "{order:?}");
        assert!(traffic(&[], [8, 2], &["eth25"], Shard::Zero2).seconds > 10.0 * order[1]);
        let settings = ["lora.rank=16", "sft.optim.gradients=f32", "grpo.optim.gradients=f32"];
        let adapter = traffic(&settings, [8, 1], &["pcie4"], Shard::None);
        assert!(adapter.collectives == 2 && adapter.seconds < 0.1, "{adapter:?}");
    }
}
