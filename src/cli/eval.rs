//! `rlvr eval`: a model on labelled rows, or recorded answers, under the strict and the paper's rule.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::hub::{adapter, folder, rows};
use super::machine;
use super::of_run::Given;
use super::partial::{self, Lines};
use super::text::TextArgs;
use crate::config::eval::EvalConfig;
use crate::config::model::DtypeKind;
use crate::config::sampling::SamplingConfig;
use crate::config::{DeviceKind, PackConfig};
use crate::data::predictions::{Predictions, field_of_rows};
use crate::data::{EncodedRow, Limits, Source, Targets};
use crate::error::Error;
use crate::eval::enumerate::Enumerator;
use crate::eval::exact::Exact;
use crate::eval::roc::{OperatingPoint, Scored};
use crate::eval::threshold::{ScoreKind, Scorer, Threshold};
use crate::eval::{At, Evaluator, Summary, exact_text, judge_recorded, summary_text, threshold_text};
use crate::formats::hf::load_decoder;
use crate::formats::peft;
use crate::hub::Parts;
use crate::model::decoder::Decoder;
use crate::observe::{JsonlSink, SampleRecord, Sinks, WorkDisplay};
use crate::run::replace_file;
use crate::stop;
use crate::task::Task;
use crate::text::PromptEncoder;
use crate::train::place;

/// Judge a model's completions of labelled rows, or answers that were recorded.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr eval runs/demo-001/model valid.jsonl --task demo")]
pub struct Args {
    /// Folder in HF layout; a run, for its model; a short name, of a folder in checkpoints/; or a hub name: org/name,
    /// org/name@revision.
    #[arg(required_unless_present = "predictions")]
    model: Option<PathBuf>,
    /// Rows with their labels: JSON Lines, a JSON list, CSV, TSV or parquet, or hf:org/name:split of the hub.
    #[arg(required_unless_present = "predictions")]
    data: Option<PathBuf>,
    /// Folder with a LoRA adapter in PEFT layout that goes with the model, or a run that has one.
    #[arg(long, value_name = "DIR", conflicts_with = "predictions")]
    adapter: Option<PathBuf>,
    /// Recorded answers or whole conversations instead of a model: a data file, a JSON object of lists, or a file of a run's samples/,
    /// whose last step is read, or with FILE@STEP that one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "data", "tokenizer", "chat_template", "template_args", "samples"])]
    predictions: Option<PathBuf>,
    /// Score the values of this field of the rows apart, for instance metadata.server_path.
    #[arg(long, value_name = "FIELD")]
    group_by: Option<String>,
    /// A built-in task (riskcue, riskcue-verdict, demo, ...) or a task file. Default: that of MODEL's run; riskcue where it is of
    /// none.
    #[arg(long)]
    task: Option<String>,
    #[command(flatten)]
    text: TextArgs,
    /// The first N rows only; 0 takes all.
    #[arg(long, default_value_t = 0)]
    max_rows: usize,
    /// Longer prompts are dropped and counted.
    #[arg(long, default_value_t = 3072)]
    max_prompt_tokens: usize,
    /// Default: that of the evaluations of MODEL's run; 64 where it is of none.
    #[arg(long)]
    max_completion_tokens: Option<usize>,
    /// 0 is greedy; the paper's table is at 0.7.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Answers to each prompt; wants a temperature above 0.
    #[arg(long, value_name = "K", default_value_t = 1, alias = "samples-per-prompt")]
    samples: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// auto takes a CUDA device when the build and the machine have one.
    #[arg(long, value_parser = machine::device(&DeviceKind::ALL), default_value = "auto")]
    device: DeviceKind,
    /// Type of weights and activations; auto is bf16 on a CUDA device and f32 on the CPU.
    #[arg(long, value_parser = machine::dtype(&DtypeKind::COMPUTED), default_value = "auto")]
    dtype: DtypeKind,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Instead of judging answers, score each row by the probability of a flag, which is any answer but the task's negative
    /// label's, and save in the model's folder (the adapter's with --adapter) the threshold with the most recall at
    /// --max-fpr. Give validation rows, never the test set.
    #[arg(long, conflicts_with_all = ["predictions", "samples", "group_by"])]
    fit_threshold: bool,
    /// Instead of judging answers, flag by the threshold that was saved with the model.
    #[arg(long, conflicts_with_all = ["predictions", "samples", "group_by", "fit_threshold"])]
    use_threshold: bool,
    /// Instead of generating, take the likeliest of the answers that the task file lists: one forward pass, no decode. Adds
    /// AUC, cross-entropy, and a threshold saved with `--score labels`. No answer is malformed then.
    #[arg(long, conflicts_with_all = ["predictions", "samples", "temperature", "fit_threshold", "use_threshold", "metrics"])]
    exact: bool,
    /// False-positive rate that --fit-threshold may reach on DATA.
    #[arg(long, value_name = "RATE", requires = "fit_threshold", default_value_t = 0.05)]
    max_fpr: f64,
    /// Probability of a flag's first token, or of the exact answers of all labels that flag.
    #[arg(long, value_enum, requires = "fit_threshold", default_value = "first-token")]
    score: ScoreArg,
    /// Write every answer with its verdict to this file, each as soon as it is judged; `rlvr eval --predictions` reads it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["predictions", "fit_threshold", "use_threshold", "exact"])]
    answers: Option<PathBuf>,
    /// Keep the answers in FILE.partial of --answers that an earlier try of the same model, data and flags has made.
    #[arg(long, value_name = "auto", value_parser = ["auto"], requires = "answers")]
    resume: Option<String>,
    /// Print the whole report as JSON instead of the tables.
    #[arg(long)]
    json: bool,
    /// Write the whole report to this JSON file as well.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write metrics and the report to this file as well.
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ScoreArg {
    FirstToken,
    Labels,
}

impl From<ScoreArg> for ScoreKind {
    fn from(arg: ScoreArg) -> Self {
        match arg {
            ScoreArg::FirstToken => Self::FirstToken,
            ScoreArg::Labels => Self::Labels,
        }
    }
}

impl Args {
    fn given(&self) -> Given<'_> {
        Given { model: self.model.as_deref(), adapter: self.adapter.as_deref() }
    }

