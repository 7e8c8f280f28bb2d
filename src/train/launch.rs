//! A run's beginning: a new directory or one to go on with, who is told, and off it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::inputs::Inputs;
use super::lora::{Adapters, base_digest, check_base};
use super::materials::{Materials, Permits};
use super::meter::Meter;
use super::stages::{Record, Training};
use super::state::{self, Cursor};
use crate::config::{ActivationMemory, Config, keys_of};
use crate::disk;
use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::formats::hf::load_decoder;
use crate::hub::{self, Parts, Progress};
use crate::model::decoder::Decoder;
use crate::observe::{Event, JsonlSink, MlFlow, Sinks, Status, TensorBoard};
use crate::ops::cuda;
use crate::plan::Target;
use crate::plan::activations::{self, Settled};
use crate::run::{CHECKPOINT_CONFIG, Checkpoint, Latest, RunDirectory, SampleFiles};

/// A config whose models have become folders, and whose data sets of the hub have been downloaded.
pub struct Fetched {
    pub config: Config,
    /// Names the same models and data by folder or by hub name and commit, for ever and everywhere.
    pub recorded: Config,
    /// Those that came from the hub, `org/name@commit`.
    pub pinned: Vec<String>,
    /// Data sets that came from there, `hf:org/name@commit:split`.
    pub data: Vec<String>,
    /// What the run may do; memory or disk that are less than it can take are a warning then.
    pub may: Permits,
    /// Go on although data, task, tokenizer, chat template or base model are not what they were at the checkpoint; it is a warning then.
    pub allow_changed: bool,
    /// Who trains together.
    pub ranks: Ranks,
}

impl From<Config> for Fetched {
    /// A config that names folders already, or no model.
    fn from(config: Config) -> Self {
        let recorded = config.clone();
        let (pinned, data) = (Vec::new(), Vec::new());
        let (may, ranks) = (Permits::default(), Ranks::alone());
        Self { recorded, config, pinned, data, may, allow_changed: false, ranks }
    }
}

/// Finds the models and the data that a config names by path, short name or hub name; `progress` hears of downloads.
pub fn fetch(config: Config, progress: &mut dyn Progress) -> Result<Fetched> {
    fetch_parts(config, Parts::Model, progress)
}

/// [`fetch`], with so much of a hub's model as `parts` says.
pub fn fetch_parts(config: Config, parts: Parts, progress: &mut dyn Progress) -> Result<Fetched> {
    let mut fetched = Fetched::from(config);
    let Fetched { config, recorded, pinned, data, .. } = &mut fetched;
    for (key, path, record, parts) in [
        ("model.path", &mut config.model.path, &mut recorded.model.path, parts),
        ("model.tokenizer", &mut config.model.tokenizer, &mut recorded.model.tokenizer, Parts::Text),
    ] {
        let Some(named) = path else { continue };
        let found = hub::find(named, parts, progress).map_err(|error| error.of_key(key))?;
        *record = Some(found.pinned.as_ref().map_or_else(|| found.dir.clone(), Into::into));
        pinned.extend(found.pinned);
        *path = Some(found.dir);
    }
    for ((key, path), (_, record)) in config.data.paths_mut().into_iter().zip(recorded.data.paths_mut()) {
        let found = hub::pinned_data(path, progress).map_err(|error| error.of_key(&key))?;
        if found != *path {
            data.push(found.display().to_string());
        }
        record.clone_from(&found);
        *path = found;
    }
    Ok(fetched)
}

