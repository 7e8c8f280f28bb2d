//! The time and the money of a plan: whose efficiency counts, how many rows there are, what an hour costs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device};

use super::Place;
use super::ranks::Ranks;
use crate::bench::ops::Maker;
use crate::bench::step::StepShape;
use crate::bench::timing::{ceiling_size, ceilings};
use crate::config::Config;
use crate::config::mix::DataFile;
use crate::data::raw;
use crate::error::Error;
use crate::model::config::ModelConfig;
use crate::model::decoder::Placement;
use crate::plan::Target;
use crate::plan::cost::Rates;
use crate::plan::time::{self, Efficiency, GPUS, Gpu, Leg, Measured, Parts, Roofline, RowCounts, Source};

#[derive(clap::Args)]
pub struct Args {
    /// Plan for rented cards, which need not be here: h100, h200, a100-80, l40s, 4090, b200, several with commas, or all.
    #[arg(long, value_name = "CARDS", conflicts_with = "memory_gib")]
    gpu: Option<String>,
    /// What an hour of one card costs: 2.50, or of several h100=2.50,l40s=0.9. Default: run.price_per_hour.
    #[arg(long, value_name = "PRICE")]
    price: Option<String>,
    /// Seconds and hours too. Without a card: of the config's device; on the CPU by a short step that is timed now.
    #[arg(long)]
    time: bool,
    /// Efficiency as measured there: what `rlvr bench step --json` printed on the planned device.
    #[arg(long, value_name = "FILE")]
    bench: Option<PathBuf>,
    /// Tokens that a prompt has on average, for times. Default: as many as it may have.
    #[arg(long, value_name = "N")]
    mean_prompt_tokens: Option<usize>,
    /// Tokens that an answer has on average, for times. Default: as many as it may have.
    #[arg(long, value_name = "N")]
    mean_answer_tokens: Option<usize>,
    /// Rows of data.train or of all of data.mix, where they are not here.
    #[arg(long, value_name = "N")]
    train_rows: Option<usize>,
    /// Rows of data.valid or of all of data.valid_files, where they are not here.
    #[arg(long, value_name = "N")]
    valid_rows: Option<usize>,
}

/// How long a run takes on one device or several, and what that costs.
pub struct Duration {
    pub legs: Vec<Leg>,
    /// Seconds of the same steps on one card that keeps what all keep; none of one card itself.
    pub alone: Vec<f64>,
    pub seconds: Option<f64>,
    pub rates: Rates,
    pub source: Source,
    /// Dollars an hour of all cards.
    pub price: Option<f64>,
}

impl Duration {
    pub fn dollars(&self) -> Option<f64> {
        Some(self.seconds? / 3600.0 * self.price?)
    }

    /// Where the shares of the roofline come from.
    pub fn source(&self) -> String {
        match &self.source {
            Source::Measured(by) => format!("measured by {by}"),
            Source::Estimate => "a table's estimate, not measured".into(),
        }
    }
}

/// Prices by card; under "" the one that names none.
struct Prices(BTreeMap<&'static str, f64>);

impl Prices {
    fn read(text: &str) -> Result<Self> {
        let want = "a price such as 2.50, or card=price pairs such as h100=2.50,l40s=0.9";
        let mut prices = BTreeMap::new();
        for part in text.split(',') {
            let (name, number) = match part.split_once('=') {
                Some((name, number)) => (Gpu::find("--price", name.trim())?.name, number),
                None => ("", part),
            };
            let price: Option<f64> = number.trim().parse().ok().filter(|p: &f64| *p > 0.0 && p.is_finite());
            let price = price.ok_or_else(|| Error::config("--price", part, want, "it is dollars an hour"))?;
            if prices.insert(name, price).is_some() {
                return Err(Error::config("--price", text, want, "one card has one price").into());
            }
        }
        Ok(Self(prices))
    }
}

/// The flags, read.
pub struct Asked<'a> {
    args: &'a Args,
    pub cards: Vec<Gpu>,
    prices: Prices,
    measured: Vec<Measured>,
}

