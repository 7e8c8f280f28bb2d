//! A step on one card and on many: what a card holds, sends and waits for.

use candle_core::DType;

use super::time::{Efficiency, Gpu, Link, Network, Roofline, Traffic};
use super::{Plan, Rank, Shard, Target, World};
use crate::config::lora::LoraConfig;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig};
use crate::config::{Config, Stage};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// Cards of a node, and nodes.
pub const SIZES: [[usize; 2]; 5] = [[1, 1], [2, 1], [4, 1], [8, 1], [8, 8]];
const RANK: usize = 16;

/// One way to train on so many cards.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// "zero2", or "LoRA, rank 16".
    pub trained: String,
    pub cards: usize,
    /// Empty of one card.
    pub links: String,
    /// Bytes of the fullest rank at its worst moment.
    pub peak: u64,
    pub traffic: Traffic,
    /// Seconds of a step.
    pub step: f64,
    /// Of the cards' time, against one card with the same step.
    pub efficiency: f64,
    /// The same against one card that has as many groups as each of them.
    pub weak: f64,
}

/// The last stage's step on all [`SIZES`] of a card, in bf16: all weights as `config` trains them with every [`Shard`], and an
/// adapter of rank 16. Several links between nodes are a row each.
///
/// # Errors
/// Fewer groups a step than cards; a link that the card has not.
pub fn rows(
    model: &ModelConfig,
    config: &Config,
    answers: usize,
    gpu: Gpu,
    [inside, between]: [&[Link]; 2],
    adapters: usize,
) -> Result<Vec<Row>> {
    let target = Target { cuda: true, dtype: DType::BF16, answers };
    let Some(stage) = config.stages.last().copied() else { return Ok(Vec::new()) };
    let largest = SIZES.iter().map(|[gpus, nodes]| gpus * nodes).max().unwrap_or(1);
    for (key, what, count) in super::ranks::counts(config).skip(config.stages.len() - 1) {
        if count < largest {
            let want = format!("{largest} or more");
            let why = format!("the table goes to {largest} cards, and each has to have {what}");
            return Err(Error::config(key, count, want, why));
        }
    }
    let mut adapter = config.clone();
    adapter.lora = Some(LoraConfig { rank: RANK, ..LoraConfig::default() });
    for stage in config.stages.clone() {
        let optim = super::advice::optim(&mut adapter, stage);
        (optim.gradients, optim.bf16_weights) = (GradientsConfig::F32, Bf16WeightsConfig::Auto);
    }
    let all = Shard::ALL.map(|shard| (shard.name().to_string(), config, shard));
    let all = all.into_iter().chain([(format!("LoRA, rank {RANK}"), &adapter, Shard::None)]);
    let mut rows = Vec::new();
    for (trained, config, shard) in all {
        for [gpus, nodes] in SIZES {
            let networks: &[Link] = if nodes > 1 { between } else { &[] };
            let joined = |link: Option<&Link>| -> Result<Option<Network>> {
                let inside = if gpus > 1 { inside } else { &[] };
                let links: Vec<Link> = inside.iter().chain(link).copied().collect();
                (gpus * nodes > 1)
                    .then(|| Network::new([gpus, nodes], &links, adapters, Some(gpu)))
                    .transpose()
            };
            let networks: Vec<Option<Network>> = match networks {
                [] => vec![joined(None)?],
                links => links.iter().map(|link| joined(Some(link))).collect::<Result<_>>()?,
            };
            for network in networks {
                let world = World { size: gpus * nodes, shard };
                let plan = Plan::new(model, config, Rank { target, world });
                let line = Roofline { model, config, target, rates: gpu.rates(target.dtype), world };
                let row = Row { trained: trained.clone(), ..row(&line, stage, network, &plan)? };
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn row(line: &Roofline, stage: Stage, network: Option<Network>, plan: &Plan) -> Result<Row> {
    let shares = Efficiency::ESTIMATE.shares;
    let traffic = network.map(|network| Traffic::of(line, &network, stage)).transpose()?;
    let traffic = traffic.unwrap_or_default();
    let step = line.step(stage)?.over(shares).total() + traffic.seconds;
    let size = line.world.size;
    let alone = line.alone(shares)?.pop().unwrap_or(step);
    // The same groups, with all of the optimiser.
    let fullest = Roofline { world: World { size, shard: Shard::None }, ..*line };
    let weak = fullest.step(stage)?.over(shares).total() / step;
    Ok(Row {
        trained: String::new(),
        cards: size,
        links: network.map_or(String::new(), |network| network.describe()),
        peak: plan
            .phases
            .iter()
            .filter(|phase| phase.name.starts_with(stage.name()))
            .map(super::Phase::bytes)
            .max()
            .unwrap_or(0),
        traffic,
        step,
        efficiency: alone / step / size as f64,
        weak,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::shapes;

    fn table(prompts: usize) -> Result<Vec<Row>> {
        let settings = [
            "stages=[\"grpo\"]".to_string(),
            "data.max_prompt_tokens=1500".into(),
            "grpo.max_completion_tokens=40".into(),
            "grpo.optim.moments=f32".into(),
            "pack.activations=recompute".into(),
            "pack.max_reused_tokens=0".into(),
            format!("grpo.prompts_per_step={prompts}"),
        ];
        let config = Config::load("riskcue-llama3.1-8b", &settings)?;
        let links = ["ib400", "eth25"].map(|name| Link::find(name).unwrap());
        let gpu = Gpu::find("--gpu", "h100")?;
        rows(&shapes::find("llama-3.1-8b")?, &config, 0, gpu, [&[], &links], 1)
    }

    #[test]
    fn more_cards_hold_less_and_slower_links_are_waited_for() {
        let rows = table(128).unwrap();
        assert_eq!(rows.len(), 4 * 6);
        for of_one in rows.chunks(6) {
            assert!(of_one[..5].windows(2).all(|pair| pair[1].peak <= pair[0].peak), "{of_one:?}");
            assert!(of_one[..5].windows(2).all(|pair| pair[1].step < pair[0].step), "{of_one:?}");
            let [.., fast, slow] = of_one else { panic!() };
            assert!((fast.cards, slow.cards) == (64, 64) && fast.step <= slow.step, "{fast:?} {slow:?}");
            assert!((of_one[0].efficiency - 1.0).abs() < 1e-9 && (of_one[0].weak - 1.0).abs() < 1e-9);
            assert!(of_one.iter().all(|row| row.efficiency < 1.01 && row.weak < 1.05), "{of_one:?}");
            // Against the first row, which is that one card.
            for row in of_one {
                let ratio = of_one[0].step / row.step / row.cards as f64;
                assert!((ratio / row.efficiency - 1.0).abs() < 1e-9, "{row:?}");
            }
        }
        let error = table(32).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("grpo.prompts_per_step"), "{error}");
    }

    /// What a card holds by hand: 14.96 GiB of weights, an eighth of 59.83 of moments and of 14.96 of gradients, 1.4 on their way.
    #[test]
    fn an_8b_model_with_f32_moments_takes_26_to_40_gib_on_each_of_eight() {
        let rows = table(128).unwrap();
        let of = |trained: &str, cards| {
            let row = rows.iter().find(|row| (row.trained.as_str(), row.cards) == (trained, cards)).unwrap();
            row.peak as f64 / (1u64 << 30) as f64
        };
        assert!((26.0..40.0).contains(&of("zero2", 8)) && of("none", 8) > 80.0, "{}", of("zero2", 8));
        assert!(of("zero1", 8) - of("zero2", 8) > 11.0);
    }
}
