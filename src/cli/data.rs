//! `rlvr data`: look at data before training on it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

use super::data_preview;
use super::hub::{folder, rows};
use super::text::TextArgs;
use crate::config::data::DataConfig;
use crate::config::mix::DataFile;
use crate::config::{Config, Stage};
use crate::data::check::{Check, Quantiles, Report};
use crate::data::coverage;
use crate::data::near::NEAR;
use crate::data::overlap::{self, Leak};
use crate::data::told::first_rows;
use crate::data::{Limits, Targets};
use crate::error::Error;
use crate::hub::Parts;
use crate::observe::WorkDisplay;
use crate::reward::{self, Question};
use crate::task::{LabelId, Task};
use crate::text::{Date, EncoderFiles, PromptEncoder};

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
    Split(super::data_split::Args),
    Convert(super::data_convert::Args),
}

pub fn run(args: &Args) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match &args.command {
        Data::Check(args) => check(args, &mut out),
        Data::Synth(args) => super::data_synth::run(args, &mut out),
        Data::Audit(args) => super::data_audit::run(args, &mut out),
        Data::Split(args) => super::data_split::run(args, &mut out),
        Data::Convert(args) => super::data_convert::run(args, &mut out),
        Data::Preview(args) => data_preview::run(args, &mut out),
    }
}

/// Report every problem of a data file by line, then what is in it. Exit code 2 if there is a problem.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: rlvr data check train.jsonl --task riskcue-verdict --model smollm2-135m-instruct"
)]
struct CheckArgs {
    /// JSON Lines, a JSON list, CSV, TSV or parquet; or a data set of the hub, hf:org/name:split. Default: the files of
    /// --config.
    #[arg(required_unless_present = "config")]
    file: Option<PathBuf>,
    /// Config file, preset, or a run's config.resolved.toml: its task, model, chat template and token budgets are used, and
    /// what `rlvr train` would keep and drop is said.
    #[arg(long, value_name = "CONFIG")]
    config: Option<String>,
    /// Override one key of the config, as in --set data.max_prompt_tokens=4096. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// A built-in task (riskcue, demo) or a task file. [default: the config's, or riskcue]
    #[arg(long)]
    task: Option<String>,
    /// Model folder, run, short name or hub name; counts tokens with its tokenizer and chat template. [default: the
    /// config's]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Another data file: rows that it has too, exactly or nearly, are a problem. May be given many times.
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// The file is for SFT: a row without a target is a problem.
    #[arg(long)]
    sft: bool,
    /// Start the programs, and send a row to the addresses, that the task's rewards name, to see that they answer.
    #[arg(long)]
    allow_programs: bool,
    /// Problems to show; all are counted.
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_problems: usize,
    /// As data.max_prompt_tokens of a config. [default: the config's, or 3072]
    #[arg(long, value_name = "N")]
    max_prompt_tokens: Option<usize>,
    /// As data.max_target_tokens of a config. [default: the config's, or 512]
    #[arg(long, value_name = "N")]
    max_target_tokens: Option<usize>,
}

impl CheckArgs {
    /// Without a config, its defaults.
    fn config(&self) -> Result<Option<Config>> {
        let load = |source: &String| Config::load(source, &self.overrides);
        let config = self.config.as_ref().map(load).transpose()?;
        let counted = self.max_prompt_tokens.is_some() || self.max_target_tokens.is_some();
        if config.is_none() && self.model.is_none() && counted {
            let fix = "Add --model or --config";
            return Err(Error::input("--max-*-tokens", "has no effect: nothing counts tokens", fix).into());
        }
        Ok(config)
    }

    fn encoder(&self, config: Option<&Config>) -> Result<Option<PromptEncoder>> {
        match (&self.model, config) {
            (Some(model), _) => Ok(Some(self.text.encoder(model)?)),
            (None, Some(config)) => match &config.model.path {
                Some(_) => Ok(Some(config_encoder(config)?)),
                None => {
                    eprintln!("the config makes its model and tokenizer from a seed: tokens are not counted");
                    Ok(None)
                }
            },
            (None, None) => Ok(None),
        }
    }

