//! `rlvr predict`: verdicts on rows without labels.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use super::hub::{adapter, folder, rows};
use super::machine;
use super::of_run::Given;
use super::partial::{self, Lines};
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
use crate::stop;
use crate::task::Task;
use crate::train::place;

/// Rows answered at a time, and written before the next.
const ROWS: usize = 16;

/// Answer rows that need no label, and say of each what the answer means.
#[derive(clap::Args)]
#[command(
    after_help = "Example: rlvr predict runs/demo-001/model new.jsonl --task demo -o verdicts.jsonl\n\nAs a gate: rlvr predict \
    runs/demo-001 - --task demo --gate < rows.jsonl > verdicts.jsonl && let-through"
)]
pub struct Args {
    /// Folder in HF layout; a run, for its model; a short name, of a folder in checkpoints/; or a hub name: org/name,
    /// org/name@revision.
    model: PathBuf,
    /// Folder with a LoRA adapter in PEFT layout that goes with the model, or a run that has one. A threshold is
    /// then read from there.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Rows: JSON Lines, a JSON list, CSV, TSV or parquet, hf:org/name:split of the hub, `-` for those of stdin; a label in
    /// them is not read.
    data: PathBuf,
    /// A built-in task (riskcue, riskcue-verdict, demo, ...) or a task file. Default: that of MODEL's run; riskcue where it is of
    /// none.
    #[arg(long)]
    task: Option<String>,
    /// JSONL to write, a line for each row; the file has its name once it is whole. Default: stdout, each row as soon as it is
    /// answered.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep the rows in FILE.partial that an earlier try of the same model, data and flags has answered.
    #[arg(long, value_name = "auto", value_parser = ["auto"], requires = "out")]
    resume: Option<String>,
    #[command(flatten)]
    text: TextArgs,
    /// Flag by the verdict of the answer, although a threshold was saved with the model.
    #[arg(long)]
    no_threshold: bool,
    /// Give every label's exact probability, computed without sampling; the task file needs [answers].
    #[arg(long)]
    probabilities: bool,
    /// End with exit code 3 unless every row passes: is answered with a label, and not flagged. Without rows it is 2.
    #[arg(long)]
    pub(super) gate: bool,
    /// A longer prompt is not answered; its line says so.
    #[arg(long, default_value_t = 3072)]
    max_prompt_tokens: usize,
    /// Default: that of the evaluations of MODEL's run; 64 where it is of none.
    #[arg(long)]
    max_completion_tokens: Option<usize>,
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

/// Exit code of a gate that stays shut.
const SHUT: u8 = 3;

pub fn run(args: &Args) -> Result<ExitCode> {
    stop::heed();
    super::ranks::refuse("predict")?;
    super::use_threads(args.threads)?;
    let given = Given { model: Some(&args.model), adapter: args.adapter.as_deref() };
    let max_completion_tokens = given.max_completion_tokens(args.max_completion_tokens)?;
    if max_completion_tokens == 0 {
        return Err(Error::input("--max-completion-tokens", "is 0", "An answer needs tokens").into());
    }
    let mut opened = place::open(args.device, args.dtype)?;
    let task = given.task(args.task.as_deref())?;
    let model = folder(&args.model, Parts::Model)?;
    let adapter_dir = args.adapter.as_deref().map(adapter).transpose()?;
    let threshold = match args.no_threshold {
        true => None,
        false => Threshold::load(adapter_dir.as_deref().unwrap_or(&model.dir), &task)?,
    };
    let encoder = args.text.encoder(&model.dir)?;
    opened.place.missing = encoder.tokenizer().missing_ids();
    let encoded = threshold.is_some() || args.probabilities;
    let answers = if encoded { Answers::Encoded } else { Answers::Left };
    let data = if args.data == Path::new("-") { "/dev/stdin".into() } else { rows(&args.data)? };
    let mut rows = Unlabelled::open(&task, &encoder, answers, args.max_prompt_tokens, &data)?;
    // Refusals have about the length of the answers that are asked for; a longer one is refused row by row.
    let positions = args.max_prompt_tokens + max_completion_tokens.max(128);
    let mut decoder = load_decoder(&model.dir, positions, &opened.place)?;
    if let Some(dir) = &adapter_dir {
        peft::attach(dir, &mut decoder)?;
    }
    if let Some(threshold) = &threshold {
        let at = threshold.point.threshold;
        eprintln!(
            "flagged is what scores {at:.4} or more, by its threshold.json (--no-threshold: by the answer)"
        );
    }
    if let Some(text) = &opened.fell_back {
        eprintln!("{text}");
    }
    let room = decoder.max_positions().saturating_sub(max_completion_tokens);
    let predictor = Predictor {
        task: &task,
        encoder: &encoder,
        decoder: &decoder,
        threshold: threshold.as_ref(),
        probabilities: args.probabilities,
        max_prompt_tokens: args.max_prompt_tokens.min(room),
        max_completion_tokens,
    };
    let of = match &args.resume {
        Some(_) => Some(identity(
            args,
            &given.task_source(args.task.as_deref())?,
            &model.dir,
            adapter_dir.as_deref(),
            &data,
        )?),
        None => None,
    };
    let (mut out, kept) = Lines::open(args.out.as_deref(), of.as_ref(), |count| count / ROWS * ROWS)?;
    if !kept.is_empty() {
        eprintln!("{} rows are answered already", kept.len());
    }
    let mut kept = kept.into_iter();
    let mut marked = 0;
    let (mut answered, mut passed) = (0, 0);
    loop {
        let chunk = rows.next_rows(ROWS)?;
        if chunk.is_empty() {
            break;
        }
        marked += chunk.iter().filter(|row| !row.control_texts.is_empty()).count();
        if kept.len() > 0 {
            let earlier = kept.by_ref().take(chunk.len());
            passed += earlier.filter(|line| line["flagged"] == false && line["label"].is_string()).count();
            answered += chunk.len();
            continue;
        }
        for prediction in predictor.predict(&chunk)? {
            answered += 1;
            passed += usize::from(prediction.passes());
            out.write(&prediction)?;
        }
        out.flush()?;
    }
    out.finish()?;
    if marked > 0 {
        eprintln!(
            "{marked} rows have a control token in a text, which was read as text: `control_tokens` names it"
        );
    }
    if rows.half_characters > 0 {
        eprintln!("{} rows have half of a character, which became U+FFFD", rows.half_characters);
    }
    if args.gate && answered == 0 {
        let fix = "A gate needs rows to judge; look at what should have written them";
        return Err(Error::input(data.display(), "has no rows", fix).into());
    }
    Ok(if args.gate && passed < answered { ExitCode::from(SHUT) } else { ExitCode::SUCCESS })
}

/// What the answers depend on.
fn identity(
    args: &Args,
    task: &str,
    model: &Path,
    adapter: Option<&Path>,
    data: &Path,
) -> Result<serde_json::Value> {
    let folders: Vec<&Path> = [Some(model), adapter].into_iter().flatten().collect();
    let Args { no_threshold, probabilities, max_prompt_tokens, max_completion_tokens, .. } = args;
    let flags = serde_json::json!({
        "task": Task::text(task)?, "text": format!("{:?}", args.text), "no_threshold": no_threshold,
        "probabilities": probabilities, "max_prompt_tokens": max_prompt_tokens,
        "max_completion_tokens": max_completion_tokens, "dtype": args.dtype.to_string(),
    });
    Ok(partial::identity(data, &folders, args.text.files(), flags)?)
}