/// Trains a new run to its end. `sinks`: who is told, beside the run's own files. Returns the folder of the final
/// model.
///
/// # Errors
/// Before the first evaluation a new run's directory is gone again; after it, a run can be resumed from its last checkpoint.
pub fn start(fetched: &Fetched, run: &RunDirectory, mut sinks: Sinks) -> Result<PathBuf> {
    let began = Instant::now();
    let Fetched { config, recorded, may, ranks, .. } = fetched;
    let home = &run.of_rank(ranks.rank())?;
    if ranks.is_first() {
        run.write_config(&recorded.to_toml()?)?;
        sinks.add(SampleFiles::new(run)?);
        sinks.add(JsonlSink::create(run.metrics())?);
        if config.run.tensorboard {
            sinks.add(TensorBoard::create(run.path(), &hparams(recorded)?)?);
        }
    }
    let prepare = |sinks: &mut Sinks| -> Result<_> {
        if ranks.is_first() {
            watch(config, run, sinks)?;
            track(config, recorded, run, sinks)?;
        }
        let (materials, mut decoder) = Materials::prepare(config, home, *may, ranks, sinks)?;
        let mut cursor = Cursor::default();
        if config.lora.is_some() {
            cursor.base = Some(base_digest(&decoder)?);
        }
        let adapters = Adapters::start(config, &mut decoder)?;
        sinks.emit(&Event::phase("hashing what the run reads"));
        cursor.inputs = Inputs::of(config, home)?;
        agreed(ranks, &cursor)?;
        Ok((materials, decoder, cursor, adapters))
    };
    let (materials, decoder, cursor, adapters) = prepare(&mut sinks).inspect_err(|error| {
        if run.is_new() && !matches!(error, Error::Stopped) {
            // The folder was empty and nothing was trained: the name is free again for the next try.
            let _ = std::fs::remove_dir_all(run.path());
        }
    })?;
    if let Some(adapters) = &adapters {
        sinks.emit(&Event::Note { text: adapters.describe(&decoder) });
    }
    let config = &settled(config, &materials, &decoder, &mut sinks)?;
    let meter = Meter::new(&config.run, cursor.seconds, move || began.elapsed().as_secs_f64());
    let record = Record::new(config, run, cursor, sinks, (meter, ranks.clone()), None);
    Training { materials, adapters, record }.run(decoder, None)
}

/// Lets the run be watched from outside, where its config says so.
fn watch(config: &Config, run: &RunDirectory, sinks: &mut Sinks) -> Result<()> {
    let heartbeat = config.run.heartbeat.then(|| run.path().join("heartbeat.json"));
    if heartbeat.is_none() && config.run.status.is_none() {
        return Ok(());
    }
    let status = Status::new(config.run.status.as_deref(), heartbeat)?;
    let address = status.address();
    sinks.add(status);
    if let Some(address) = address {
        sinks.emit(&Event::Note {
            text: format!("http://{address}/healthz and /metrics say where the run is"),
        });
    }
    Ok(())
}

/// Lets an MLflow server have the run's numbers, where its config names one.
fn track(config: &Config, recorded: &Config, run: &RunDirectory, sinks: &mut Sinks) -> Result<()> {
    let Some(address) = &config.run.mlflow else { return Ok(()) };
    let name = run.path().file_name().unwrap_or_default().to_string_lossy();
    let experiment = config.run.mlflow_experiment.as_deref().unwrap_or("rlvr");
    sinks.add(MlFlow::new(address, experiment, &name, run.path(), hparams(recorded)?)?);
    Ok(())
}

/// The config's keys but those that only say where a run is, for TensorBoard.
fn hparams(config: &Config) -> Result<BTreeMap<String, String>> {
    let mut keys = keys_of("config", &config.to_toml()?)?;
    keys.retain(|key, _| !key.starts_with("run."));
    Ok(keys)
}

/// The config with what is left to the device's memory decided, and said.
fn settled(config: &Config, materials: &Materials, decoder: &Decoder, sinks: &mut Sinks) -> Result<Config> {
    let mut config = config.clone();
    if let Some(text) = materials.lacks_copy.clone() {
        config.checkpoint.background = false;
        sinks.emit(&Event::Note { text });
    }
    let device = decoder.device();
    let memory = device.is_cuda().then(|| cuda::describe(device)).transpose()?.map(|card| card.memory_total);
    let answers = if config.packs_answers() { materials.task.labels().len() } else { 0 };
    let target = Target { cuda: device.is_cuda(), dtype: decoder.dtype(), answers };
    let Some(Settled { activations, max_reused_tokens, max_rollout_tokens, peak }) =
        activations::settle(&mut config, &decoder.config, target, memory)
    else {
        return Ok(config);
    };
    if let Some(memory) = memory {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let kept = if activations == ActivationMemory::Keep { "all activations" } else { "block inputs" };
        let text = format!(
            "{kept} are kept, {max_reused_tokens} tokens of a rollout used again by its update, {max_rollout_tokens} \
             sampled at once: {:.1} GiB planned of {:.1} (pack.*)",
            gib(peak),
            gib(memory)
        );
        sinks.emit(&Event::Note { text });
    }
    Ok(config)
}