    /// What is checked, and whether every row needs a target.
    fn files(&self, config: Option<&Config>) -> Result<Vec<(PathBuf, bool)>> {
        if let Some(file) = &self.file {
            return Ok(vec![(rows(file)?, self.sft)]);
        }
        let Some(config) = config else { return Ok(Vec::new()) };
        let (data, sft) = (&config.data, config.stages.contains(&Stage::Sft));
        if data.synthetic.is_some() {
            let fix = "Name a file before --config";
            let place = self.config.as_deref().unwrap_or_default();
            return Err(
                Error::input(place, "trains on synthetic logs: there is no file to check", fix).into()
            );
        }
        let named = |file: DataFile, sft| match rows(file.path) {
            Ok(path) => Ok((path, sft)),
            Err(error) => Err(error.of_key(&file.key).into()),
        };
        let trained = data.train_files().into_iter().map(|file| named(file, sft || self.sft));
        trained.chain(data.held_out_files().into_iter().map(|file| named(file, self.sft))).collect()
    }
}

/// The tokenizer and chat template of a config's model.
fn config_encoder(config: &Config) -> Result<PromptEncoder> {
    let model = &config.model;
    let named = model.path.as_deref().unwrap_or(Path::new(""));
    let dir = folder(named, Parts::Text).map_err(|error| error.of_key("model.path"))?.dir;
    let tokenizer = model.tokenizer.as_deref().map(|path| folder(path, Parts::Text)).transpose()?;
    Ok(PromptEncoder::load(&EncoderFiles {
        model_dir: &dir,
        tokenizer_dir: tokenizer.as_ref().map(|found| found.dir.as_path()),
        chat_template: model.chat_template.as_deref(),
        date: Date::default(),
        template_args: Some(&model.template_args),
    })?)
}

fn check(args: &CheckArgs, out: &mut impl Write) -> Result<()> {
    let config = args.config()?;
    let (default, encoder) = (DataConfig::default(), args.encoder(config.as_ref())?);
    let data = config.as_ref().map_or(&default, |config| &config.data);
    let named = args.task.as_deref().or(config.as_ref().map(|config| config.task.as_str()));
    let task = Task::load(named.unwrap_or("riskcue"))?;
    let files = args.files(config.as_ref())?;
    let against = args.against.iter().map(|file| rows(file)).collect::<crate::error::Result<Vec<_>>>()?;
    let (mut wrong, mut counts) = (Vec::new(), Vec::new());
    for (file, needs_target) in &files {
        let limits = Limits {
            max_prompt_tokens: args.max_prompt_tokens.unwrap_or(data.max_prompt_tokens),
            max_target_tokens: args.max_target_tokens.unwrap_or(data.max_target_tokens),
            max_rows: 0,
            targets: if *needs_target { Targets::Required } else { Targets::Ignored },
        };
        // What is not learned from needs no judge.
        let distill =
            config.as_ref().and_then(|config| config.sft.distill.as_ref()).filter(|_| *needs_target);
        let check = Check {
            task: &task,
            encoder: encoder.as_ref(),
            limits,
            max_problems: args.max_problems,
            distill,
        };
        let report = check.run_watched(file, &mut WorkDisplay::watch("checking", "rows"))?;
        if files.len() > 1 {
            writeln!(out, "{}", file.display())?;
        }
        write_report(&report, &task, &limits, out)?;
        counts.push(report.labels);
        // The last of a config's are not learned from.
        let said = match (counts.as_slice(), config.as_ref()) {
            ([rows], _) if files.len() == 1 => coverage::remarks("the file", rows, None),
            (all, Some(config)) if all.len() == files.len() => {
                let (trained, valid) = all.split_at(config.data.train_files().len());
                let what = if config.data.mix.is_empty() { "data.train" } else { "data.mix" };
                coverage::remarks(what, &coverage::sum(trained), Some(&coverage::sum(valid)))
            }
            _ => Vec::new(),
        };
        for text in said {
            writeln!(out, "warning     {text}")?;
        }
        if report.problem_count > 0 {
            wrong.push((file, format!("{} problems in {} rows", report.problem_count, report.rows)));
        }
        for other in &against {
            let leaks = overlap::leaks(&task, file, other, NEAR)?;
            write_leaks(file, other, &leaks, args.max_problems, out)?;
            if !leaks.is_empty() {
                wrong.push((file, format!("{} rows are in {} too", leaks.len(), other.display())));
            }
        }
    }
    if let (Some((file, _)), true) = (files.first(), wrong.is_empty()) {
        for text in ask_once(&task, file, args.allow_programs)? {
            writeln!(out, "reward      {text}")?;
        }
    }
    match wrong.into_iter().next() {
        Some((file, problem)) => {
            Err(Error::input(file.display(), problem, "Correct the lines named above").into())
        }
        None => Ok(()),
    }
}

