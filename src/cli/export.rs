//! `rlvr export`: a model as files for other programs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use candle_core::DType;

use super::hub::{adapter, folder};
use super::machine;
use crate::config::Config;
use crate::config::model::DtypeKind;
use crate::data::held_out::held_out;
use crate::error::Error;
use crate::eval::threshold::Threshold;
use crate::export::probe::{Probe, probe_text};
use crate::export::{ExportReport, Format, Source, export, refuse_present};
use crate::formats::gguf::Quantisation;
use crate::formats::hf::folder::FolderTensors;
use crate::formats::hf::weights::SaveOptions;
use crate::formats::hf::{Companions, config_json, load_decoder};
use crate::formats::peft;
use crate::hub::{Parts, RUN_CONFIG, run_of, target};
use crate::model::config::ModelConfig;
use crate::model::decoder::Placement;
use crate::observe::peak_memory_gib;
use crate::task::Task;
use crate::text::PromptEncoder;

/// Write a model for other programs, read it back, and compare it with the weights in memory: tensors strictly; answers to
/// rows of the run that it comes from as a report.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr export runs/demo-001/model demo.gguf --format gguf --quant q8_0")]
pub struct Args {
    /// Folder in HF layout; a run, for its model; a short name, of a folder in checkpoints/; or a hub name: org/name,
    /// org/name@revision.
    model: PathBuf,
    /// What to write: a folder, or for gguf a file. Must not exist. For hf a name without a / is one in checkpoints/.
    out: PathBuf,
    #[arg(long, value_enum)]
    format: FormatArg,
    /// Folder with a LoRA adapter in PEFT layout, or a run that has one: hf and gguf merge it into the weights, peft
    /// writes it alone.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// gguf: how matrices are stored; norms stay f32. [default: f16]
    #[arg(long, value_enum)]
    quant: Option<QuantArg>,
    /// hf: how weights are stored. [default: as in MODEL]
    #[arg(long, value_parser = machine::dtype(&STORED))]
    dtype: Option<DtypeKind>,
    /// hf: tensor data of one file, such as 5GB or 500MB. [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,
    /// Text, or a file with it, on which log-probs are compared; put through the chat template where there is one.
    /// [default: rows of the run's validation set, where MODEL or the adapter is a run's; else a built-in text]
    #[arg(long, value_name = "FILE|TEXT")]
    probe: Option<String>,
    /// Rows of the run's validation set whose verdicts are compared, at most; long rows are fewer.
    #[arg(long, value_name = "N", default_value_t = 32, conflicts_with = "probe")]
    probe_rows: usize,
    /// Folder with the tokenizer, when it is not the model's own.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Jinja file in place of the tokenizer's chat template.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// gguf: the name kept in the file. [default: that of MODEL]
    #[arg(long)]
    name: Option<String>,
    /// Print the whole report, with the probe's token ids and log-probs, as JSON.
    #[arg(long)]
    json: bool,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum FormatArg {
    /// A folder: config, tokenizer, chat template, safetensors.
    Hf,
    /// One file for llama.cpp and its kin.
    Gguf,
    /// A folder with the adapter alone.
    Peft,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum QuantArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_k_m")]
    Q4,
}

/// What a folder's weights may be stored as.
const STORED: [DtypeKind; 3] = [DtypeKind::Bf16, DtypeKind::F32, DtypeKind::F16];

pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    args.refuse_without_effect()?;
    super::use_threads(args.threads)?;
    let out = match args.format {
        FormatArg::Hf => target(&args.out),
        FormatArg::Gguf | FormatArg::Peft => args.out.clone(),
    };
    refuse_present(&out)?;
    let model = folder(&args.model, Parts::Model)?.dir;
    let tokenizer = args.tokenizer.as_deref().map(|path| folder(path, Parts::Text)).transpose()?;
    let config = config_json::load(&model)?;
    let stored = FolderTensors::open(&model)?.common_dtype();
    let format = args.format(stored);
    let companions = Companions {
        tokenizer_dir: tokenizer.map_or_else(|| model.clone(), |found| found.dir),
        chat_template: args.chat_template.clone(),
        model_dir: model.clone(),
    };
    let adapter_dir = args.adapter.as_deref().map(adapter).transpose()?;
    let (probe, no_rows) = args.probe(&companions, &config, adapter_dir.as_deref())?;
    let mut decoder = load_decoder(&model, probe.positions(), &Placement::CPU)?;
    let mut lossless = stored;
    if let Some(dir) = &adapter_dir {
        peft::attach(dir, &mut decoder)?;
        lossless = DType::F32;
        if args.format != FormatArg::Peft {
            decoder.merge()?;
        }
    }
    let name = match (&args.name, args.format) {
        (Some(name), _) => name.clone(),
        // A short name means nothing to other programs.
        (None, FormatArg::Peft) if args.model.components().count() == 1 => model.display().to_string(),
        (None, FormatArg::Peft) => args.model.display().to_string(),
        (None, _) => own_name(&args.model),
    };
    let source = Source { decoder, stored: lossless, companions: &companions, name: &name, probe: &probe };
    let mut report = export(source, format, &out)?;
    report.written.notes.extend(no_rows);
    let threshold_of = adapter_dir.as_deref().unwrap_or(&model);
    report.written.notes.extend(args.take_threshold_along(threshold_of, &out)?);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|e| Error::Compute(e.into()))?);
    } else {
        println!(
            "read      {} ({}, {:.1} M parameters, {})",
            args.model.display(),
            config.family.model_type(),
            config.parameter_count() as f64 / 1e6,
            stored.as_str()
        );
        print(&out, &report, start);
    }
    Ok(())
}