impl Args {
    /// # Errors
    /// Cards or prices that are none, a file that holds no timed step.
    pub fn read(&self) -> Result<Asked<'_>> {
        let prices = self.price.as_deref().map_or(Ok(Prices(BTreeMap::new())), Prices::read)?;
        let mut cards = match self.gpu.as_deref() {
            None => Vec::new(),
            Some("all") => GPUS.to_vec(),
            Some(names) => {
                names.split(',').map(|n| Gpu::find("--gpu", n.trim())).collect::<Result<_, _>>()?
            }
        };
        if cards.is_empty() {
            cards.extend(GPUS.into_iter().filter(|gpu| prices.0.contains_key(gpu.name)));
        }
        if cards.len() > 1 && prices.0.contains_key("") {
            let want = "with the card's name, such as h100=2.50";
            let why = "several cards are planned for";
            return Err(Error::config("--price", self.price.as_deref().unwrap_or(""), want, why).into());
        }
        let idle =
            prices.0.keys().find(|name| !name.is_empty() && cards.iter().all(|gpu| gpu.name != **name));
        if let Some(name) = idle {
            let problem = format!("prices {name}, which --gpu does not plan for");
            return Err(Error::input("--price", problem, "Name the card in --gpu too").into());
        }
        for (flag, tokens) in [
            ("--mean-prompt-tokens", self.mean_prompt_tokens),
            ("--mean-answer-tokens", self.mean_answer_tokens),
            ("--train-rows", self.train_rows),
            ("--valid-rows", self.valid_rows),
        ] {
            if tokens == Some(0) {
                return Err(Error::config(flag, 0, "1 or more", "0 takes no time").into());
            }
        }
        let measured = self.bench.as_deref().map_or(Ok(Vec::new()), Measured::read)?;
        Ok(Asked { args: self, cards, prices, measured })
    }
}