/// What everybody who rewards completions says of the first row's target, or of silence.
fn ask_once(task: &Task, file: &Path, allowed: bool) -> Result<Vec<String>> {
    if !allowed {
        return Ok(reward::not_asked(task).into_iter().collect());
    }
    let first = first_rows(task, file, 1)?.into_iter().next();
    let Some((_, sample, told)) = first else { return Ok(Vec::new()) };
    let gold = task.label_id(&sample.gold).unwrap_or(LabelId::NEGATIVE);
    let text = sample.target.unwrap_or_default();
    Ok(reward::probe(task, Question::about("probe".into(), task, &told, gold, &text))?)
}

fn write_report(report: &Report, task: &Task, limits: &Limits, out: &mut impl Write) -> std::io::Result<()> {
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
    if report.uncounted > 0 {
        writeln!(
            out,
            "uncounted   {:>6}  prompts that have more bytes than so many tokens can stand for, not in these numbers",
            report.uncounted
        )?;
    }
    let account = &report.account;
    for (reason, rows) in account.reasons(limits) {
        writeln!(out, "dropped     {rows:>6}  {reason}")?;
    }
    if account.dropped() > 0 {
        writeln!(out, "kept        {:>6}  {}", account.kept(), account.labels(task))?;
    }
    if let Some(advice) = account.advice(limits) {
        writeln!(out, "warning     {advice}")?;
    }
    if let Some((rows, first)) = report.control_tokens {
        writeln!(
            out,
            "control     {rows:>6}  rows with a control token in a text, which stays text; first in line {first}"
        )?;
    }
    if let Some((rows, first)) = report.half_characters {
        writeln!(out, "characters  {rows:>6}  rows with half of one, now U+FFFD; first in line {first}")?;
    }
    for (key, rows) in &report.unread {
        writeln!(out, "unread      {rows:>6}  rows have `{key}`, which nothing reads")?;
    }
    writeln!(
        out,
        "duplicates  {:>6}  rows whose prompt an earlier row has, with the same label",
        report.duplicates
    )
}

