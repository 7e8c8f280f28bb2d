//! `rlvr predict`: verdicts on rows without labels.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hub::{adapter, folder};
use super::machine;
use super::text::TextArgs;
use crate::config::DeviceKind;
use crate::config::model::DtypeKind;
use crate::data::unlabelled::{Answers, Unlabelled};
use crate::error::Error;
use crate::eval::predict::Predictor;
use crate::eval::threshold::Threshold;
use crate::formats::hf::load_decoder;
use crate::formats::peft;
use crate::hub::Parts;
use crate::task::Task;
use crate::train::place;

/// Rows answered at a time, and written before the next.
const ROWS: usize = 16;

/// Answer rows that need no label, and say of each what the answer means.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr predict runs/demo-001/model new.jsonl --task demo -o verdicts.jsonl")]
pub struct Args {
    /// Folder in HF layout; a run, for its model; a short name, of a folder in checkpoints/; or a hub name: org/name,
    /// org/name@revision.
    model: PathBuf,
    /// Folder with a LoRA adapter in PEFT layout that goes with the model, or a run that has one. A threshold is
    /// then read from there.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Rows: JSON Lines, a JSON list, CSV, TSV or parquet; a label in them is not read.
    data: PathBuf,
    /// A built-in task (riskcue, riskcue-verdict, demo, ...) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    /// JSONL to write, a line for each row as soon as it is answered. Default: stdout.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Flag by the verdict of the answer, although a threshold was saved with the model.
    #[arg(long)]
    no_threshold: bool,
    /// Give every label's exact probability, computed without sampling; the task file needs [answers].
    #[arg(long)]
    probabilities: bool,
    /// A longer prompt is not answered; its line says so.
    #[arg(long, default_value_t = 3072)]
    max_prompt_tokens: usize,
    #[arg(long, default_value_t = 64)]
    max_completion_tokens: usize,
    /// auto takes a CUDA device when the build and the machine have one.
    #[arg(long, value_parser = machine::device(&DeviceKind::ALL), default_value = "auto")]
    device: DeviceKind,
    /// Type of weights and activations; auto is bf16 on a CUDA device and f32 on the CPU.
    #[arg(long, value_parser = machine::dtype(&DtypeKind::COMPUTED), default_value = "auto")]
    dtype: DtypeKind,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

pub fn run(args: &Args) -> Result<()> {
    super::use_threads(args.threads)?;
    if args.max_completion_tokens == 0 {
        return Err(Error::input("--max-completion-tokens", "is 0", "An answer needs tokens").into());
    }
    let opened = place::open(args.device, args.dtype)?;
    let task = Task::load(&args.task)?;
    let model = folder(&args.model, Parts::Model)?;
    let adapter_dir = args.adapter.as_deref().map(adapter).transpose()?;
    let threshold = match args.no_threshold {
        true => None,
        false => Threshold::load(adapter_dir.as_deref().unwrap_or(&model.dir), &task)?,
    };
    let encoder = args.text.encoder(&model.dir)?;
    let encoded = threshold.is_some() || args.probabilities;
    let answers = if encoded { Answers::Encoded } else { Answers::Left };
    let mut rows = Unlabelled::open(&task, &encoder, answers, &args.data)?;
    // Refusals have about the length of the answers that are asked for; a longer one is refused row by row.
    let positions = args.max_prompt_tokens + args.max_completion_tokens.max(128);
    let mut decoder = load_decoder(&model.dir, positions, &opened.place)?;
    if let Some(dir) = &adapter_dir {
        peft::attach(dir, &mut decoder)?;
    }
    if let Some(text) = &opened.fell_back {
        eprintln!("{text}");
    }
    let predictor = Predictor {
        task: &task,
        encoder: &encoder,
        decoder: &decoder,
        threshold: threshold.as_ref(),
        probabilities: args.probabilities,
        max_prompt_tokens: args.max_prompt_tokens,
        max_completion_tokens: args.max_completion_tokens,
    };
    let mut out = output(args.out.as_deref())?;
    let mut marked = 0;
    let place = args.out.clone().unwrap_or_else(|| "stdout".into());
    loop {
        let chunk = rows.next_rows(ROWS)?;
        if chunk.is_empty() {
            break;
        }
        marked += chunk.iter().filter(|row| !row.control_texts.is_empty()).count();
        for prediction in predictor.predict(&chunk)? {
            let mut text = serde_json::to_vec(&prediction).map_err(|e| Error::Compute(e.into()))?;
            text.push(b'\n');
            out.write_all(&text).map_err(Error::io(&place, "write the predictions"))?;
        }
        out.flush().map_err(Error::io(&place, "write the predictions"))?;
    }
    if marked > 0 {
        eprintln!(
            "{marked} rows have a control token in a text, which was read as text: `control_tokens` names it"
        );
    }
    if rows.half_characters > 0 {
        eprintln!("{} rows have half of a character, which became U+FFFD", rows.half_characters);
    }
    Ok(())
}

fn output(path: Option<&Path>) -> Result<Box<dyn Write>> {
    Ok(match path {
        Some(path) => {
            let file = File::create(path).map_err(Error::io(path, "write the predictions"))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(std::io::stdout().lock()),
    })
}
