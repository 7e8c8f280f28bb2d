//! `rlvr init`: a task file and a config of one's own.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hub::{self, folder};
use crate::config::schema;
use crate::data::{Limits, Source, Targets};
use crate::error::Error;
use crate::formats::hf::config_json;
use crate::hub::{DataName, Parts};
use crate::init::{self, Draft, Files, Halves, Lengths};
use crate::task::Task;
use crate::text::{EncoderFiles, PromptEncoder, byte_tokenizer};
use crate::train::corpus;

/// Prompts above it are dropped where they are few: memory goes by the longest.
const LONGEST: usize = 4096;
/// Entries of the tokenizer of a model from the seed, as the config that is written says.
const VOCABULARY: usize = 2048;

/// Look at a file of labelled rows, and write a task file and a config that train on them as they are.
///
/// Rows are texts with a label, prompt and completion, or messages.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr init data/mine.jsonl --model smollm2-135m-instruct --into mine")]
pub struct Args {
    /// JSON Lines, a JSON list, CSV, TSV or parquet, or hf:org/name:split of the hub.
    data: PathBuf,
    /// Folder, short name or hub name. Absent: a small model from the seed, to try the line with.
    #[arg(long)]
    model: Option<String>,
    /// Folder to write to; it must not be there yet, or be empty. Default: the name of the file.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// The label that flags nothing. Default: the one whose name says so, or the most frequent.
    #[arg(long, value_name = "LABEL")]
    negative: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let data = &hub::rows(&args.data)?;
    let stem = match DataName::of(data)? {
        Some(name) => name.short_name().to_string(),
        None => data.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let into = args.into.clone().unwrap_or_else(|| PathBuf::from(&stem));
    if into.exists() && !std::fs::read_dir(&into).is_ok_and(|mut entries| entries.next().is_none()) {
        let fix = "Choose another folder with --into; nothing is overwritten";
        return Err(Error::input(into.display(), "is there already", fix).into());
    }
    let draft = init::draft(data, args.negative.as_deref())?;
    let halves = init::split(&draft.rows);
    if halves.valid.is_empty() {
        let fix = "Add rows: a fifth of every label is held out to evaluate on";
        return Err(Error::input(data.display(), "has no label with two different rows", fix).into());
    }
    let aside = into.with_file_name(format!(
        "{}.part-{}",
        into.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let written = write(args, &draft, &halves, &into, &aside).and_then(|lines| {
        std::fs::rename(&aside, &into).map_err(Error::io(&into, "create the folder"))?;
        Ok(lines)
    });
    let lines = written.inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&aside);
    })?;
    println!("rows      {} in {}", draft.rows.len(), data.display());
    draft.reading.because.iter().for_each(|line| println!("{line}"));
    let labels = &draft.labels;
    let counts: Vec<String> =
        labels.all().zip(&labels.counts).map(|(name, count)| format!("{name} {count}")).collect();
    println!("labels    {}", counts.join(", "));
    println!("negative  {}, {}", labels.negative, labels.because);
    if halves.contradictory > 0 {
        println!("warning   {} inputs come with several labels", halves.contradictory);
    }
    lines.iter().for_each(|line| println!("{line}"));
    println!("\nrlvr train {} --dry-run   # then without --dry-run", into.join("config.toml").display());
    Ok(())
}

/// Writes the folder under another name. Returns what there is to say of it.
fn write(args: &Args, draft: &Draft, halves: &Halves, into: &Path, aside: &Path) -> Result<Vec<String>> {
    let put = |name: &str, text: String| {
        let path = aside.join(name);
        std::fs::write(&path, text).map_err(Error::io(&path, "write"))
    };
    let schemas = aside.join("schema");
    std::fs::create_dir_all(&schemas).map_err(Error::io(&schemas, "create the folder"))?;
    put("train.jsonl", Files::rows(&halves.train))?;
    put("valid.jsonl", Files::rows(&halves.valid))?;
    put("schema/config.schema.json", format!("{:#}\n", schema::config()))?;
    put("schema/task.schema.json", format!("{:#}\n", Task::schema()))?;
    let folder_name = format!("{}/", into.display().to_string().trim_end_matches('/'));
    let name = into.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut files = Files {
        draft,
        name: &name,
        folder: &folder_name,
        model: args.model.as_deref(),
        parameters: 0,
        lengths: Lengths { prompt: 1, answer: 1 },
        train_rows: halves.train.len(),
    };
    put("task.toml", files.task())?;
    let task = Task::load(&aside.join("task.toml").to_string_lossy())?;
    let scratch = aside.join("tokenizer");
    let encoder = match files.model {
        Some(model) => {
            let dir = folder(Path::new(model), Parts::Text)?.dir;
            files.parameters = config_json::load(&dir)?.parameter_count();
            PromptEncoder::load(&EncoderFiles::of(&dir))?
        }
        None => {
            let texts = corpus::of_file(&aside.join("train.jsonl"), &task)?;
            let tokenizer = byte_tokenizer::build(texts.iter().map(String::as_str), &[], VOCABULARY)?;
            byte_tokenizer::save_pretrained(&tokenizer, &scratch)?;
            PromptEncoder::load(&EncoderFiles::of(&scratch))?
        }
    };
    let (lengths, said) = lengths(&task, &encoder, aside)?;
    let _ = std::fs::remove_dir_all(&scratch);
    files.lengths = lengths;
    put("config.toml", files.config())?;
    let model =
        files.model.map_or("a small model from the seed; --model names a real one".into(), String::from);
    Ok(vec![
        format!("split     {} rows to train on, {} held out", halves.train.len(), halves.valid.len()),
        format!("model     {model}"),
        said,
        format!("wrote     {folder_name}: config.toml, task.toml, train.jsonl, valid.jsonl, schema/"),
    ])
}

/// Budgets that keep every row, or where a prompt is very long 95% of them.
fn lengths(task: &Task, encoder: &PromptEncoder, dir: &Path) -> Result<(Lengths, String)> {
    let limits = Limits {
        max_prompt_tokens: usize::MAX,
        max_target_tokens: usize::MAX,
        max_rows: 0,
        targets: Targets::Required,
    };
    let source = Source { task, encoder, limits, distill: None };
    let mut rows = source.load(&dir.join("train.jsonl"))?.rows;
    rows.extend(source.load(&dir.join("valid.jsonl"))?.rows);
    let mut prompts: Vec<usize> = rows.iter().map(|row| row.prompt.token_ids.len()).collect();
    prompts.sort_unstable();
    let longest = prompts.last().copied().unwrap_or(1);
    let answer = rows.iter().filter_map(|row| row.target.as_ref()).map(Vec::len).max().unwrap_or(1);
    let budget = match longest {
        0..=LONGEST => longest,
        _ => prompts[(prompts.len() * 95).div_ceil(100) - 1],
    };
    let budget = budget.next_multiple_of(32);
    let dropped = prompts.iter().filter(|tokens| **tokens > budget).count();
    let over = match dropped {
        0 => String::new(),
        rows => format!("; {rows} rows are longer than the budget of {budget} and are dropped"),
    };
    let said = format!("tokens    prompts up to {longest}, answers up to {answer}{over}");
    Ok((Lengths { prompt: budget, answer: answer + 4 }, said))
}