impl Args {
    fn refuse_without_effect(&self) -> std::result::Result<(), Error> {
        let (hf, gguf) = (self.format == FormatArg::Hf, self.format == FormatArg::Gguf);
        let flags = [
            ("--quant", self.quant.is_some() && !gguf, "gguf"),
            ("--name", self.name.is_some() && !gguf, "gguf"),
            ("--dtype", self.dtype.is_some() && !hf, "hf"),
            ("--max-shard-size", self.max_shard_size.is_some() && !hf, "hf"),
        ];
        if self.format == FormatArg::Peft && self.adapter.is_none() {
            let fix = "Name its folder with --adapter";
            return Err(Error::input("--format peft", "there is no adapter to write", fix));
        }
        match flags.into_iter().find(|(_, useless, _)| *useless) {
            Some((flag, _, format)) => {
                let problem = format!("has no effect unless --format is {format}");
                Err(Error::input(flag, problem, "Remove it"))
            }
            None => Ok(()),
        }
    }

    /// Rows of the run that the model comes from, and else a text; and why there are no rows.
    fn probe(
        &self,
        companions: &Companions,
        config: &ModelConfig,
        adapter: Option<&Path>,
    ) -> Result<(Probe, Option<String>)> {
        let plain = |text: Option<&str>| Probe::new(companions, config, text);
        if let Some(argument) = &self.probe {
            return Ok((plain(Some(&probe_text(argument)?))?, None));
        }
        let Some(run) = run_of(adapter.unwrap_or(&companions.model_dir)) else {
            return Ok((plain(None)?, None));
        };
        if self.probe_rows == 0 {
            return Err(Error::input("--probe-rows", "is 0", "Give 1 or more, or --probe TEXT").into());
        }
        match self.rows_of(&run, companions, config) {
            Ok(probe) => Ok((probe, None)),
            Err(error) => {
                Ok((plain(None)?, Some(format!("no verdicts on rows of {}: {error}", run.display()))))
            }
        }
    }

    fn rows_of(
        &self,
        run: &Path,
        companions: &Companions,
        config: &ModelConfig,
    ) -> crate::error::Result<Probe> {
        let of_run = Config::load(&run.join(RUN_CONFIG).to_string_lossy(), &[])?;
        let (task, encoder) = (Task::load(&of_run.task)?, PromptEncoder::load(&companions.encoder_files())?);
        let rows = held_out(&of_run, &task, &encoder, &mut |_, _| ())?.rows;
        let tokens = of_run.eval.max_completion_tokens;
        let files = of_run.data.held_out_files();
        let what = match files.is_empty() {
            true => "the run's synthetic validation logs".into(),
            false => {
                files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>().join(" and ")
            }
        };
        let probe = Probe::of_rows(task, encoder, &rows, self.probe_rows, tokens, &what);
        let (room, needed) = (config.max_position_embeddings, probe.positions());
        match needed <= room {
            true => Ok(probe),
            false => {
                let problem = format!("rows and answers of {needed} tokens do not fit {room} positions");
                Err(Error::input(what, problem, "Give a text with --probe"))
            }
        }
    }

