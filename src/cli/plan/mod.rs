//! `rlvr plan`: whether a training run fits, how long it takes and what that costs, from config.json alone.

mod duration;
mod print;
mod ranks;

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use self::duration::{Asked, Duration};
use self::ranks::Ranks;
use super::hub::folder;
use crate::config::{Config, DeviceKind, Loaded};
use crate::error::Error;
use crate::formats::hf::config_json;
use crate::hub::{self, Parts};
use crate::model::config::ModelConfig;
use crate::observe::machine::Host;
use crate::ops::cuda;
use crate::plan::activations::{self, Settled};
use crate::plan::cards::{self, CARDS, Way};
use crate::plan::time::Gpu;
use crate::plan::{Change, Plan, Rank, Target, advise, disk, shapes};
use crate::task::Task;
use crate::train::materials::random_model;

const GIB: f64 = (1u64 << 30) as f64;

/// Add up the memory of a training run, phase by phase, without its weights; with a card its time and price too.
#[derive(clap::Args)]
#[command(
    after_help = "Examples: rlvr plan riskcue-smollm2-135m --set device=cuda --memory-gib 16\n          rlvr plan \
                  riskcue-llama3.1-8b --price h100=2.50,l40s=0.90 --mean-prompt-tokens 1500\n          rlvr plan \
                  riskcue-llama3.1-8b --gpu h100 --gpus 8 --nodes 2 --link ib400"
)]
pub struct Args {
    /// Folder, short name, hub name (only config.json is fetched), or a shape: smollm2-135m, smollm2-360m, llama-3.2-1b,
    /// llama-3.2-3b, qwen3-4b, llama-3.1-8b, qwen3-14b. Default: the config's model.path.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Config file, or the name of a preset, as `rlvr train` takes it. Default: riskcue-llama3.1-8b.
    config: Option<String>,
    /// The same as a flag.
    #[arg(long = "config", value_name = "CONFIG", conflicts_with = "config")]
    named: Option<String>,
    /// Override one key, as in --set grpo.group_size=4. May be given many times; `device=cuda` plans for a GPU that
    /// need not be here.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Memory to fit into. Default: what the device, or on the CPU the machine, has free.
    #[arg(long, value_name = "N")]
    memory_gib: Option<f64>,
    /// A table of which known shape fits which card by which way to train, for this config's rows and tokens.
    #[arg(long, conflicts_with_all = ["model", "memory_gib", "gpu", "price", "time", "bench"])]
    cards: bool,
    /// A table of one step on 1, 2, 4, 8 and 64 cards of one kind (--gpu, default h100), by what a rank holds.
    #[arg(long, conflicts_with_all = ["cards", "memory_gib", "price", "time", "bench", "gpus", "nodes", "shard"])]
    scaling: bool,
    #[command(flatten)]
    duration: duration::Args,
    #[command(flatten)]
    ranks: ranks::Args,
    /// One JSON object on stdout instead of tables.
    #[arg(long)]
    json: bool,
}

/// A run on one device, or on the fullest of several.
struct Planned {
    /// `None`: the config's device.
    gpu: Option<Gpu>,
    config: Config,
    target: Target,
    ranks: Ranks,
    settled: Option<Settled>,
    plan: Plan,
    /// Bytes of host memory that a checkpoint's copy takes.
    copied: u64,
    budget: Option<u64>,
    changes: Vec<Change>,
    duration: Option<Duration>,
}

impl Planned {
    fn new(model: &ModelConfig, config: &Config, place: &Place) -> Self {
        let Place { gpu, target, ranks, budget, .. } = *place;
        let mut config = config.clone();
        let rank = Rank { target, world: ranks.world };
        let settled = activations::settle(&mut config, model, rank, place.memory);
        let plan = Plan::new(model, &config, rank);
        let copied = disk::copied(model, &config, rank);
        let changes = budget.map(|budget| advise(model, &config, rank, budget)).unwrap_or_default();
        Self { gpu, config, target, ranks, settled, plan, copied, budget, changes, duration: None }
    }

    fn fits(&self) -> Option<bool> {
        self.budget.map(|budget| self.plan.peak() <= budget)
    }

