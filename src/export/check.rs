//! What was written, read back and held against the weights in memory: the weights strictly, what the model says with
//! them as a report.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::Serialize;

use super::probe::{Answer, Probe};
use super::rounding::distance;
use super::source::{Format, Source};
use crate::error::{Error, Result};
use crate::formats::Written;
use crate::formats::gguf::GgufModel;
use crate::formats::hf::folder::FolderTensors;
use crate::formats::hf::{config_json, load_decoder};
use crate::formats::peft;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Placement};

/// How the tensors of one stored type came back, the worst of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WeightCheck {
    pub tensors: usize,
    /// `|read - memory| / |memory|`, Euclidean norms.
    pub relative_error: f64,
    /// The largest error of a value, or of a block, over the largest that the type's rounding can make.
    pub of_allowed: f64,
}

/// How far the log-probs of the probe moved.
#[derive(Clone, Debug, Serialize)]
pub struct LogprobCheck {
    pub tokens: usize,
    pub max_difference: f64,
    pub mean_difference: f64,
    /// Tokens that the weights in memory generate greedily, and how many of them the export generates alike, from the
    /// first of each answer on.
    pub greedy: usize,
    pub greedy_equal: usize,
}

/// What greedy answers to the rows of a task mean, before and after.
#[derive(Clone, Debug, Serialize)]
pub struct VerdictCheck {
    pub rows: usize,
    /// Rows with the gold label.
    pub right_in_memory: usize,
    pub right_read_back: usize,
    pub flipped: Vec<Flip>,
}

/// A row whose verdict changed.
#[derive(Clone, Debug, Serialize)]
pub struct Flip {
    pub line: usize,
    pub in_memory: String,
    pub read_back: String,
}

/// Everything [`read_back`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// By stored type.
    pub weights: BTreeMap<String, WeightCheck>,
    pub logprobs: LogprobCheck,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<VerdictCheck>,
    /// What the format's rounding changed of what the model says.
    pub warnings: Vec<String>,
    pub probe: Probe,
    /// What the weights in memory say to the probe, an answer a prompt.
    pub memory: Vec<Answer>,
    /// What those read back say to it.
    pub read_back: Vec<Answer>,
}

/// Mean difference of log-probs, in nats, above which a user is warned: `docs/export.md` says why.
fn usual(weights: &BTreeMap<String, WeightCheck>) -> f64 {
    let of = |kind: &str| match kind {
        "F32" => 1e-4,
        "F16" => 0.02,
        "BF16" => 0.1,
        "Q8_0" => 0.2,
        _ => 1.5,
    };
    let lossy = weights.iter().filter(|(_, check)| check.relative_error > 0.0);
    lossy.map(|(kind, _)| of(kind)).fold(of("F32"), f64::max)
}