    /// A threshold was fitted for a model as it stands in a folder: with the adapter, or without.
    fn take_threshold_along(&self, fitted: &Path, out: &Path) -> Result<Option<String>> {
        let from = Threshold::path(fitted);
        if !from.is_file() {
            return Ok(None);
        }
        if self.format == FormatArg::Gguf {
            return Ok(Some(format!("a GGUF file has no room for {}", from.display())));
        }
        let to = Threshold::path(out);
        std::fs::copy(&from, &to).map_err(Error::io(&to, "copy the threshold"))?;
        let again = match self.dtype {
            Some(_) => "; fit it again if --dtype rounded the weights",
            None => "",
        };
        Ok(Some(format!("{} came along{again}", from.display())))
    }

    fn format(&self, stored: DType) -> Format {
        match self.format {
            FormatArg::Hf => {
                let dtype = self.dtype.map(|kind| kind.on(false));
                let mut options = SaveOptions::new(dtype.unwrap_or(stored));
                options.max_shard_bytes = self.max_shard_size.unwrap_or(options.max_shard_bytes);
                Format::Folder(options)
            }
            FormatArg::Peft => Format::Adapter,
            FormatArg::Gguf => Format::Gguf(match self.quant {
                None | Some(QuantArg::F16) => Quantisation::F16,
                Some(QuantArg::F32) => Quantisation::F32,
                Some(QuantArg::Bf16) => Quantisation::Bf16,
                Some(QuantArg::Q8) => Quantisation::Q8_0,
                Some(QuantArg::Q4) => Quantisation::Q4KM,
            }),
        }
    }
}

/// The folder's name, or the model's on the hub; of `runs/NAME/model` the run's.
fn own_name(model: &Path) -> String {
    let path = model.canonicalize().unwrap_or_else(|_| model.into());
    let named = match path.file_name() {
        Some(last) if last == "model" => path.parent().and_then(Path::file_name),
        last => last,
    };
    let name = named.map_or("model".into(), |name| name.to_string_lossy().into_owned());
    name.split('@').next().unwrap_or_default().to_string()
}

/// Units of 1000, as in Hugging Face's `max_shard_size`.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "GB" => 1_000_000_000,
        "MB" => 1_000_000,
        "KB" => 1000,
        _ => return Err("a number and KB, MB or GB, such as 5GB".into()),
    };
    let size = digits.parse::<u64>().ok().filter(|&n| n > 0).and_then(|n| n.checked_mul(unit));
    size.ok_or_else(|| "a whole number above 0 before the unit".into())
}

fn print(out: &Path, report: &ExportReport, start: Instant) {
    let (written, findings) = (&report.written, &report.findings);
    let kinds = findings.weights.iter().map(|(kind, check)| format!("{} {kind}", check.tensors));
    println!(
        "wrote     {} ({}; {:.1} MB)",
        out.display(),
        kinds.collect::<Vec<_>>().join(", "),
        written.bytes as f64 / 1e6
    );
    let errors = findings.weights.iter().map(|(kind, check)| match check.relative_error {
        0.0 => format!("{kind} exact"),
        error => format!("{kind} {error:.1e}"),
    });
    let worst = findings.weights.values().map(|check| check.of_allowed).fold(0.0, f64::max);
    let worst = match worst {
        0.0 => String::new(),
        worst => format!("; at the worst place {:.0}% of what rounding can make", 100.0 * worst),
    };
    println!("weights   relative error {}{worst}", errors.collect::<Vec<_>>().join(", "));
    println!("probe     {}", findings.probe.made_from);
    let logprobs = &findings.logprobs;
    println!(
        "log-probs of {} {}tokens differ by at most {:.1e}, {:.1e} on average",
        logprobs.tokens,
        if findings.verdicts.is_some() { "answer " } else { "" },
        logprobs.max_difference,
        logprobs.mean_difference,
    );
    println!("greedy    {} of {} tokens equal", logprobs.greedy_equal, logprobs.greedy);
    if let Some(verdicts) = &findings.verdicts {
        let (rows, same) = (verdicts.rows, verdicts.rows - verdicts.flipped.len());
        let (before, after) = (verdicts.right_in_memory, verdicts.right_read_back);
        println!("verdicts  {same} of {rows} equal; right before {before}, after {after}");
    }
    let peak = peak_memory_gib().map_or(String::new(), |gib| format!(", peak {gib:.2} GiB"));
    println!("took      {:.1} s{peak}", start.elapsed().as_secs_f64());
    for warning in &findings.warnings {
        println!("warning   {warning}");
    }
    for note in &written.notes {
        println!("note      {note}");
    }
}
