//! Keys that say the same thing in two ways, and keys that the rest of a config leaves without a job.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::layers::{Layers, Origin, is_under, leaves};
use super::{Config, Stage};
use crate::error::{Error, Result};

/// Keys or sections that stand for one decision.
type Side = &'static [&'static str];

/// Two ways of one decision: only one can count. A number of 0 is not given.
const CHOICES: [(Side, Side); 9] = [
    (&["sft.steps"], &["sft.epochs"]),
    (&["grpo.steps"], &["grpo.epochs"]),
    (&["sft.optim.warmup_steps"], &["sft.optim.warmup_ratio"]),
    (&["grpo.optim.warmup_steps"], &["grpo.optim.warmup_ratio"]),
    (&["enumerate.optim.warmup_steps"], &["enumerate.optim.warmup_ratio"]),
    (&["model.path"], &["model.random"]),
    (&["data.train"], &["data.mix"]),
    (&["data.valid"], &["data.valid_files"]),
    (&["data.train", "data.valid", "data.mix", "data.valid_files"], &["data.synthetic"]),
];

/// A side that was given: one key of it, with its value and where it is from.
struct Given {
    key: String,
    value: String,
    origin: Origin,
}

/// What was given later takes the place of what was given earlier: a preset's key gives way to a file's, and both to
/// `--set`. Says so, a sentence each.
///
/// # Errors
/// Both given by the same layer.
pub(super) fn settle(layers: &mut Layers) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (one, other) in CHOICES {
        let (Some(a), Some(b)) = (given(layers, one), given(layers, other)) else { continue };
        let (winner, loser, gives_way) = match a.origin.layer().cmp(&b.origin.layer()) {
            std::cmp::Ordering::Greater => (a, b, other),
            std::cmp::Ordering::Less => (b, a, one),
            std::cmp::Ordering::Equal => return Err(refusal(&a, one, &b, other)),
        };
        let said = match &winner.origin {
            Origin::Set(text) => format!("--set {text}"),
            origin => format!("{} = {} ({origin})", winner.key, winner.value),
        };
        let lost = if gives_way.contains(&loser.key.as_str()) {
            format!("{} = {}", loser.key, loser.value)
        } else {
            format!("[{}]", gives_way.join(", "))
        };
        notes.push(format!("{said} takes the place of {lost} ({})", loser.origin));
        gives_way.iter().for_each(|key| layers.remove(key));
    }
    // The number of steps has a default, and a run keeps what counts.
    if let Some(epochs) = given(layers, &["grpo.epochs"]) {
        let mut over = Table::new();
        over.insert("grpo".into(), Value::Table(Table::from_iter([("steps".into(), Value::Integer(0))])));
        layers.lay(over, |_| epochs.origin.clone());
    }
    Ok(notes)
}

/// In runs of before both could be written down; `sft.steps` counted.
pub(super) fn settle_as_before(table: &mut Table) {
    let Some(Value::Table(sft)) = table.get_mut("sft") else { return };
    if sft.get("steps").and_then(Value::as_integer).is_some_and(|steps| steps > 0) {
        sft.remove("epochs");
    }
}

/// The key of a side that was given last.
fn given(layers: &Layers, side: Side) -> Option<Given> {
    let off = |value: &Value| match value {
        Value::Integer(0) => true,
        Value::Float(number) => *number == 0.0,
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let all = leaves(&layers.table).into_iter();
    let of_side = all.filter(|(key, value)| side.iter().any(|k| is_under(key, k)) && !off(value));
    // Of several the first.
    of_side
        .rev()
        .filter_map(|(key, value)| {
            let origin = layers.origins.get(&key)?.clone();
            Some(Given { key, value: value.to_string(), origin })
        })
        .max_by_key(|given| given.origin.layer())
}

fn refusal(a: &Given, one: Side, b: &Given, other: Side) -> Error {
    let name = |given: &Given, side: Side| match side {
        [only] if *only != given.key => format!("[{only}]"),
        _ => given.key.clone(),
    };
    let place = |given: &Given| match &given.origin {
        Origin::Set(text) => format!("--set {text}"),
        origin => origin.to_string(),
    };
    let (first, second) = (name(a, one), name(b, other));
    let problem = format!("{first} is given together with {second} ({}), and only one can count", place(b));
    let number = a.value.parse::<f64>().is_ok();
    let fix = if number { "Remove one of them, or set it to 0" } else { "Keep one of them" };
    Error::input(place(a), problem, fix)
}

/// Why a key does nothing in this run, if so: its stage is not among `stages`.
pub fn idle_because(config: &Config, key: &str) -> Option<String> {
    let listed: Vec<&str> = config.stages.iter().map(|stage| stage.name()).collect();
    let runs = |stage: Stage| config.stages.contains(&stage);
    let lists = || format!("stages = [{}]", listed.join(", "));
    let absent = [Stage::Sft, Stage::Grpo, Stage::Enumerate].into_iter().filter(|stage| !runs(*stage));
    if absent.into_iter().any(|stage| is_under(key, stage.name())) {
        return Some(lists());
    }
    let of_rollouts = matches!(key, "eval.every_steps" | "run.dump_steps");
    (of_rollouts && !runs(Stage::Grpo) && !(runs(Stage::Enumerate) && key == "eval.every_steps")).then(lists)
}

/// Keys that `--set` gives and the run will not ask for, a sentence each. A file may keep the section of a stage that
/// it leaves out; who types a key means it.
pub(super) fn idle(config: &Config, origins: &BTreeMap<String, Origin>) -> Vec<String> {
    let typed = origins.iter().filter_map(|(key, origin)| match origin {
        Origin::Set(text) => Some((key, text)),
        _ => None,
    });
    typed
        .filter_map(|(key, text)| {
            let why = idle_because(config, key)?;
            Some(format!("--set {text} has no effect: {why}"))
        })
        .collect()
}
