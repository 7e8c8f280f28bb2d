//! `rlvr predict`: verdicts on rows without labels.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::hub::folder;
use super::machine::{DeviceArg, DtypeArg};
use super::text::TextArgs;
use crate::config::PackConfig;
use crate::data::EncodedRow;
use crate::data::unlabelled::{Answers, Unlabelled};
use crate::error::Error;
use crate::eval::enumerate::Enumerator;
use crate::eval::threshold::{Scorer, Threshold};
use crate::formats::hf::load_decoder;
use crate::formats::peft;
use crate::hub::Parts;
use crate::model::decoder::Decoder;
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::rollout::judge::judge;
use crate::task::{LabelId, Task, Verdict};
use crate::text::PromptEncoder;
use crate::train::place;
use crate::types::FinishReason;

/// Rows answered at a time, and written before the next.
const ROWS: usize = 16;

/// Answer rows that need no label, and say of each what the answer means.
#[derive(clap::Args)]
pub struct Args {
    /// Folder in HF layout, for instance runs/NAME/model, or a hub name: org/name, org/name@revision.
    model: PathBuf,
    /// Folder with a LoRA adapter in PEFT layout that goes with the model, for instance runs/NAME/adapter. A threshold is
    /// then read from there.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// JSONL rows; a label in them is not read.
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
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceArg,
    /// Type of weights and activations; auto is bf16 on a CUDA device and f32 on the CPU.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DtypeArg,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// One line of the output.
#[derive(Serialize)]
struct Line<'a> {
    /// 1-based line of the input.
    line: usize,
    /// What the answer says: a label, or `malformed`.
    verdict: Option<&'a str>,
    /// By the threshold where there is one, else by the verdict.
    flagged: Option<bool>,
    /// The answer's label; where the threshold decides otherwise, the likeliest label that agrees with it. None of a
    /// malformed answer that is not flagged.
    label: Option<&'a str>,
    /// Probability of a refusal; none without a threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// Of every label, summing to 1; with --probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    probabilities: Option<BTreeMap<&'a str, f64>>,
    completion: String,
    /// `stop`, or `length` where the token budget cut the answer.
    finish: Option<FinishReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    super::use_threads(args.threads)?;
    if args.max_completion_tokens == 0 {
        return Err(Error::input("--max-completion-tokens", "is 0", "An answer needs tokens").into());
    }
    let opened = place::open(args.device.into(), args.dtype.into())?;
    let task = Task::load(&args.task)?;
    let model = folder(&args.model, Parts::Model)?;
    let threshold = match args.no_threshold {
        true => None,
        false => Threshold::load(args.adapter.as_deref().unwrap_or(&model.dir), &task)?,
    };
    let encoder = args.text.encoder(&model.dir)?;
    let encoded = threshold.is_some() || args.probabilities;
    let answers = if encoded { Answers::Encoded } else { Answers::Left };
    let mut rows = Unlabelled::open(&task, &encoder, answers, &args.data)?;
    // Refusals have about the length of the answers that are asked for; a longer one is refused row by row.
    let positions = args.max_prompt_tokens + args.max_completion_tokens.max(128);
    let mut decoder = load_decoder(&model.dir, positions, &opened.place)?;
    if let Some(dir) = &args.adapter {
        peft::attach(dir, &mut decoder)?;
    }
    if let Some(text) = &opened.fell_back {
        eprintln!("{text}");
    }
    let predictor =
        Predictor { task: &task, encoder: &encoder, decoder: &decoder, threshold: threshold.as_ref(), args };
    let mut out = output(args.out.as_deref())?;
    let place = args.out.clone().unwrap_or_else(|| "stdout".into());
    loop {
        let chunk = rows.next_rows(ROWS)?;
        if chunk.is_empty() {
            return Ok(());
        }
        for line in predictor.lines(&chunk)? {
            let mut text = serde_json::to_vec(&line).map_err(|e| Error::Compute(e.into()))?;
            text.push(b'\n');
            out.write_all(&text).map_err(Error::io(&place, "write the predictions"))?;
        }
        out.flush().map_err(Error::io(&place, "write the predictions"))?;
    }
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

struct Predictor<'a> {
    task: &'a Task,
    encoder: &'a PromptEncoder,
    decoder: &'a Decoder,
    threshold: Option<&'a Threshold>,
    args: &'a Args,
}

