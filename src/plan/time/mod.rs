//! How long a run takes: the roofline of its steps over the share of it that is reached.

mod gpus;
mod links;
mod measured;
mod roofline;
mod traffic;

pub use self::gpus::{GPUS, Gpu};
pub use self::links::{Link, Network, SHARE};
pub use self::measured::Measured;
pub use self::roofline::Roofline;
pub use self::traffic::Traffic;
use crate::config::{Config, Stage};
use crate::error::Result;

/// A number for each part of a step. SFT and enumeration have no rollout; an evaluation has nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    pub prefill: f64,
    pub decode: f64,
    pub update: f64,
    pub optimizer: f64,
}

impl Parts {
    pub const NAMES: [&str; 4] = ["prefill", "decode", "update", "optimizer"];

    pub fn all(self) -> [f64; 4] {
        [self.prefill, self.decode, self.update, self.optimizer]
    }

    pub fn total(self) -> f64 {
        self.all().iter().sum()
    }

    /// Part by part; what is not there stays 0.
    pub fn over(self, other: Self) -> Self {
        let one = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        Self {
            prefill: one(self.prefill, other.prefill),
            decode: one(self.decode, other.decode),
            update: one(self.update, other.update),
            optimizer: one(self.optimizer, other.optimizer),
        }
    }
}

/// Shares of the roofline that a step reaches, and who says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Efficiency {
    pub shares: Parts,
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// By what: a file of `rlvr bench step`, or a step made just now.
    Measured(String),
    /// [`Efficiency::ESTIMATE`].
    Estimate,
}

impl Efficiency {
    /// What a reading of the kernels expects of a card (mma.sync without wgmma, elementwise ops apart): no step has been
    /// timed on one.
    pub const ESTIMATE: Self = Self {
        shares: Parts { prefill: 0.7, decode: 0.65, update: 0.65, optimizer: 0.5 },
        source: Source::Estimate,
    };
}

/// Rows of a run's files; `None` where a file is not here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    pub train: Option<usize>,
    /// Prompts of GRPO, where those are other rows.
    pub grpo: Option<usize>,
    pub valid: Option<usize>,
}

/// What a run does again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Leg {
    /// A stage's name, or "evaluation".
    pub what: &'static str,
    /// How often; `None` where the rows are not known.
    pub times: Option<u64>,
    /// Seconds of one, on the fullest rank.
    pub each: Parts,
    /// Between the ranks, in one.
    pub traffic: Traffic,
}

impl Leg {
    /// Of one, with what it waits for.
    pub fn step(&self) -> f64 {
        self.each.total() + self.traffic.seconds
    }

    pub fn seconds(&self) -> Option<f64> {
        Some(self.times? as f64 * self.step())
    }
}

/// The stages of a run in order, then its evaluations. Loading, tokenising and writing are not counted.
///
/// # Errors
/// None that a shape with tokens has.
pub fn legs(line: &Roofline, shares: Parts, rows: RowCounts, network: Option<&Network>) -> Result<Vec<Leg>> {
    let config = line.config;
    let mut legs = Vec::new();
    for stage in &config.stages {
        let times = match stage {
            Stage::Sft => sft_steps(config, rows.train),
            Stage::Grpo => grpo_steps(config, rows),
            Stage::Enumerate => Some(config.enumerate.steps as u64),
        };
        let traffic = network.map(|network| Traffic::of(line, network, *stage)).transpose()?;
        let each = line.step(*stage)?.over(shares);
        legs.push(Leg { what: stage.name(), times, each, traffic: traffic.unwrap_or_default() });
    }
    let least = rows.valid.map(|rows| line.evaluation(rows)).transpose()?;
    legs.push(Leg {
        what: "evaluation",
        times: least.and_then(|_| evaluations(config, rows)),
        each: least.unwrap_or_default().over(shares),
        traffic: Traffic::default(),
    });
    Ok(legs)
}

/// Seconds of all of them, where all are known.
pub fn total(legs: &[Leg]) -> Option<f64> {
    legs.iter().map(Leg::seconds).sum()
}

/// If every row has an answer that fits.
fn sft_steps(config: &Config, rows: Option<usize>) -> Option<u64> {
    // A number of steps asks for no rows.
    let rows = rows.or((config.sft.steps > 0).then_some(0))?;
    Some(config.sft.steps_of(rows))
}

/// If every row's prompt fits.
fn grpo_steps(config: &Config, rows: RowCounts) -> Option<u64> {
    let rows = rows.grpo.or(rows.train).or((config.grpo.steps > 0).then_some(0))?;
    Some(config.grpo.steps_of(rows))
}

