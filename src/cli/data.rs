//! `rlvr data`: look at data before training on it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

use super::hub::folder;
use crate::config::data::DataConfig;
use crate::data::check::{Check, Quantiles, Report};
use crate::data::jsonl::row_at;
use crate::data::{Limits, Targets};
use crate::error::Error;
use crate::hub::Parts;
use crate::task::{Outcome, Task};
use crate::text::{Date, EncoderFiles, EndOfTurnSource, PromptEncoder};
use crate::types::FinishReason;

/// Check, show and make data files.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Data,
}

#[derive(Debug, Subcommand)]
enum Data {
    Check(CheckArgs),
    Preview(PreviewArgs),
    Synth(super::data_synth::Args),
}

pub fn run(args: &Args) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match &args.command {
        Data::Check(args) => check(args, &mut out),
        Data::Synth(args) => super::data_synth::run(args, &mut out),
        Data::Preview(args) => {
            let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            preview(args, if colour { Mark::COLOUR } else { Mark::BRACKETS }, &mut out)
        }
    }
}

/// Which model's tokenizer and chat template; the keys of `[model]` in a config.
#[derive(Debug, clap::Args)]
struct TextArgs {
    /// Folder with the tokenizer, when it is not the model's own.
    #[arg(long, value_name = "DIR", requires = "model")]
    tokenizer: Option<PathBuf>,
    /// Jinja file in place of the tokenizer's chat template.
    #[arg(long, value_name = "FILE", requires = "model")]
    chat_template: Option<PathBuf>,
}

impl TextArgs {
    fn encoder(&self, model: &Path) -> Result<PromptEncoder> {
        let model = folder(model, Parts::Text)?.dir;
        let tokenizer = self.tokenizer.as_deref().map(|path| folder(path, Parts::Text)).transpose()?;
        Ok(PromptEncoder::load(&EncoderFiles {
            model_dir: &model,
            tokenizer_dir: tokenizer.as_ref().map(|found| found.dir.as_path()),
            chat_template: self.chat_template.as_deref(),
            date: Date::default(),
        })?)
    }
}

/// Report every problem of a JSONL file by line, then what is in it. Exit code 2 if there is a problem.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// JSONL, one row a line.
    file: PathBuf,
    /// A built-in task (riskcue, demo) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    /// Model folder or hub name; counts tokens with its tokenizer and chat template.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Problems to show; all are counted.
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_problems: usize,
    /// As data.max_prompt_tokens of a config.
    #[arg(long, value_name = "N", requires = "model", default_value_t = DataConfig::default().max_prompt_tokens)]
    max_prompt_tokens: usize,
    /// As data.max_target_tokens of a config.
    #[arg(long, value_name = "N", requires = "model", default_value_t = DataConfig::default().max_target_tokens)]
    max_target_tokens: usize,
}

fn check(args: &CheckArgs, out: &mut impl Write) -> Result<()> {
    let task = Task::load(&args.task)?;
    let encoder = args.model.as_deref().map(|model| args.text.encoder(model)).transpose()?;
    let limits = Limits {
        max_prompt_tokens: args.max_prompt_tokens,
        max_target_tokens: args.max_target_tokens,
        max_rows: 0,
        targets: Targets::Ignored,
    };
    let check = Check { task: &task, encoder: encoder.as_ref(), limits, max_problems: args.max_problems };
    let report = check.run(&args.file)?;
    write_report(&report, out)?;
    if report.problem_count > 0 {
        let problem = format!("{} problems in {} rows", report.problem_count, report.rows);
        return Err(Error::input(args.file.display(), problem, "Correct the lines named above").into());
    }
    Ok(())
}