impl<'a> Predictor<'a> {
    fn lines(&self, rows: &[EncodedRow]) -> Result<Vec<Line<'a>>> {
        let most = self.args.max_prompt_tokens;
        let short: Vec<&EncodedRow> = rows.iter().filter(|row| row.prompt.token_ids.len() <= most).collect();
        let pack = PackConfig::default().max_rollout_tokens;
        let completions = Completions::greedy(self.args.max_completion_tokens);
        let engine = Engine::new(self.decoder, self.encoder.stop_tokens(), completions, pack);
        let requests: Vec<Request> =
            short.iter().map(|row| Request { prompt: &row.prompt, sample_id: row.line as u32 }).collect();
        let groups = engine.generate(&requests, Draws::NONE)?.groups;
        let scores = match self.threshold {
            Some(threshold) => {
                let (task, decoder, kind) = (self.task, self.decoder, threshold.score);
                let scorer = Scorer { decoder, task, kind, max_tokens_per_pack: pack };
                scorer.scores(&short)?.into_iter().map(Some).collect()
            }
            None => vec![None; short.len()],
        };
        let exact = match self.args.probabilities {
            true => self.enumerator().label_probabilities(&short)?.into_iter().map(Some).collect(),
            false => vec![None; short.len()],
        };
        let mut answered = short.iter().zip(groups).zip(scores).zip(exact);
        let mut lines = Vec::with_capacity(rows.len());
        for row in rows {
            let tokens = row.prompt.token_ids.len();
            if tokens > most {
                let error = format!("the prompt has {tokens} tokens, more than --max-prompt-tokens {most}");
                lines.push(Line {
                    line: row.line,
                    verdict: None,
                    flagged: None,
                    label: None,
                    score: None,
                    probabilities: None,
                    completion: String::new(),
                    finish: None,
                    error: Some(error),
                });
                continue;
            }
            let Some((((row, group), score), exact)) = answered.next() else { break };
            let Some(rollout) = group.rollouts.first() else { continue };
            let judged = judge(self.task, self.encoder, LabelId::NEGATIVE, rollout)?;
            let flagged = match (self.threshold, score) {
                (Some(threshold), Some(score)) => score >= threshold.point.threshold,
                _ => judged.verdict.is_positive(),
            };
            let label = match judged.verdict {
                Verdict::Positive(label) if flagged => Some(label),
                _ if flagged => self.likeliest(row)?,
                Verdict::Malformed(_) if self.threshold.is_none() => None,
                _ => Some(LabelId::NEGATIVE),
            };
            lines.push(Line {
                line: row.line,
                verdict: Some(match judged.verdict {
                    Verdict::Positive(label) => self.name(label),
                    Verdict::Negative => self.name(LabelId::NEGATIVE),
                    Verdict::Malformed(_) => "malformed",
                }),
                flagged: Some(flagged),
                label: label.map(|label| self.name(label)),
                score,
                probabilities: exact
                    .map(|all| all.into_iter().map(|label| (self.name(label.label), label.p)).collect()),
                completion: judged.completion,
                finish: Some(rollout.finish),
                error: None,
            });
        }
        Ok(lines)
    }

    fn name(&self, label: LabelId) -> &'a str {
        self.task.labels().get(label.index()).map_or("", String::as_str)
    }

    fn enumerator(&self) -> Enumerator<'a> {
        let max_tokens_per_pack = PackConfig::default().max_rollout_tokens;
        Enumerator { decoder: self.decoder, task: self.task, temperature: 1.0, max_tokens_per_pack }
    }

    /// The positive label with the likeliest refusal.
    fn likeliest(&self, row: &EncodedRow) -> Result<Option<LabelId>> {
        let all = self.enumerator().label_probabilities(&[row])?;
        let positive = all.into_iter().flatten().filter(|label| !label.label.is_negative());
        Ok(positive.max_by(|a, b| a.logp.total_cmp(&b.logp)).map(|label| label.label))
    }
}
