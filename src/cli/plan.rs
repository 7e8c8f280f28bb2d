//! `rlvr plan`: whether a training run fits, from config.json alone.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::hub::folder;
use crate::config::{ActivationMemory, Config, DeviceKind, Loaded, Stage};
use crate::error::Error;
use crate::formats::hf::config_json;
use crate::hub::{self, Parts};
use crate::model::config::ModelConfig;
use crate::observe::machine::Host;
use crate::ops::cuda;
use crate::plan::activations::{self, Settled};
use crate::plan::cards::{self, CARDS, Way};
use crate::plan::{Plan, Target, advise, shapes};
use crate::task::Task;
use crate::train::materials::random_model;

const GIB: f64 = (1u64 << 30) as f64;

/// Add up the memory of a training run, phase by phase, without its weights.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr plan riskcue-smollm2-135m --set device=cuda --memory-gib 16")]
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
    #[arg(long, conflicts_with_all = ["model", "memory_gib"])]
    cards: bool,
    /// One JSON object on stdout instead of tables.
    #[arg(long)]
    json: bool,
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
    let Shape { name, model, note } = shape(&config)?;
    let Found { target, free, total } = find(&config)?;
    // As training decides it, which knows the whole of its device's memory.
    let memory = args.memory_gib.map(|gib| (gib * GIB) as u64).or(total);
    let settled = activations::settle(&mut config, &model, target, memory);
    let budget = args.memory_gib.map(|gib| (gib * GIB) as u64).or(free);
    let plan = Plan::new(&model, &config, target);
    let changes = budget.map(|budget| advise(&model, &config, target, budget)).unwrap_or_default();
    let place = format!("{} {}", if target.cuda { "cuda" } else { "cpu" }, target.dtype.as_str());
    if args.json {
        let phases = plan.phases.iter().map(|phase| {
            let items = phase.items.iter().map(|item| (item.what.clone(), item.bytes.into()));
            let items: serde_json::Map<_, _> = items.collect();
            json!({"phase": phase.name, "bytes": phase.bytes(), "items": items})
        });
        let changes = changes.iter().map(|change| json!({"set": change.setting, "peak_bytes": change.peak}));
        let json = json!({
            "model": name, "parameters": plan.parameters, "config": source, "on": place,
            "phases": phases.collect::<Vec<_>>(), "peak_bytes": plan.peak(), "budget_bytes": budget,
            "fits": budget.map(|budget| plan.peak() <= budget), "changes": changes.collect::<Vec<_>>(),
        });
        println!("{json:#}");
        return Ok(());
    }
    let (data, grpo, pack) = (&config.data, &config.grpo, &config.pack);
    println!("model    {name}, {:.3} billion parameters{note}", plan.parameters as f64 / 1e9);
    println!("config   {source}, {place}");
    println!(
        "steps    sft {} rows; grpo {} prompts x {} completions; {} + {} tokens at most",
        config.sft.rows_per_step,
        grpo.prompts_per_step,
        grpo.group_size,
        data.max_prompt_tokens,
        grpo.max_completion_tokens
    );
    println!(
        "packs    {} tokens in training, {} in rollouts",
        pack.max_tokens_per_pack,
        pack.rollout_tokens()
    );
    if let Some(Settled { activations, max_reused_tokens, max_rollout_tokens, .. }) = settled {
        let kept = if activations == ActivationMemory::Keep { "keep" } else { "recompute" };
        println!(
            "auto     pack.activations={kept} pack.max_reused_tokens={max_reused_tokens} \
             pack.max_rollout_tokens={max_rollout_tokens}"
        );
    }
    for phase in &plan.phases {
        println!("\n{:<34} {:9.2} GiB", phase.name, phase.bytes() as f64 / GIB);
        for item in &phase.items {
            println!("    {:<30} {:9.2}", item.what, item.bytes as f64 / GIB);
        }
    }
    println!("\n{:<34} {:9.2} GiB", "peak", plan.peak() as f64 / GIB);
    let Some(budget) = budget else {
        println!("Add --memory-gib N to compare it with a device's memory.");
        return Ok(());
    };
    let what = if args.memory_gib.is_some() { "given" } else { "free here" };
    println!("{:<34} {:9.2} GiB", format!("memory {what}"), budget as f64 / GIB);
    if plan.peak() <= budget {
        println!("It fits.");
        return Ok(());
    }
    println!("\nIt does not fit. What helps, each on top of those before it:");
    for change in &changes {
        println!(
            "    --set {:<60} {:9.2} GiB",
            change.setting.replace(' ', " --set "),
            change.peak as f64 / GIB
        );
    }
    if changes.last().is_none_or(|last| last.peak > budget) {
        println!(
            "That is not enough: train an adapter (--set lora.rank=16), lower data.max_prompt_tokens or \
             *.max_completion_tokens, or choose a smaller model."
        );
    }
    Ok(())
}

fn answers(config: &Config) -> Result<usize> {
    Ok(match config.stages.contains(&Stage::Enumerate) {
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

/// Where the run would compute.
struct Found {
    target: Target,
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
    let free = if on_cuda { device.map(|device| device.memory_free) } else { Host::ask().memory_free };
    Ok(Found { target, free, total })
}