/// Trains the rest of a run after `latest`, its last checkpoint. `warnings`: to be kept with the run.
pub fn resume(
    fetched: &Fetched,
    run: &RunDirectory,
    latest: Latest,
    mut warnings: Vec<String>,
    mut sinks: Sinks,
) -> Result<PathBuf> {
    let (began, config, ranks) = (Instant::now(), &fetched.config, &fetched.ranks);
    let home = &run.of_rank(ranks.rank())?;
    let checkpoint: &Path = &latest.checkpoint.path;
    let mut cursor = state::read_cursor(checkpoint)?;
    let meter = Meter::new(&config.run, cursor.seconds, move || began.elapsed().as_secs_f64());
    if ranks.is_first() {
        meter.check()?;
    }
    sinks.emit(&Event::phase("hashing what the run reads"));
    let inputs = Inputs::of(config, home)?;
    let changed = inputs.changed(&cursor.inputs, config.model.path.is_none());
    let knows_inputs = !cursor.inputs.is_empty();
    if knows_inputs && !changed.is_empty() {
        let problem = format!("what it reads has changed since the checkpoint: {}", changed.join(", "));
        if !fetched.allow_changed {
            let fix = "Put it back, or add --allow-changed to go on with what is there now";
            return Err(Error::input(run.path().display(), problem, fix));
        }
        warnings.push(problem);
    }
    if ranks.is_first() {
        told_again(fetched, run, &latest, &mut warnings, &mut sinks)?;
    }
    warnings.into_iter().for_each(|text| sinks.warn(text));
    if !knows_inputs {
        let text = "the checkpoint is of an earlier rlvr and knows no digests of data, task and tokenizer: they are not compared";
        sinks.emit(&Event::Note { text: text.into() });
    }
    let (materials, mut decoder) = Materials::prepare(config, home, fetched.may, ranks, &mut sinks)?;
    // The run may have made its tokenizer just now.
    cursor.inputs = if config.model.path.is_none() { Inputs::of(config, home)? } else { inputs };
    agreed(ranks, &cursor)?;
    sinks.emit(&Event::phase("loading the checkpoint"));
    if ranks.is_first() {
        cursor.choice.restore(run, checkpoint)?;
    }
    let adapters = if config.lora.is_some() {
        check_base(config, &decoder, cursor.base.as_deref())?;
        Adapters::resume(config, &mut decoder, checkpoint)?
    } else {
        decoder = load_decoder(checkpoint, config.model.max_positions, &decoder.place())?;
        None
    };
    let optimizer = state::read_optimizer(checkpoint, &cursor, &decoder, ranks.share())?;
    let config = &settled(config, &materials, &decoder, &mut sinks)?;
    let record = Record::new(config, run, cursor, sinks, (meter, ranks.clone()), Some(checkpoint));
    Training { materials, adapters, record }.run(decoder, optimizer)
}

/// Lets those hear of the rest of a run who heard of its beginning.
fn told_again(
    fetched: &Fetched,
    run: &RunDirectory,
    latest: &Latest,
    warnings: &mut Vec<String>,
    sinks: &mut Sinks,
) -> Result<()> {
    let config = &fetched.config;
    watch(config, run, sinks)?;
    track(config, &fetched.recorded, run, sinks)?;
    sinks.add(SampleFiles::resume(run, &latest.checkpoint.samples)?);
    warnings.extend(latest.damaged.iter().map(|d| format!("passed over a damaged checkpoint: {d}")));
    let (kept, whole) =
        (std::fs::metadata(run.metrics()).map_or(0, |found| found.len()), latest.checkpoint.metrics_bytes);
    if kept < whole {
        let lost = "metrics.jsonl has lost lines from before the checkpoint, which are not made again";
        warnings.push(format!("{lost}: it had {whole} bytes, it has {kept}"));
    }
    sinks.add(JsonlSink::resume(run.metrics(), latest.checkpoint.metrics_bytes)?);
    if config.run.tensorboard {
        let metrics = std::fs::read(run.metrics()).map_err(Error::io(run.metrics(), "read"))?;
        let lines = TensorBoard::events_in(&metrics);
        sinks.add(TensorBoard::resume(run.path(), lines, &hparams(&fetched.recorded)?)?);
    }
    Ok(())
}

/// # Errors
/// A rank that reads other files than rank 0, or has another model or another checkpoint.
fn agreed(ranks: &Ranks, cursor: &Cursor) -> Result<()> {
    let all = ranks.gather(cursor.clone())?;
    let Some((first, others)) = all.split_first() else { return Ok(()) };
    let differs = |(rank, other): (usize, &Cursor)| {
        let mut what = other.inputs.changed(&first.inputs, false);
        if what.is_empty() && other.base != first.base {
            what.push("the weights of the base model".into());
        }
        let place = (other.stage, other.step, other.total_steps);
        if what.is_empty() && place != (first.stage, first.step, first.total_steps) {
            what.push("the checkpoint".into());
        }
        (!what.is_empty()).then(|| {
            let problem =
                format!("rank {} does not read what rank 0 reads: {}", ranks.name(rank + 1), what.join(", "));
            Error::input("ranks", problem, "Give all hosts the same files")
        })
    };
    others.iter().enumerate().find_map(differs).map_or(Ok(()), Err)
}

