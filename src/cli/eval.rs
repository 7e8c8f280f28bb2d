//! `rlvr eval`: a model on labelled rows, under the strict and the paper's rule.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hub::folder;
use super::machine::{DeviceArg, DtypeArg};
use super::text::TextArgs;
use crate::config::PackConfig;
use crate::config::sampling::SamplingConfig;
use crate::config::stages::EvalConfig;
use crate::data::{Limits, Source, Targets};
use crate::error::Error;
use crate::eval::{At, Evaluator};
use crate::hub::Parts;
use crate::model::peft;
use crate::observe::{JsonlSink, Sinks, TableRow, results_table};
use crate::task::Task;
use crate::train::materials::load_decoder;
use crate::train::place;

/// Judge a model's completions of labelled rows.
#[derive(clap::Args)]
pub struct Args {
    /// Folder in HF layout, for instance runs/NAME/model, or a hub name: org/name, org/name@revision.
    model: PathBuf,
    /// JSONL rows with their labels.
    data: PathBuf,
    /// Folder with a LoRA adapter in PEFT layout that goes with the model, for instance runs/NAME/adapter.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// A built-in task (riskcue, riskcue-short, demo) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    #[command(flatten)]
    text: TextArgs,
    /// The first N rows only; 0 takes all.
    #[arg(long, default_value_t = 0)]
    max_rows: usize,
    /// Longer prompts are dropped and counted.
    #[arg(long, default_value_t = 3072)]
    max_prompt_tokens: usize,
    #[arg(long, default_value_t = 64)]
    max_completion_tokens: usize,
    /// 0 is greedy; the paper's table is at 0.7.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[arg(long, default_value_t = 1)]
    samples_per_prompt: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// auto takes a CUDA device when the build and the machine have one.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceArg,
    /// Type of weights and activations; auto is bf16 on a CUDA device and f32 on the CPU.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DtypeArg,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print the whole report (per label, confusion matrix, intervals) as JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Write metrics and the report to this file as well.
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let config = EvalConfig {
        every_steps: 0,
        samples_per_prompt: args.samples_per_prompt,
        max_completion_tokens: args.max_completion_tokens,
        sampling: SamplingConfig { temperature: args.temperature, ..SamplingConfig::default() },
    };
    config.validate()?;
    super::use_threads(args.threads)?;
    let opened = place::open(args.device.into(), args.dtype.into())?;
    let task = Task::load(&args.task)?;
    let model = folder(&args.model, Parts::Model)?;
    let encoder = args.text.encoder(&model.dir)?;
    let limits = Limits {
        max_prompt_tokens: args.max_prompt_tokens,
        max_target_tokens: usize::MAX,
        max_rows: args.max_rows,
        targets: Targets::Ignored,
    };
    let dataset = Source { task: &task, encoder: &encoder, limits }.load(&args.data)?;
    for (reason, count) in &dataset.dropped {
        eprintln!("warning: dropped {count} rows: {reason}");
    }
    let longest = args.max_prompt_tokens + args.max_completion_tokens;
    let mut decoder = load_decoder(&model.dir, longest, &opened.place)?;
    if let Some(dir) = &args.adapter {
        peft::attach(dir, &mut decoder)?;
    }
    if let Some(text) = &opened.fell_back {
        eprintln!("{text}");
    }
    let mut sinks = Sinks::default();
    if let Some(path) = &args.metrics {
        sinks.add(JsonlSink::create(path)?);
    }
    let evaluator = Evaluator {
        task: &task,
        encoder: &encoder,
        rows: &dataset.rows,
        config: &config,
        pack: &PackConfig::default(),
        seed: args.seed,
    };
    let report = evaluator.evaluate(&decoder, At { stage: "eval", step: 0 }, &mut sinks)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|e| Error::Compute(e.into()))?);
        return Ok(());
    }
    let name = args.model.file_name().unwrap_or(Path::new("model").as_os_str());
    let metrics = report.metrics().into_iter().collect();
    let row = TableRow { name: name.to_string_lossy().into_owned(), metrics };
    print!("{}", results_table(&[row]));
    let percent = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.3}"));
    println!();
    println!("{} completions, {} of them of risky logs", report.count, percent(report.base_rate));
    if let Some(interval) = &report.strict.accuracy_interval {
        println!("strict accuracy, 95% interval {:.3} to {:.3}", interval.low, interval.high);
    }
    println!(
        "always flag: {}, never flag: {}",
        percent(report.always_flag_accuracy),
        percent(report.never_flag_accuracy)
    );
    Ok(())
}