impl Asked<'_> {
    /// Whether times are wanted at all.
    pub fn wanted(&self) -> bool {
        let Args { time, price, bench, .. } = self.args;
        *time || price.is_some() || bench.is_some() || !self.cards.is_empty()
    }

    /// Of a run on a card, or on several that `network` joins; without a card it is the CPU. `fits`: whether a step may be tried
    /// here.
    ///
    /// # Errors
    /// The CPU's step is neither in the file nor can be made; lengths above what the config allows.
    pub fn duration(
        &self,
        model: &ModelConfig,
        config: &Config,
        place: &Place,
        fits: bool,
    ) -> Result<Duration> {
        let Place { target, gpu, ranks: Ranks { world, network }, .. } = *place;
        let config = &self.mean(config)?;
        let (rates, efficiency) = match gpu {
            Some(gpu) => (gpu.rates(target.dtype), self.of_card(model, config, target, gpu)?),
            None => self.of_cpu(model, config, target, fits)?,
        };
        let line = Roofline { model, config, target, rates, world };
        let legs = time::legs(&line, efficiency.shares, self.rows(config)?, network.as_ref())?;
        let alone = match network {
            Some(_) => line.alone(efficiency.shares)?,
            None => Vec::new(),
        };
        let of_card = gpu.and_then(|gpu| self.prices.0.get(gpu.name));
        let price = of_card.or_else(|| self.prices.0.get("")).map(|price| price * world.size as f64);
        // One machine's price is not several cards'.
        let price = price.or(config.run.price_per_hour.filter(|_| self.cards.len() < 2));
        Ok(Duration { seconds: time::total(&legs), legs, alone, rates, source: efficiency.source, price })
    }

    /// The config with rows of mean length.
    fn mean(&self, config: &Config) -> Result<Config> {
        let mut config = config.clone();
        let Args { mean_prompt_tokens, mean_answer_tokens, .. } = self.args;
        if let Some(tokens) = *mean_prompt_tokens {
            let most = config.data.max_prompt_tokens;
            if tokens > most {
                let want = format!("at most data.max_prompt_tokens = {most}");
                let why = "longer prompts are dropped";
                return Err(Error::config("--mean-prompt-tokens", tokens, want, why).into());
            }
            config.data.max_prompt_tokens = tokens;
        }
        if let Some(tokens) = *mean_answer_tokens {
            let answers = [
                &mut config.grpo.max_completion_tokens,
                &mut config.eval.max_completion_tokens,
                &mut config.data.max_target_tokens,
            ];
            answers.into_iter().for_each(|most| *most = tokens.min(*most));
        }
        Ok(config)
    }

    fn rows(&self, config: &Config) -> Result<RowCounts> {
        let data = &config.data;
        if let Some(made) = &data.synthetic {
            let (train, valid) = (Some(made.sft_rows), Some(made.valid_rows));
            return Ok(RowCounts { train, grpo: Some(made.grpo_rows), valid });
        }
        let least = |rows: usize, most: usize| if most > 0 { rows.min(most) } else { rows };
        let count = |given: Option<usize>, files: Vec<DataFile>, most: usize| -> Result<_> {
            if given.is_some() {
                return Ok(given.map(|rows| least(rows, most * files.len().max(1))));
            }
            if files.is_empty() || !files.iter().all(|file| file.path.is_file()) {
                return Ok(None);
            }
            files.iter().map(|file| Ok(least(raw::count(file.path)?, most))).sum::<Result<usize>>().map(Some)
        };
        Ok(RowCounts {
            train: count(self.args.train_rows, data.train_files(), data.max_train_rows)?,
            grpo: None,
            valid: count(self.args.valid_rows, data.held_out_files(), data.max_valid_rows)?,
        })
    }

    /// The step most like the planned one, of those that were timed on such a device.
    fn nearest(
        &self,
        model: &ModelConfig,
        config: &Config,
        like: impl Fn(&Measured) -> bool,
    ) -> Option<&Measured> {
        let distance = |step: &&Measured| step.distance(model, config);
        let steps = self.measured.iter().filter(|step| like(step));
        steps.min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    fn by(&self) -> Source {
        let file = self.args.bench.as_ref().map_or(String::new(), |path| path.display().to_string());
        Source::Measured(file)
    }

    fn of_card(&self, model: &ModelConfig, config: &Config, target: Target, gpu: Gpu) -> Result<Efficiency> {
        let like = |step: &Measured| {
            let card = step.card.as_deref().and_then(Gpu::of_driver);
            card == Some(gpu) && step.target.dtype == target.dtype
        };
        match self.nearest(model, config, like) {
            Some(step) => Ok(Efficiency { shares: step.shares(gpu.rates(target.dtype))?, source: self.by() }),
            None => Ok(Efficiency::ESTIMATE),
        }
    }

    fn of_cpu(
        &self,
        model: &ModelConfig,
        config: &Config,
        target: Target,
        fits: bool,
    ) -> Result<(Rates, Efficiency)> {
        crate::cli::use_threads(config.threads)?;
        let threads = rayon::current_num_threads();
        let place = Placement { device: Device::Cpu, dtype: target.dtype, missing: Vec::new() };
        let maker = Maker::new(Device::Cpu, target.dtype, DType::F32);
        let rates = || ceilings(&maker, ceiling_size(&Device::Cpu), CEILING_SECONDS);
        if let Some(path) = &self.args.bench {
            let like = |step: &Measured| {
                !step.target.cuda && step.target.dtype == target.dtype && step.threads == threads
            };
            let Some(step) = self.nearest(model, config, like) else {
                let dtype = target.dtype.as_str();
                let problem = format!("has no step on the CPU in {dtype} with {threads} threads");
                let fix = "Time one with `rlvr bench step --json`, or leave --bench away";
                return Err(Error::input(path.display(), problem, fix).into());
            };
            let rates = rates()?;
            return Ok((rates, Efficiency { shares: step.shares(rates)?, source: self.by() }));
        }
        if !fits {
            let problem = "cannot be timed here: the run does not fit this machine's memory";
            let fix = "Give --bench FILE, or --gpu for another machine";
            return Err(Error::input("--time", problem, fix).into());
        }
        let step = small(model, config, target);
        let shape = &step.config;
        eprintln!(
            "note: timing a step of {} x {} completions of {} tokens to {} prompt tokens here",
            shape.grpo.prompts_per_step,
            shape.grpo.group_size,
            shape.grpo.max_completion_tokens,
            shape.data.max_prompt_tokens
        );
        let seconds = timed(&step, &place)?;
        let rates = rates()?;
        let shares = Measured { seconds, ..step }.shares(rates)?;
        Ok((rates, Efficiency { shares, source: Source::Measured("a step on this CPU just now".into()) }))
    }
}

const CEILING_SECONDS: f64 = 0.3;
/// Of the step that is timed, at most.
const TIMED_PROMPTS: usize = 768;
const TIMED_ROWS: usize = 64;
const TIMED_ANSWER: usize = 12;
const TIMED_STEPS: u64 = 2;