/// Whether a run has its final model and no stage left.
pub fn is_done(run: &RunDirectory, config: &Config) -> Result<bool> {
    // Of a newest checkpoint that is half there nothing is known: an older one counts.
    let stage = |path: PathBuf| state::read_cursor(&path).map_or(0, |cursor| cursor.stage);
    let newest = Checkpoint::newest(run)?.map(stage);
    // Where a folder gets its name file by file, it has it before it is whole.
    let is_made = run.model().is_dir() && !disk::aside(&run.model()).exists();
    Ok(is_made && newest.is_none_or(|stage| stage >= config.stages.len()))
}

/// Holds the config that a run is asked for with against its own, `recorded`: where it is, and how it is gone on with, may differ.
///
/// # Errors
/// The keys that differ.
pub fn check_same(
    given: &Config,
    run: &RunDirectory,
    recorded: &Config,
    progress: &mut dyn Progress,
) -> Result<()> {
    let mut given = given.clone();
    (given.run.root, given.run.resume) = (recorded.run.root.clone(), recorded.run.resume);
    let named = |model: &Option<PathBuf>, then: &Option<PathBuf>| match (model, then) {
        // A branch that has moved since is not followed.
        (Some(model), Some(then)) => then.to_string_lossy().starts_with(&format!("{}@", model.display())),
        _ => false,
    };
    for (model, then) in [
        (&mut given.model.path, &recorded.model.path),
        (&mut given.model.tokenizer, &recorded.model.tokenizer),
    ] {
        if named(model, then) {
            model.clone_from(then);
        }
    }
    let mut then = recorded.data.clone();
    for ((_, path), (_, then)) in given.data.paths_mut().into_iter().zip(then.paths_mut()) {
        if is_pinned(path, then) {
            path.clone_from(then);
        }
    }
    if (&given.model.path, &given.model.tokenizer) != (&recorded.model.path, &recorded.model.tokenizer) {
        given = fetch(given, progress)?.recorded;
    }
    let keys = |config: &Config| keys_of("config", &config.to_toml()?);
    let changes = changes(&keys(recorded)?, &keys(&given)?);
    if changes.is_empty() {
        return Ok(());
    }
    let fix = "Give another run.name, or make the change in that file, which counts, and resume";
    Err(Error::input(run.config().display(), format!("is of another config: {}", changes.join("; ")), fix))
}

/// Whether `then` is the data set that `named` means, by a commit.
fn is_pinned(named: &Path, then: &Path) -> bool {
    let (named, then) = (named.to_string_lossy(), then.to_string_lossy());
    let (repo, part) = match named.strip_prefix("hf:").map(|set| set.split_once(':').unwrap_or((set, ""))) {
        Some(set) => set,
        None => return false,
    };
    let pinned = then.strip_prefix("hf:").and_then(|then| then.strip_prefix(repo)?.strip_prefix('@'));
    let pinned_part = pinned.and_then(|pinned| pinned.split_once(':')).map(|(_, part)| part);
    pinned.is_some() && (part.is_empty() || pinned_part == Some(part))
}

/// `key was 1, is 2` of each that differs.
fn changes(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let text = |value: Option<&String>| value.map_or("absent", String::as_str).to_string();
    let changed = names.into_iter().filter(|name| before.get(*name) != now.get(*name));
    changed.map(|name| format!("{name} was {}, is {}", text(before.get(name)), text(now.get(name)))).collect()
}

/// What changed in a run's config since the checkpoint: allowed, and worth a line in its metrics.
pub fn edits(checkpoint: &Checkpoint, run: &RunDirectory) -> Result<Vec<String>> {
    let keys = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(keys_of(&path.to_string_lossy(), &text)?)),
        // Written by an rlvr that kept none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(&path, "read")(error)),
    };
    let (Some(before), Some(now)) = (keys(checkpoint.path.join(CHECKPOINT_CONFIG))?, keys(run.config())?)
    else {
        return Ok(Vec::new());
    };
    let said = |change| format!("the config was edited since the checkpoint: {change}");
    Ok(changes(&before, &now).into_iter().map(said).collect())
}