fn write_report(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    for problem in &report.problems {
        writeln!(out, "{}", problem.text)?;
    }
    let hidden = report.problem_count - report.problems.len();
    if hidden > 0 {
        writeln!(out, "... and {hidden} more; show them with --max-problems {}", report.problem_count)?;
    }
    let good: usize = report.labels.iter().map(|(_, rows)| rows).sum();
    writeln!(
        out,
        "rows        {} ({good} good, {} with a target for SFT)",
        report.rows, report.rows_with_target
    )?;
    for (label, rows) in &report.labels {
        let share = 100.0 * *rows as f64 / good.max(1) as f64;
        writeln!(out, "label       {rows:>6}  {share:>5.1}%  {label}")?;
    }
    for (messages, rows) in &report.turns {
        writeln!(out, "messages    {rows:>6}  rows of {messages}")?;
    }
    for (name, quantiles) in [("prompt", &report.prompt_tokens), ("target", &report.target_tokens)] {
        if let Some(q) = quantiles {
            writeln!(out, "{name}      {}", describe(q))?;
        }
    }
    for (reason, rows) in &report.too_long {
        writeln!(out, "dropped     {rows:>6}  {reason}")?;
    }
    if let Some((rows, first)) = report.control_tokens {
        writeln!(
            out,
            "control     {rows:>6}  rows with a control token inside a message, first in line {first}"
        )?;
    }
    writeln!(
        out,
        "duplicates  {:>6}  rows whose prompt an earlier row has, with the same label",
        report.duplicates
    )
}

fn describe(q: &Quantiles) -> String {
    format!(
        "tokens: min {}, median {}, mean {:.1}, p95 {}, p99 {}, max {}",
        q.min, q.median, q.mean, q.p95, q.p99, q.max
    )
}

/// Show one row as the model sees it, with the part that SFT trains on marked.
#[derive(Debug, clap::Args)]
struct PreviewArgs {
    /// JSONL, one row a line.
    file: PathBuf,
    /// A built-in task (riskcue, demo) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    /// Model folder or hub name, for its tokenizer and chat template.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// The row's line in the file, counted from 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    row: usize,
}

/// What stands around the trained part.
#[derive(Clone, Copy)]
struct Mark {
    open: &'static str,
    close: &'static str,
}

impl Mark {
    const COLOUR: Self = Self { open: "\x1b[1;32m", close: "\x1b[0m" };
    const BRACKETS: Self = Self { open: "[[", close: "]]" };
}

fn preview(args: &PreviewArgs, mark: Mark, out: &mut impl Write) -> Result<()> {
    let task = Task::load(&args.task)?;
    let encoder = args.text.encoder(&args.model)?;
    let row = row_at(&args.file, args.row)?;
    let sample = task.sample(&row, &args.file, args.row)?;
    let prompt = encoder.encode_prompt(&sample.messages)?;
    let tokenizer = encoder.tokenizer();
    let shown = |ids: &[u32]| tokenizer.decode_whole(ids).map(|text| visible(&text));
    let end = encoder.end_of_turn();

    write!(out, "{}", shown(&prompt.token_ids)?)?;
    let Some(answer) = &sample.target else {
        writeln!(
            out,
            "\n\nprompt   {} tokens\ntrained  nothing: the row has no target",
            prompt.token_ids.len()
        )?;
        return Ok(());
    };
    let target = encoder.encode_target(answer)?;
    writeln!(out, "{}{}{}\n", mark.open, shown(&target)?, mark.close)?;
    let (whole, ending) = (target.len(), end.token_ids.len());
    writeln!(out, "prompt   {} tokens", prompt.token_ids.len())?;
    writeln!(
        out,
        "trained  {whole} tokens, marked {}so{}: {} of the answer, {ending} of the end of the turn",
        mark.open,
        mark.close,
        whole - ending
    )?;
    if end.source == EndOfTurnSource::EosToken {
        writeln!(out, "         the chat template shows no end of an answer, so the eos token is used")?;
    }
    let stops = encoder.stop_tokens().ids().iter();
    let stops = stops.map(|id| format!("{} ({id})", tokenizer.token(*id).unwrap_or_else(|| "?".into())));
    writeln!(out, "stop     {}", stops.collect::<Vec<_>>().join(", "))?;
    let verdict = task.judge(answer, FinishReason::Stop);
    let exact = task.label_id(&sample.gold).is_some_and(|gold| Outcome::of(gold, verdict).is_exact());
    let agreement = if exact { "the answer says so too" } else { "but the answer is not judged so" };
    writeln!(out, "label    {}, {agreement}", sample.gold)?;
    Ok(())
}

