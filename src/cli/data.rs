//! `rlvr data`: look at data before training on it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use super::data_preview;
use super::text::TextArgs;
use crate::config::data::DataConfig;
use crate::data::check::{Check, Quantiles, Report};
use crate::data::{Limits, Targets};
use crate::error::Error;
use crate::task::Task;

/// Check, show and make data files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr data check train.jsonl --task riskcue-verdict")]
pub struct Args {
    #[command(subcommand)]
    command: Data,
}

#[derive(Debug, Subcommand)]
enum Data {
    Check(CheckArgs),
    Preview(data_preview::Args),
    Synth(super::data_synth::Args),
    Audit(super::data_audit::Args),
}

pub fn run(args: &Args) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match &args.command {
        Data::Check(args) => check(args, &mut out),
        Data::Synth(args) => super::data_synth::run(args, &mut out),
        Data::Audit(args) => super::data_audit::run(args, &mut out),
        Data::Preview(args) => data_preview::run(args, &mut out),
    }
}

/// Report every problem of a JSONL file by line, then what is in it. Exit code 2 if there is a problem.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: rlvr data check train.jsonl --task riskcue-verdict --model smollm2-135m-instruct"
)]
struct CheckArgs {
    /// JSONL, one row a line.
    file: PathBuf,
    /// A built-in task (riskcue, demo) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    /// Model folder, short name or hub name; counts tokens with its tokenizer and chat template.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// The file is for SFT: a row without a target is a problem.
    #[arg(long)]
    sft: bool,
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
        targets: if args.sft { Targets::Required } else { Targets::Ignored },
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
    let good = report.good;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

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

    fn data(dir: &Path, words: &[&str]) -> (String, Result<()>) {
        let file = dir.join("rows.jsonl");
        let words = words
            .iter()
            .map(|w| w.replace("FILE", file.to_str().unwrap()).replace("DIR", dir.to_str().unwrap()));
        let cli =
            <Cli as clap::Parser>::try_parse_from(std::iter::once("data".to_string()).chain(words)).unwrap();
        let mut out = Vec::new();
        let result = match &cli.args.command {
            Data::Check(args) => check(args, &mut out),
            Data::Preview(args) => data_preview::run(args, &mut out),
            Data::Synth(args) => super::super::data_synth::run(args, &mut out),
            Data::Audit(args) => super::super::data_audit::run(args, &mut out),
        };
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn check_prints_problems_and_counts_and_fails_as_bad_input() {
        let dir = folder(&format!("{ROW}\nbad\n{{}}\n"));
        let (text, result) = data(dir.path(), &["check", "FILE", "--model", "DIR", "--max-problems", "1"]);
        let error = result.unwrap_err();
        assert!(error.to_string().contains("rows.jsonl: 2 problems in 3 rows"), "{error}");
        assert!(error.downcast_ref::<Error>().is_some_and(Error::is_input));
        assert!(text.contains("rows.jsonl:2: malformed JSON") && !text.contains("rows.jsonl:3"), "{text}");
        assert!(text.contains("... and 1 more; show them with --max-problems 2"), "{text}");
        assert!(text.contains("rows        3 (1 good, 1 with a target for SFT)"), "{text}");
        assert!(text.contains("label            1  100.0%  Safe"), "{text}");
        assert!(text.contains("prompt      tokens: min 24,"), "{text}");

        let bare = folder(&format!("{ROW}\n{}\n", ROW.replace("chosen", "other").replace("\"a", "\"b")));
        let (text, result) = data(bare.path(), &["check", "FILE", "--sft"]);
        result.unwrap_err();
        assert!(text.contains("rows.jsonl:2: the row has no target, so SFT has nothing to learn"), "{text}");
        data(bare.path(), &["check", "FILE"]).1.unwrap();

        let (text, result) = data(folder(ROW).path(), &["check", "FILE"]);
        result.unwrap();
        assert!(!text.contains("tokens"), "{text}");
    }
}