/// A step like the planned one that takes seconds, not minutes: as many completions as are decoded at once, but short.
fn small(model: &ModelConfig, config: &Config, target: Target) -> Measured {
    let mut config = config.clone();
    let most = config.pack.rollout_tokens();
    let grpo = &mut config.grpo;
    let size = config.data.max_prompt_tokens + grpo.group_size * grpo.max_completion_tokens;
    grpo.group_size = grpo.group_size.min(TIMED_ROWS);
    let together = (most / size.max(1)).clamp(1, grpo.prompts_per_step);
    grpo.prompts_per_step = together.min(TIMED_ROWS / grpo.group_size);
    grpo.max_completion_tokens = grpo.max_completion_tokens.clamp(2, TIMED_ANSWER);
    (grpo.kl_coef, grpo.updates_per_rollout, grpo.minibatches) = (0.0, 1, 1);
    let prompt = TIMED_PROMPTS / grpo.prompts_per_step;
    config.data.max_prompt_tokens = config.data.max_prompt_tokens.min(prompt);
    let threads = rayon::current_num_threads();
    Measured { model: model.clone(), config, target, card: None, threads, seconds: Parts::default() }
}

/// Seconds of its parts, as `rlvr bench step` takes them.
fn timed(step: &Measured, place: &Placement) -> Result<Parts> {
    let Measured { model, config, .. } = step;
    let (grpo, pack) = (&config.grpo, &config.pack);
    let shape = StepShape {
        groups: grpo.prompts_per_step,
        group_size: grpo.group_size,
        prompt_tokens: config.data.max_prompt_tokens,
        new_tokens: grpo.max_completion_tokens,
        max_tokens_per_pack: pack.max_tokens_per_pack,
        max_rollout_tokens: pack.rollout_tokens(),
        max_reused_tokens: pack.reused_tokens(),
        activations: pack.activations,
    };
    let rank = config.lora.as_ref().map_or(0, |lora| lora.rank);
    let mut learner = shape.learner(place, model.clone(), &grpo.optim, rank)?;
    shape.run(&mut learner, 0)?;
    let mut sum = Parts::default();
    for step in 1..=TIMED_STEPS {
        let one = shape.run(&mut learner, step)?.phases;
        sum.prefill += one.prefill;
        sum.decode += one.decode;
        sum.update += one.update;
        sum.optimizer += one.optimizer;
    }
    let steps = TIMED_STEPS as f64;
    Ok(sum.over(Parts { prefill: steps, decode: steps, update: steps, optimizer: steps }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: super::super::Args,
    }

    fn read(flags: &[&str]) -> std::result::Result<Vec<&'static str>, String> {
        let words = ["plan", "demo"].iter().chain(flags);
        let command = Command::try_parse_from(words).map_err(|e| e.to_string())?;
        let asked = command.args.duration.read().map_err(|e| e.to_string())?;
        Ok(asked.cards.iter().map(|gpu| gpu.name).collect())
    }

    #[test]
    fn cards_come_from_gpu_or_from_the_prices() {
        assert_eq!(read(&["--gpu", "l40s", "--price", "0.9"]).unwrap(), ["l40s"]);
        assert_eq!(read(&["--price", "l40s=0.9,h100=2.50"]).unwrap(), ["h100", "l40s"]);
        assert_eq!(read(&["--gpu", "all"]).unwrap().len(), 6);
        assert!(read(&["--price", "3"]).unwrap().is_empty());
        for (flags, part) in [
            (&["--gpu", "v100"][..], "h100, h200, a100-80"),
            (&["--gpu", "h100,l40s", "--price", "2"], "several cards are planned for"),
            (&["--gpu", "h100", "--price", "l40s=2"], "prices l40s"),
            (&["--gpu", "h100", "--price=-1"], "dollars an hour"),
            (&["--gpu", "h100", "--price", "nan"], "dollars an hour"),
            (&["--price", "h100=1,h100=2"], "one card has one price"),
            (&["--gpu", "h100", "--memory-gib", "3"], "cannot be used with"),
            (&["--mean-prompt-tokens", "0"], "1 or more"),
        ] {
            let error = read(flags).unwrap_err();
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }
}