    fn dollars(&self) -> Option<f64> {
        self.duration.as_ref().and_then(Duration::dollars)
    }
}

/// Where a run would compute.
struct Place {
    gpu: Option<Gpu>,
    target: Target,
    ranks: Ranks,
    /// Bytes of the device, as training knows them.
    memory: Option<u64>,
    /// Bytes that the run can have.
    budget: Option<u64>,
}

pub fn run(args: &Args) -> Result<()> {
    let source = args.config.as_ref().or(args.named.as_ref()).map_or("riskcue-llama3.1-8b", String::as_str);
    let Loaded { mut config, notes, .. } = Loaded::read(source, &args.overrides)?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    if args.memory_gib.is_some_and(|gib| !(gib > 0.0 && gib.is_finite())) {
        return Err(Error::config("--memory-gib", "no size", "above 0", "something has to fit").into());
    }
    if args.cards {
        return cards(&config, args.json);
    }
    if let Some(named) = &args.model {
        (config.model.path, config.model.random) = (Some(named.clone()), None);
    }
    let asked = args.duration.read()?;
    let shape = shape(&config)?;
    if args.scaling {
        let gpu = match asked.cards[..] {
            [] => Gpu::find("--gpu", "h100")?,
            [gpu] => gpu,
            _ => {
                let why = "the table is of cards of one kind";
                return Err(Error::config("--gpu", "several", "one card", why).into());
            }
        };
        return args.ranks.scaling(&shape.model, &config, answers(&config)?, gpu, args.json);
    }
    let mut all = Vec::new();
    for place in places(args, &asked, &mut config)? {
        let mut planned = Planned::new(&shape.model, &config, &place);
        if asked.wanted() {
            if place.target.cuda && place.gpu.is_none() {
                let fix = "Name the card with --gpu";
                return Err(Error::input("--time", "this GPU's rates are not known", fix).into());
            }
            let fits = planned.fits() != Some(false);
            planned.duration = Some(asked.duration(&shape.model, &planned.config, &place, fits)?);
        }
        all.push(planned);
    }
    let cheapest = cheapest(&all);
    let main = cheapest.or_else(|| all.iter().find(|p| p.fits() == Some(true)));
    // Where none fits, the largest is nearest to it.
    let Some(main) = main.or_else(|| all.iter().max_by_key(|planned| planned.budget)) else { return Ok(()) };
    if args.json {
        println!("{:#}", print::json(source, &shape, &all, main, cheapest));
        return Ok(());
    }
    print::heading(source, &shape, main);
    let memory = match main.gpu {
        _ if args.memory_gib.is_some() => "memory given".into(),
        Some(gpu) if !asked.cards.is_empty() => format!("memory of {}", gpu.name),
        _ => "memory free here".into(),
    };
    print::memory(main, &memory);
    if let Some(duration) = &main.duration {
        print::duration(main, duration);
    }
    if all.len() > 1 {
        print::comparison(&all, cheapest);
    }
    Ok(())
}

/// Of those that fit and whose price is known.
fn cheapest(all: &[Planned]) -> Option<&Planned> {
    let fitting = all.iter().filter(|planned| planned.fits() == Some(true) && planned.dollars().is_some());
    fitting.min_by(|a, b| a.dollars().partial_cmp(&b.dollars()).unwrap_or(std::cmp::Ordering::Equal))
}

/// The cards that were named, or else the config's device.
fn places(args: &Args, asked: &Asked, config: &mut Config) -> Result<Vec<Place>> {
    if !asked.cards.is_empty() {
        config.device = DeviceKind::Cuda;
        let target = Target { cuda: true, dtype: config.model.dtype.on(true), answers: answers(config)? };
        let of = |gpu: &Gpu| {
            let ranks = args.ranks.on(config, Some(*gpu), true)?;
            let (memory, budget) = (Some(gpu.memory()), Some(gpu.room()));
            Ok(Place { gpu: Some(*gpu), target, ranks, memory, budget })
        };
        return asked.cards.iter().map(of).collect();
    }
    let Found { target, gpu, free, total } = find(config)?;
    let given = args.memory_gib.map(|gib| (gib * GIB) as u64);
    let ranks = args.ranks.on(config, gpu, target.cuda)?;
    // As training decides it, which knows the whole of its device's memory.
    Ok(vec![Place { gpu, target, ranks, memory: given.or(total), budget: given.or(free) }])
}