    fn adapter(&self) -> Result<Option<PathBuf>> {
        Ok(self.adapter.as_deref().map(adapter).transpose()?)
    }
}

pub fn run(args: &Args) -> Result<()> {
    stop::heed();
    super::ranks::refuse("eval")?;
    let task = args.given().task(args.task.as_deref())?;
    let data = args.data.as_deref().map(rows).transpose()?;
    if let (true, Some(model), Some(data)) = (args.fit_threshold || args.use_threshold, &args.model, &data) {
        return threshold(args, &task, model, data);
    }
    if let (true, Some(model), Some(data)) = (args.exact, &args.model, &data) {
        let found = exact(args, &task, model, data)?;
        return show(args, &found, || exact_text(&found));
    }
    let summary = match (&args.predictions, &args.model, &data) {
        (Some(file), ..) => recorded(args, &task, file)?,
        (None, Some(model), Some(data)) => of_model(args, &task, model, data)?,
        // clap asks for them.
        (None, ..) => {
            return Err(Error::input("rlvr eval", "has nothing to judge", "Give MODEL and DATA").into());
        }
    };
    show(args, &summary, || summary_text(&summary))
}

/// Writes and prints `found` as the flags want it.
fn show(args: &Args, found: &impl Serialize, text: impl Fn() -> String) -> Result<()> {
    let json = || serde_json::to_string_pretty(found).map_err(|e| Error::Compute(e.into()));
    if let Some(path) = &args.out {
        replace_file(path, json()?.as_bytes())?;
    }
    if args.json {
        println!("{}", json()?);
    } else {
        print!("{}", text());
    }
    Ok(())
}

/// Answers from a file.
fn recorded(args: &Args, task: &Task, file: &Path) -> Result<Summary> {
    let found = Predictions::load(task, file, args.group_by.as_deref())?;
    found.of_steps(file).into_iter().for_each(|text| eprintln!("note: {text}"));
    for (line, why) in found.skipped.iter().take(SHOWN) {
        eprintln!("warning: {}:{line}: not counted: the conversation {why}", file.display());
    }
    if let Some((line, why)) = found.failed.first() {
        let count = found.failed.len();
        eprintln!("warning: {count} requests failed and are not counted, the first in line {line}: {why:?}");
    }
    if found.skipped.len() > SHOWN {
        eprintln!("warning: {} more conversations are not counted", found.skipped.len() - SHOWN);
    }
    let unasked = found.rows.iter().filter(|row| row.evidence.is_none()).count();
    if task.has_grounded() && unasked > 0 {
        eprintln!(
            "warning: {unasked} rows have nothing at [grounded]'s paths: their benign answers are judged by their form alone"
        );
    }
    let passed_over = found.rows.iter().filter(|row| row.passed_over).count();
    if passed_over > 0 {
        eprintln!(
            "{passed_over} conversations went on after a risky log: missed, whatever their last answer says"
        );
    }
    let rows: Vec<_> =
        found.rows.into_iter().take(if args.max_rows == 0 { usize::MAX } else { args.max_rows }).collect();
    Ok(Summary::new(task, &judge_recorded(task, &rows)))
}