/// Reads `path` back and compares its weights, one at a time, then its numbers, then what it says to the probe.
/// `source`'s weights are let go before the file's are loaded.
///
/// # Errors
/// A tensor lies further off than its type's rounding, or a number of the model differs; what should be the same
/// weights says something else; it cannot be read. What rounding changes of the answers is no error, but reported.
pub fn read_back(source: Source, format: Format, written: &Written, path: &Path) -> Result<Findings> {
    let Source { decoder, stored, probe, .. } = source;
    let opened = Opened::open(path, format).map_err(|e| unreadable(path, e))?;
    let mut weights = BTreeMap::<String, WeightCheck>::new();
    let written_tensors: Vec<(&str, &Tensor)> = match format {
        Format::Adapter => decoder.trainable().collect(),
        Format::Folder(_) | Format::Gguf(_) => decoder.parameters().collect(),
    };
    for (name, tensor) in written_tensors {
        let kind = written.stored_as.get(name).map_or("", String::as_str);
        let back = opened.tensor(name).map_err(|e| unreadable(path, e))?;
        let found = distance(kind, stored, tensor, &back)?;
        if found.of_allowed.is_nan() || found.of_allowed > 1.0 {
            let times = match found.of_allowed.is_finite() {
                true => format!("{:.1} times what its rounding can make", found.of_allowed),
                false => "where it should be exact or finite".into(),
            };
            let error = found.relative_error;
            let problem =
                format!("{name}, stored as {kind}, came back with a relative error of {error:.3e}, {times}");
            return Err(failed(path, problem));
        }
        let check = weights.entry(kind.to_string()).or_default();
        check.tensors += 1;
        check.relative_error = check.relative_error.max(found.relative_error);
        check.of_allowed = check.of_allowed.max(found.of_allowed);
    }
    if let Some(problem) = opened.config(path)?.and_then(|read| differs(&decoder.config, &read)) {
        return Err(failed(path, problem));
    }
    let memory = probe.ask(&decoder, None)?;
    let read_back = probe.ask(&opened.decoder(decoder, path, probe.positions())?, Some(&memory))?;
    let logprobs = compare(&memory, &read_back);
    let exact = weights.values().all(|check| check.relative_error == 0.0);
    // GGUF keeps the rotary base and the norms' epsilon in f32: there the same weights may say almost the same.
    let same = exact && !matches!(format, Format::Gguf(_));
    if logprobs.mean_difference.is_nan() || same && logprobs.max_difference > 0.0 {
        let LogprobCheck { max_difference: max, mean_difference: mean, .. } = logprobs;
        let problem =
            format!("the same weights give log-probs that differ by up to {max:.3e}, {mean:.3e} on average");
        return Err(failed(path, problem));
    }
    let verdicts = probe.is_judged().then(|| VerdictCheck::of(probe, &memory, &read_back));
    let warnings = warnings(&logprobs, verdicts.as_ref(), usual(&weights));
    Ok(Findings { weights, logprobs, verdicts, warnings, probe: probe.clone(), memory, read_back })
}

/// `path` still has its temporary name.
fn failed(path: &Path, problem: String) -> Error {
    Error::Unfaithful { path: path.with_extension(""), problem }
}

/// A file of ours that is refused, as one with a number beyond its type is, was written wrongly: no fetching it again helps.
fn unreadable(path: &Path, error: Error) -> Error {
    match error {
        Error::Input { place, problem, .. } => failed(path, format!("{place} {problem}")),
        other => other,
    }
}

/// The first number of a model that came back as another: those a forward pass computes with. Formats keep some as
/// f32.
fn differs(memory: &ModelConfig, read: &ModelConfig) -> Option<String> {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs();
    let size = |name, of: fn(&ModelConfig) -> usize| (name, of(memory) as f64, of(read) as f64);
    let numbers = [
        size("hidden_size", |c| c.hidden_size),
        size("num_hidden_layers", |c| c.num_hidden_layers),
        size("num_attention_heads", |c| c.num_attention_heads),
        size("num_key_value_heads", |c| c.num_key_value_heads),
        size("head_dim", |c| c.head_dim),
        size("vocab_size", |c| c.vocab_size),
        size("max_position_embeddings", |c| c.max_position_embeddings),
        ("rms_norm_eps", memory.rms_norm_eps, read.rms_norm_eps),
        ("rope_theta", memory.rope_theta, read.rope_theta),
        ("rotary attention factor", memory.rope_attention_factor(), read.rope_attention_factor()),
    ];
    let wrong = numbers.into_iter().find(|(_, a, b)| !close(*a, *b));
    let (before, after) = (memory.rope_inverse_frequencies(), read.rope_inverse_frequencies());
    let turned = || before.iter().zip(&after).find(|(a, b)| !close(**a, **b));
    let other = match wrong {
        Some((name, a, b)) => Some(format!("{name} was {a} and is {b}")),
        None if memory.family != read.family => Some("it is of another family".into()),
        None => turned().map(|(a, b)| format!("a rotary frequency was {a} and is {b}")),
    };
    other.map(|problem| format!("its numbers: {problem}"))
}

fn compare(memory: &[Answer], read: &[Answer]) -> LogprobCheck {
    let pairs = || memory.iter().zip(read);
    let logprobs = pairs().flat_map(|(a, b)| a.logprobs.iter().zip(&b.logprobs));
    let differences: Vec<f64> = logprobs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).collect();
    let alike =
        |(a, b): (&Answer, &Answer)| a.greedy.iter().zip(&b.greedy).take_while(|(a, b)| a == b).count();
    let tokens = differences.len();
    LogprobCheck {
        tokens,
        max_difference: differences.iter().copied().fold(0.0, f64::max),
        mean_difference: differences.iter().sum::<f64>() / tokens.max(1) as f64,
        greedy: memory.iter().map(|answer| answer.greedy.len()).sum(),
        greedy_equal: pairs().map(alike).sum(),
    }
}