fn answers(config: &Config) -> Result<usize> {
    Ok(match config.packs_answers() {
        true => Task::load(&config.task)?.labels().len(),
        false => 0,
    })
}

/// Peaks by way, and the fastest way on each card, in Markdown.
fn cards(config: &Config, as_json: bool) -> Result<()> {
    let rows = cards::rows(config, answers(config)?)?;
    if as_json {
        for row in rows {
            let peaks =
                Way::ALL.iter().zip(row.peaks).map(|(way, peak)| (way.name().to_string(), json!(peak)));
            let fits = CARDS.map(|card| (card.to_string(), json!(row.on(card).map(Way::name))));
            let (peaks, fits) = (peaks.collect(), fits.into_iter().collect());
            let json = json!({
                "model": row.model, "trained": row.trained.name(),
                "peak_bytes": serde_json::Value::Object(peaks), "fits_gb": serde_json::Value::Object(fits),
            });
            println!("{json}");
        }
        return Ok(());
    }
    let line = |cells: &[String]| println!("| {} |", cells.join(" | "));
    let ways = Way::ALL.map(|way| format!("{}, GiB", way.name()));
    let heads = CARDS.map(|card| format!("{card} GB"));
    let first = ["model".to_string(), "trained".into()];
    let head: Vec<String> = first.into_iter().chain(ways).chain(heads).collect();
    line(&head);
    println!("|{}", "---|".repeat(head.len()));
    for row in rows {
        let peaks = row.peaks.map(|peak| format!("{:.1}", peak as f64 / GIB));
        let fits = CARDS.map(|card| row.on(card).map_or("-", Way::name).to_string());
        let first = [row.model.to_string(), row.trained.name().into()];
        line(&first.into_iter().chain(peaks).chain(fits).collect::<Vec<_>>());
    }
    Ok(())
}

struct Shape {
    name: String,
    model: ModelConfig,
    note: &'static str,
}

/// The model that a config names or describes.
fn shape(config: &Config) -> Result<Shape> {
    let Some(named) = &config.model.path else {
        let Some(random) = &config.model.random else {
            let fix = "Add --model with a folder, a hub name or a shape";
            return Err(Error::input("model.path", "is not set", fix).into());
        };
        let model = random_model(random, random.vocab_size, &[0], config.model.max_positions)?;
        return Ok(Shape { name: "model.random".into(), model, note: " (made from the seed)" });
    };
    // A model that is here comes before a shape of its name.
    let known = named.to_str().filter(|_| hub::here(named).is_none()).and_then(shapes::of_model);
    let (model, note) = match known {
        Some(shape) => (shape, " (not here: the shape that is known by its name)"),
        None => (config_json::load(&folder(named, Parts::Config)?.dir)?, ""),
    };
    Ok(Shape { name: named.display().to_string(), model, note })
}

/// The config's device.
struct Found {
    target: Target,
    /// The card, where it is a known one.
    gpu: Option<Gpu>,
    /// Bytes that are free there.
    free: Option<u64>,
    /// Bytes of the device.
    total: Option<u64>,
}

fn find(config: &Config) -> Result<Found> {
    let device = match config.device {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda | DeviceKind::Auto => {
            cuda::device(0).and_then(|device| cuda::describe(&device)).ok()
        }
    };
    let on_cuda = config.device == DeviceKind::Cuda || device.is_some();
    let target = Target { cuda: on_cuda, dtype: config.model.dtype.on(on_cuda), answers: answers(config)? };
    let total = device.as_ref().map(|device| device.memory_total);
    let gpu = device.as_ref().and_then(|device| Gpu::of_driver(&device.name));
    let free = if on_cuda { device.map(|device| device.memory_free) } else { Host::ask().memory_free };
    Ok(Found { target, gpu, free, total })
}