/// One before any training, one after each stage, and those between the steps of a stage.
fn evaluations(config: &Config, rows: RowCounts) -> Option<u64> {
    let within = |stage: &Stage| {
        let steps = match stage {
            Stage::Sft => return Some(0),
            Stage::Grpo => grpo_steps(config, rows)?,
            Stage::Enumerate => config.enumerate.steps as u64,
        };
        Some(steps.saturating_sub(1).checked_div(config.eval.every_steps as u64).unwrap_or(0))
    };
    let within = config.stages.iter().map(within).sum::<Option<u64>>()?;
    Some(1 + config.stages.len() as u64 + within)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::config::{ActivationMemory, TokenBudget};
    use crate::plan::work::Work;
    use crate::plan::{Target, World, shapes};
    use crate::types::{FinishReason, Group, Prompt, Rollout};

    const CUDA: Target = Target { cuda: true, dtype: DType::BF16, answers: 0 };

    fn config(settings: &[&str]) -> Config {
        let step =
            ["data.max_prompt_tokens=1500", "grpo.max_completion_tokens=40", "pack.max_reused_tokens=0"];
        let all: Vec<String> = step.iter().chain(settings).map(|s| s.to_string()).collect();
        Config::load("riskcue-llama3.1-8b", &all).unwrap()
    }

    fn on(gpu: &str, config: &Config) -> Parts {
        let model = shapes::find("llama-3.1-8b").unwrap();
        let rates = Gpu::find("--gpu", gpu).unwrap().rates(DType::BF16);
        Roofline { model: &model, config, target: CUDA, rates, world: World::ONE }.grpo().unwrap()
    }

    /// Against the FLOP of a step as `rlvr bench step` counts them: no time is below what these take.
    #[test]
    fn a_roofline_holds_the_arithmetic_of_a_step_and_little_more() {
        let model = shapes::find("llama-3.1-8b").unwrap();
        let rollout = Rollout { token_ids: vec![1; 40], logprobs: vec![0.0; 40], finish: FinishReason::Stop };
        let prompt = Prompt { token_ids: vec![1; 1500] };
        let group = || Group { prompt: prompt.clone(), rollouts: vec![rollout.clone(); 8] };
        let groups: Vec<Group> = (0..32).map(|_| group()).collect();
        let mut work = Work::of(&model, &groups).unwrap();
        work.add_forward(1.0);
        let kept = config(&["pack.activations=\"keep\""]);
        let found = on("h100", &kept);
        let update = work.update_flop / 989e12;
        assert!((1.0..1.3).contains(&(found.update / update)), "{found:?} over {update}");
        let recomputed = on("h100", &config(&["pack.activations=\"recompute\""]));
        let more = (recomputed.update - found.update) / (work.recompute_flop / 989e12);
        assert!((1.0..1.3).contains(&more), "{more}");
        // A decode step reads all weights: 15 GB, 39 times for each of two packs.
        let weights = 2.0 * 39.0 * 15.0e9 / 3.35e12;
        assert!((1.0..1.6).contains(&(found.decode / weights)), "{found:?} over {weights}");
    }

    #[test]
    fn what_is_spared_is_faster_and_what_is_added_slower() {
        let plain = on("h100", &config(&[])).total();
        let mut taped = config(&[]);
        taped.pack.max_reused_tokens = TokenBudget::Tokens(usize::MAX >> 8);
        assert!(on("h100", &taped).total() < plain);
        let mut kept = config(&[]);
        kept.pack.activations = ActivationMemory::Keep;
        assert!(on("h100", &kept).total() < plain);
        assert!(on("h100", &config(&["grpo.kl_coef=0.1"])).update > on("h100", &config(&[])).update);
        let adapter = ["lora.rank=16", "sft.optim.gradients=f32", "grpo.optim.gradients=f32"];
        let adapter = on("h100", &config(&adapter));
        assert!(adapter.update < on("h100", &config(&[])).update && adapter.optimizer < 1e-3);
        let by_card = GPUS.map(|gpu| on(gpu.name, &config(&[])).total());
        let [h100, h200, a100, l40s, rtx4090, b200] = by_card;
        assert!(b200 < h200 && h200 < h100 && h100 < a100 && a100 < l40s && l40s < rtx4090, "{by_card:?}");
    }

    #[test]
    fn a_run_is_its_steps_and_its_evaluations() {
        let config = config(&["eval.every_steps=20"]);
        let model = shapes::find("llama-3.1-8b").unwrap();
        let rates = Gpu::find("--gpu", "h100").unwrap().rates(DType::BF16);
        let line = Roofline { model: &model, config: &config, target: CUDA, rates, world: World::ONE };
        let rows = RowCounts { train: Some(2421), valid: Some(100), ..RowCounts::default() };
        let found = legs(&line, Efficiency::ESTIMATE.shares, rows, None).unwrap();
        // 3 epochs of 2,421 rows by 128; 240 steps; before, after both stages, and at 20, 40 ... 220.
        let times: Vec<_> = found.iter().map(|leg| (leg.what, leg.times.unwrap())).collect();
        assert_eq!(times, [("sft", 57), ("grpo", 240), ("evaluation", 14)]);
        let shares = Parts { prefill: 0.7, decode: 0.65, update: 0.65, optimizer: 0.5 };
        let [prefill, _, update, _] = line.grpo().unwrap().all();
        assert_eq!((found[1].each.prefill, found[1].each.update), (prefill / 0.7, update / shares.update));
        assert!(total(&found).unwrap() > found[1].seconds().unwrap());
        let unknown = legs(&line, shares, RowCounts::default(), None).unwrap();
        assert_eq!((unknown[0].times, unknown[1].times, total(&unknown)), (None, Some(240), None));
    }
}