const SHOWN: usize = 20;

/// A model and the rows to hold it against.
struct Subject {
    model: PathBuf,
    /// The adapter's folder where there is one, else the model's.
    dir: PathBuf,
    encoder: PromptEncoder,
    rows: Vec<EncodedRow>,
    decoder: Decoder,
}

impl Subject {
    fn open(args: &Args, task: &Task, model: &Path, data: &Path, targets: Targets) -> Result<Self> {
        super::use_threads(args.threads)?;
        let mut opened = place::open(args.device, args.dtype)?;
        let model = folder(model, Parts::Model)?;
        let encoder = args.text.encoder(&model.dir)?;
        opened.place.missing = encoder.tokenizer().missing_ids();
        let limits = Limits {
            max_prompt_tokens: args.max_prompt_tokens,
            max_target_tokens: usize::MAX,
            max_rows: args.max_rows,
            targets,
        };
        let mut watch = WorkDisplay::watch("tokenising", "rows");
        let dataset =
            Source { task, encoder: &encoder, limits, distill: None }.load_watched(data, &mut watch)?;
        if dataset.account.dropped() > 0 {
            eprintln!("warning: {}", dataset.account.say("rows", task, &limits).0);
        } else if dataset.account.has_remarks() {
            eprintln!("{}", dataset.account.say("rows", task, &limits).0);
        }
        let answers = dataset.rows.iter().flat_map(|row| &row.answers).map(|answer| answer.token_ids.len());
        let room =
            answers.max().unwrap_or(0).max(args.given().max_completion_tokens(args.max_completion_tokens)?);
        let mut decoder = load_decoder(&model.dir, args.max_prompt_tokens + room, &opened.place)?;
        let adapter = args.adapter()?;
        if let Some(dir) = &adapter {
            peft::attach(dir, &mut decoder)?;
        }
        if let Some(text) = &opened.fell_back {
            eprintln!("{text}");
        }
        let dir = adapter.unwrap_or_else(|| model.dir.clone());
        Ok(Self { model: model.dir, dir, encoder, rows: dataset.rows, decoder })
    }

    /// Each row's value of --group-by; empty without it.
    fn groups(&self, args: &Args, data: &Path) -> Result<Vec<String>> {
        match &args.group_by {
            Some(field) => Ok(field_of_rows(data, field, &self.rows)?),
            None => Ok(Vec::new()),
        }
    }
}

fn of_model(args: &Args, task: &Task, model: &Path, data: &Path) -> Result<Summary> {
    let config = EvalConfig {
        every_steps: 0,
        samples_per_prompt: args.samples,
        max_completion_tokens: args.given().max_completion_tokens(args.max_completion_tokens)?,
        sampling: SamplingConfig { temperature: args.temperature, ..SamplingConfig::default() },
        ..EvalConfig::default()
    };
    if args.samples > 1 && args.temperature == 0.0 {
        let problem = "greedy answers to one prompt are all equal";
        return Err(Error::input("--samples", problem, "Add --temperature 0.7, or ask for one").into());
    }
    config.validate()?;
    let subject = Subject::open(args, task, model, data, Targets::Ignored)?;
    let groups = subject.groups(args, data)?;
    let mut sinks = Sinks::default();
    sinks.add(WorkDisplay::default());
    if let Some(path) = &args.metrics {
        sinks.add(JsonlSink::create(path)?);
    }
    let evaluator = Evaluator {
        task,
        encoder: &subject.encoder,
        rows: &subject.rows,
        config: &config,
        pack: &PackConfig::default(),
        seed: args.seed,
    };
    let at = At { stage: "eval", step: 0 };
    let of = args.resume.as_ref().map(|_| identity(args, &config, &subject, data)).transpose()?;
    let (mut lines, kept) = match &args.answers {
        None => (None, Vec::new()),
        Some(path) => {
            let ends = evaluator.call_ends();
            let whole = |count| {
                let ends = ends.iter().map(|end| end * config.samples_per_prompt);
                ends.take_while(|end| *end <= count).last().unwrap_or(0)
            };
            let (lines, kept) = Lines::open(Some(path), of.as_ref(), whole)?;
            (Some(lines), kept)
        }
    };
    if !kept.is_empty() {
        eprintln!("{} answers are there already", kept.len());
    }
    let kept = kept.into_iter().map(serde_json::from_value).collect::<serde_json::Result<Vec<_>>>();
    let kept =
        kept.map_err(|e| Error::input("--resume", format!("{e}"), "Remove FILE.partial and start again"))?;
    let each = |answers: &[SampleRecord]| {
        let Some(lines) = &mut lines else { return Ok(()) };
        answers.iter().try_for_each(|answer| lines.write(answer))?;
        lines.flush()
    };
    let mut judgements = evaluator.judgements(&subject.decoder, at, &mut sinks, kept, each)?;
    if let Some(lines) = lines {
        lines.finish()?;
    }
    for judgement in &mut judgements {
        judgement.group = groups.get(judgement.prompt).cloned();
    }
    Ok(Summary::new(task, &judgements))
}