/// Control characters are written out: a log may hold sequences that a terminal would obey.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::byte_tokenizer;

    const ROW: &str = r#"{"prompt": [{"role": "user", "content": "a\u001b[2J"}], "security_type": ["Safe"], "chosen": "ok"}"#;

    /// A folder with a tokenizer and `rows.jsonl`.
    fn folder(rows: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
        std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        dir
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn data(dir: &Path, words: &[&str], mark: Mark) -> (String, Result<()>) {
        let file = dir.join("rows.jsonl");
        let words = words
            .iter()
            .map(|w| w.replace("FILE", file.to_str().unwrap()).replace("DIR", dir.to_str().unwrap()));
        let cli =
            <Cli as clap::Parser>::try_parse_from(std::iter::once("data".to_string()).chain(words)).unwrap();
        let mut out = Vec::new();
        let result = match &cli.args.command {
            Data::Check(args) => check(args, &mut out),
            Data::Preview(args) => preview(args, mark, &mut out),
            Data::Synth(args) => super::super::data_synth::run(args, &mut out),
        };
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn preview_marks_the_trained_part_and_disarms_control_characters() {
        let dir = folder(ROW);
        let words = ["preview", "FILE", "--model", "DIR"];
        let (text, result) = data(dir.path(), &words, Mark::BRACKETS);
        result.unwrap();
        let shown = "<|im_start|>user\na\\u{1b}[2J<|im_end|>\n<|im_start|>assistant\n[[ok<|im_end|>]]\n";
        assert!(text.starts_with(shown), "{text}");
        // 3 special tokens, `user`, `assistant`, 3 line ends and 5 bytes of content; 2 bytes and the end token.
        assert!(text.contains("prompt   24 tokens\ntrained  3 tokens"), "{text}");
        assert!(
            text.contains(
                "stop     <|endoftext|> (0), <|im_end|> (2)\nlabel    Safe, the answer says so too"
            ),
            "{text}"
        );
        let (coloured, _) = data(dir.path(), &words, Mark::COLOUR);
        assert!(coloured.contains("\x1b[1;32mok<|im_end|>\x1b[0m"), "{coloured}");
        let (_, absent) =
            data(dir.path(), &["preview", "FILE", "--model", "DIR", "--row", "2"], Mark::BRACKETS);
        assert!(absent.unwrap_err().to_string().contains("rows.jsonl:2: there is no such line"));
    }

    #[test]
    fn check_prints_problems_and_counts_and_fails_as_bad_input() {
        let dir = folder(&format!("{ROW}\nbad\n{{}}\n"));
        let (text, result) =
            data(dir.path(), &["check", "FILE", "--model", "DIR", "--max-problems", "1"], Mark::BRACKETS);
        let error = result.unwrap_err();
        assert!(error.to_string().contains("rows.jsonl: 2 problems in 3 rows"), "{error}");
        assert!(error.downcast_ref::<Error>().is_some_and(Error::is_input));
        assert!(text.contains("rows.jsonl:2: malformed JSON") && !text.contains("rows.jsonl:3"), "{text}");
        assert!(text.contains("... and 1 more; show them with --max-problems 2"), "{text}");
        assert!(text.contains("rows        3 (1 good, 1 with a target for SFT)"), "{text}");
        assert!(text.contains("label            1  100.0%  Safe"), "{text}");
        assert!(text.contains("prompt      tokens: min 24,"), "{text}");

        let (text, result) = data(folder(ROW).path(), &["check", "FILE"], Mark::BRACKETS);
        result.unwrap();
        assert!(!text.contains("tokens"), "{text}");
    }
}