fn write_leaks(
    file: &Path,
    other: &Path,
    leaks: &[Leak],
    most: usize,
    out: &mut impl Write,
) -> std::io::Result<()> {
    for leak in leaks.iter().take(most) {
        let how = if leak.similarity < 1.0 {
            format!("nearly the same as ({:.0}%)", 100.0 * leak.similarity)
        } else {
            "the same as".into()
        };
        let label = if leak.same_label { "" } else { ", with another label" };
        let (line, there) = (leak.line, leak.there);
        writeln!(out, "{}:{line}: {how} {}:{there}{label}", file.display(), other.display())?;
    }
    if leaks.len() > most {
        writeln!(out, "... and {} more; show them with --max-problems {}", leaks.len() - most, leaks.len())?;
    }
    let exact = leaks.iter().filter(|leak| leak.similarity == 1.0).count();
    writeln!(
        out,
        "leaks       {:>6}  rows that {} has too, {exact} of them word for word",
        leaks.len(),
        other.display()
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
    use super::*;
    use crate::text::byte_tokenizer;

    const ROW: &str = r#"{"prompt": [{"role": "user", "content": "a\u001b[2J"}], "security_type": ["Safe"], "chosen": "ok"}"#;

    /// A folder with a tokenizer and `rows.jsonl`.
    fn made(rows: &str) -> tempfile::TempDir {
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
            Data::Split(args) => super::super::data_split::run(args, &mut out),
            Data::Convert(args) => super::super::data_convert::run(args, &mut out),
        };
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn check_prints_problems_and_counts_and_fails_as_bad_input() {
        let dir = made(&format!("{ROW}\nbad\n{{}}\n"));
        let (text, result) = data(dir.path(), &["check", "FILE", "--model", "DIR", "--max-problems", "1"]);
        let error = result.unwrap_err();
        assert!(error.to_string().contains("rows.jsonl: 2 problems in 3 rows"), "{error}");
        assert!(error.downcast_ref::<Error>().is_some_and(Error::is_input));
        assert!(text.contains("rows.jsonl:2: malformed JSON") && !text.contains("rows.jsonl:3"), "{text}");
        assert!(text.contains("... and 1 more; show them with --max-problems 2"), "{text}");
        assert!(text.contains("rows        3 (1 good, 1 with a target for SFT)"), "{text}");
        assert!(text.contains("label            1  100.0%  Safe"), "{text}");
        assert!(text.contains("prompt      tokens: min 24,"), "{text}");

        let bare = made(&format!("{ROW}\n{}\n", ROW.replace("chosen", "other").replace("\"a", "\"b")));
        let (text, result) = data(bare.path(), &["check", "FILE", "--sft"]);
        result.unwrap_err();
        assert!(text.contains("rows.jsonl:2: the row has no target, so SFT has nothing to learn"), "{text}");
        data(bare.path(), &["check", "FILE"]).1.unwrap();

        let (text, result) = data(made(ROW).path(), &["check", "FILE"]);
        result.unwrap();
        assert!(!text.contains("tokens"), "{text}");
    }

    #[test]
    fn check_uses_a_configs_task_model_and_budgets_and_says_what_they_drop() {
        let long = ROW.replace("\"a", &format!("\"{}", "b".repeat(60))).replace("Safe", "Denial-of-Service");
        let long = long.replace("\"ok\"", r#""Unsafe MCP Server:{\"ServerName\":\"s\", \"ToolName\":\"t\", \"Reason\":\"Denial-of-Service\"}""#);
        let dir = made(&format!("{ROW}\n{long}\n"));
        let (model, file) = (dir.path().display(), dir.path().join("rows.jsonl"));
        let config = format!(
            "task = \"riskcue\"\n[model]\npath = \"{model}\"\n[data]\ntrain = \"{0}\"\nvalid = \"{0}\"\nmax_prompt_tokens = 40\n",
            file.display()
        );
        let path = dir.path().join("c.toml");
        std::fs::write(&path, config).unwrap();
        let (text, result) = data(dir.path(), &["check", "--config", path.to_str().unwrap()]);
        result.unwrap();
        let mut lines: Vec<&str> = text.lines().filter(|line| line.starts_with(['d', 'k', 'w'])).collect();
        let labels = lines.pop().unwrap();
        assert!(
            labels.starts_with("warning     no row of data.train is labelled `Sensitive Data"),
            "{labels}"
        );
        let want = [
            "dropped          1  prompt longer than max_prompt_tokens = 40",
            "kept             1  Safe 1 of 1, Denial-of-Service 0 of 1",
            "warning     50% of the rows are dropped; data.max_prompt_tokens = 83 would keep 95%",
            "duplicates       0  rows whose prompt an earlier row has, with the same label",
        ];
        assert_eq!(lines, [want, want].concat(), "{text}");
        let set = ["check", "FILE", "--config", path.to_str().unwrap(), "--set", "data.max_prompt_tokens=99"];
        let (text, result) = data(dir.path(), &set);
        result.unwrap();
        assert!(!text.contains("dropped"), "{text}");
        let error = data(dir.path(), &["check", "FILE", "--max-prompt-tokens", "9"]).1.unwrap_err();
        assert!(error.to_string().contains("nothing counts tokens"), "{error}");
    }
}