/// What the answers depend on.
fn identity(args: &Args, config: &EvalConfig, subject: &Subject, data: &Path) -> Result<serde_json::Value> {
    let task = args.given().task_source(args.task.as_deref())?;
    let folders: Vec<&Path> =
        [Some(subject.model.as_path()), args.adapter.as_ref().map(|_| subject.dir.as_path())]
            .into_iter()
            .flatten()
            .collect();
    let flags = serde_json::json!({
        "task": Task::text(&task)?, "text": format!("{:?}", args.text), "temperature": args.temperature,
        "samples": args.samples, "seed": args.seed, "max_rows": args.max_rows,
        "max_prompt_tokens": args.max_prompt_tokens, "max_completion_tokens": config.max_completion_tokens,
        "dtype": args.dtype.to_string(),
    });
    Ok(partial::identity(data, &folders, args.text.files(), flags)?)
}

/// Fits a threshold, or holds the saved one against other rows.
fn threshold(args: &Args, task: &Task, model: &Path, data: &Path) -> Result<()> {
    let saved = match args.fit_threshold {
        true => None,
        false => {
            let dir = match args.adapter()? {
                Some(adapter) => adapter,
                None => folder(model, Parts::Model)?.dir,
            };
            let fix = "Fit one with --fit-threshold on validation rows";
            let absent = || Error::input(Threshold::path(&dir).display(), "is not there", fix);
            Some(Threshold::load(&dir, task)?.ok_or_else(absent)?)
        }
    };
    let subject = Subject::open(args, task, model, data, Targets::Answers)?;
    let kind = saved.as_ref().map_or(args.score.into(), |saved| saved.score);
    let max_tokens_per_pack = PackConfig::ROLLOUT_TOKENS;
    let scorer = Scorer { decoder: &subject.decoder, task, kind, max_tokens_per_pack };
    let rows: Vec<&EncodedRow> = subject.rows.iter().collect();
    let scores = scorer.scores(&rows)?;
    let risky = rows.iter().map(|row| !row.gold.is_negative());
    let scored: Vec<Scored> =
        scores.into_iter().zip(risky).map(|(score, risky)| Scored { score, risky }).collect();
    let mut found = Threshold::fit(task, kind, &scored, args.max_fpr, data)?;
    if let (None, Some(text)) = (&saved, args.given().trained_on(task, data)) {
        eprintln!("warning: {text}");
    }
    let said = match &saved {
        None => {
            found.save(&subject.dir)?;
            format!("saved in {}", Threshold::path(&subject.dir).display())
        }
        Some(saved) => {
            found.point = OperatingPoint::at(&scored, saved.point.threshold)?;
            found.max_false_positive_rate = saved.max_false_positive_rate;
            format!(
                "fitted on {} for a false-positive rate of {}",
                saved.data.display(),
                saved.max_false_positive_rate
            )
        }
    };
    show(args, &found, || format!("{}{said}\n", threshold_text(&found, task)))
}

fn exact(args: &Args, task: &Task, model: &Path, data: &Path) -> Result<Exact> {
    let subject = Subject::open(args, task, model, data, Targets::Answers)?;
    let threshold = Threshold::load(&subject.dir, task)?;
    let enumerator = Enumerator {
        decoder: &subject.decoder,
        task,
        temperature: 1.0,
        max_tokens_per_pack: PackConfig::ROLLOUT_TOKENS,
    };
    let groups = subject.groups(args, data)?;
    Ok(Exact::new(&enumerator, &subject.rows, &groups, threshold.as_ref())?)
}