impl VerdictCheck {
    fn of(probe: &Probe, memory: &[Answer], read: &[Answer]) -> Self {
        let right = |answers: &[Answer]| {
            let judged = answers.iter().filter_map(|answer| answer.verdict.as_ref());
            judged.filter(|(_, exact)| *exact).count()
        };
        let answers = probe.prompts.iter().zip(memory.iter().zip(read));
        let flip = answers.filter_map(|(prompt, (a, b))| {
            let ((in_memory, _), (read_back, _)) = (a.verdict.clone()?, b.verdict.clone()?);
            let line = prompt.line?;
            (in_memory != read_back).then_some(Flip { line, in_memory, read_back })
        });
        Self {
            rows: memory.len(),
            right_in_memory: right(memory),
            right_read_back: right(read),
            flipped: flip.collect(),
        }
    }
}

/// Flips that a warning names; all are in the JSON report.
const NAMED_FLIPS: usize = 5;

fn warnings(logprobs: &LogprobCheck, verdicts: Option<&VerdictCheck>, usual: f64) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(verdicts) = verdicts.filter(|verdicts| !verdicts.flipped.is_empty()) {
        let flipped = &verdicts.flipped;
        let name = |flip: &Flip| format!("row {}: {} -> {}", flip.line, flip.in_memory, flip.read_back);
        let mut named: Vec<String> = flipped.iter().take(NAMED_FLIPS).map(name).collect();
        if flipped.len() > NAMED_FLIPS {
            named.push(format!("{} more", flipped.len() - NAMED_FLIPS));
        }
        warnings.push(format!(
            "rounding changed the verdict of {} of {} rows ({}); right were {}, are {}. Run `rlvr eval` on the export \
             before you rely on it, or store more bits",
            flipped.len(),
            verdicts.rows,
            named.join("; "),
            verdicts.right_in_memory,
            verdicts.right_read_back
        ));
    }
    if logprobs.mean_difference > usual {
        warnings.push(format!(
            "log-probs moved by {:.2} nats on average, which is more than usual for this format ({usual})",
            logprobs.mean_difference
        ));
    }
    warnings
}

/// An export, opened again.
enum Opened {
    Folder(FolderTensors),
    Adapter(FolderTensors),
    Gguf(Box<GgufModel>),
}

impl Opened {
    fn open(path: &Path, format: Format) -> Result<Self> {
        match format {
            Format::Folder(_) => FolderTensors::open(path).map(Self::Folder),
            Format::Adapter => FolderTensors::open(path).map(Self::Adapter),
            Format::Gguf(_) => Ok(Self::Gguf(Box::new(GgufModel::open(path)?))),
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Folder(folder) | Self::Adapter(folder) => folder.tensor(name),
            Self::Gguf(gguf) => gguf.tensor(name),
        }
    }

    /// The model's numbers; an adapter has none.
    fn config(&self, path: &Path) -> Result<Option<ModelConfig>> {
        match self {
            Self::Folder(_) => config_json::load(path).map(Some),
            Self::Adapter(_) => Ok(None),
            Self::Gguf(gguf) => Ok(Some(gguf.config.clone())),
        }
    }

    /// As another command would load it. Lets go of the weights `before`, or puts the adapter beside them.
    fn decoder(self, mut before: Decoder, path: &Path, positions: usize) -> Result<Decoder> {
        match self {
            Self::Adapter(_) => {
                before.detach();
                peft::attach(path, &mut before)?;
                Ok(before)
            }
            Self::Folder(_) => {
                drop(before);
                load_decoder(path, positions, &Placement::CPU)
            }
            Self::Gguf(gguf) => {
                drop(before);
                let names = gguf.config.parameter_names();
                let tensors = names.into_iter().map(|(name, _)| Ok((name.clone(), gguf.tensor(&name)?)));
                Decoder::new(gguf.config.clone(), tensors.collect::<Result<Vec<_>>>()?, positions)
            }
        }
    }
}
