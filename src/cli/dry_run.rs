//! `rlvr train --dry-run`: a config written out whole, and what a run of it would begin with.

use std::io::Write;

use anyhow::Result;
use toml::{Table, Value};

use super::hub::Bars;
use crate::config::keys::{self, Key, Section};
use crate::config::{Config, Loaded, Origin, idle_because};
use crate::hub::Parts;
use crate::observe::machine::Host;
use crate::ops::cuda;
use crate::train::launch;
use crate::train::materials::Permits;
use crate::train::preflight::{FIRST_ROWS, Preflight, preflight};

const GIB: f64 = (1u64 << 30) as f64;
/// Columns before what is said of a key.
const WIDTH: usize = 44;

/// # Errors
/// What the run would refuse before its first step. Nothing of it stays on the disk.
pub fn run(loaded: Loaded, may: Permits) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{}", written_out(&loaded)?)?;
    out.flush()?;
    let config = loaded.config;
    // Of a hub's model the small files; the weights are the run's to fetch.
    let mut fetched = launch::fetch_parts(config, Parts::Text, &mut Bars::default())?;
    fetched.may = may;
    super::use_threads(fetched.config.threads)?;
    let scratch = std::env::temp_dir().join(format!("rlvr-dry-run-{}", std::process::id()));
    let found = preflight(&fetched, fetched.pinned.is_empty(), &scratch);
    let _ = std::fs::remove_dir_all(&scratch);
    let found = found?;
    for (name, text) in report(&fetched.config, &found) {
        writeln!(out, "# {name:<9} {text}")?;
    }
    for note in &found.notes {
        writeln!(out, "# note      {note}")?;
    }
    Ok(())
}

/// Every key: those with a value as TOML, the others as comments.
fn written_out(loaded: &Loaded) -> Result<String> {
    let table: Table = loaded.config.to_toml()?.parse()?;
    let mut out = String::new();
    for section in keys::CONFIG.iter() {
        let there = section.path.is_empty() || at(&table, &section.path).is_some();
        if !section.path.is_empty() {
            let head = format!("[{}]", section.path);
            out += &match (there, idle_because(&loaded.config, &section.path)) {
                (false, _) => format!("\n{}\n", commented(&format!("# {head}"), "absent")),
                (true, Some(why)) => format!("\n{}\n", commented(&head, &format!("not asked for: {why}"))),
                (true, None) => format!("\n{head}\n"),
            };
        }
        let kind = at(&table, &section.path).and_then(|table| table.get("type")).and_then(Value::as_str);
        let of_kind =
            |key: &&Key| key.types.is_empty() || key.types.iter().any(|of| Some(of.as_str()) == kind);
        for key in section.keys.iter().filter(of_kind).filter(|key| key.path != "preset") {
            out += &line(loaded, &table, section, key, there);
        }
    }
    Ok(out + "\n")
}

fn line(loaded: &Loaded, table: &Table, section: &Section, key: &Key, there: bool) -> String {
    let name = key.path.strip_prefix(&section.path).unwrap_or(&key.path).trim_start_matches('.');
    let default = key.default.as_ref().map(|value| format!("default {value}"));
    let Some(value) = at(table, &key.path) else {
        let text = match (&key.default, there) {
            (Some(value), false) => format!("# {name} = {value}"),
            _ => format!("# {name} ="),
        };
        return commented(&text, &key.when_absent()) + "\n";
    };
    let from = match (loaded.origin_under(&key.path), default) {
        (Origin::Default, _) => "default".into(),
        (origin, Some(default)) => format!("{origin}; {default}"),
        (origin, None) => origin.to_string(),
    };
    let idle = idle_because(&loaded.config, &key.path).filter(|_| !section.path.is_empty());
    let idle = idle.filter(|_| idle_because(&loaded.config, &section.path).is_none());
    let idle = idle.map_or(String::new(), |why| format!("; not asked for: {why}"));
    commented(&format!("{name} = {}", keys::written(value)), &format!("{from}{idle}")) + "\n"
}

fn commented(text: &str, comment: &str) -> String {
    match comment.is_empty() {
        true => text.to_string(),
        false => format!("{text:<WIDTH$} # {comment}"),
    }
}

fn at<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

fn report(config: &Config, found: &Preflight) -> Vec<(&'static str, String)> {
    let Preflight { materials, model, cuda, dtype, plan, .. } = found;
    let rows = &materials.rows;
    let named = config.model.path.as_ref().map_or("from the seed".into(), |path| path.display().to_string());
    let millions = model.parameter_count() as f64 / 1e6;
    let place = if *cuda { "cuda" } else { "cpu" };
    let which =
        if found.all_rows { "all rows".into() } else { format!("the first {FIRST_ROWS} of each kind") };
    let counts = [("sft", rows.sft.len()), ("grpo", rows.grpo.len()), ("enumerate", rows.answers.len())];
    let kept: Vec<String> = counts
        .into_iter()
        .chain([("valid", rows.valid.len())])
        .filter(|(_, rows)| *rows > 0)
        .map(|(name, rows)| format!("{name} {rows}"))
        .collect();
    let longest = rows.valid.iter().chain(&rows.sft).chain(&rows.grpo).chain(&rows.answers);
    let longest = longest.map(|row| row.prompt.token_ids.len()).max().unwrap_or(0);
    let phase = plan.phases.iter().max_by_key(|phase| phase.bytes()).map_or("", |phase| phase.name.as_str());
    let free = match cuda {
        true => {
            cuda::device(0).and_then(|device| cuda::describe(&device)).ok().map(|found| found.memory_free)
        }
        false => Host::ask().memory_free,
    };
    let fits = match free {
        Some(free) if plan.peak() > free => {
            format!(", {:.2} free: it does not fit, `rlvr plan` says what helps", free as f64 / GIB)
        }
        Some(free) => format!(", {:.2} free", free as f64 / GIB),
        None => String::new(),
    };
    vec![
        ("task", format!("{}: {} labels", materials.task.name(), materials.task.labels().len())),
        ("model", format!("{named}, {millions:.2} million parameters, {place} {}", dtype.as_str())),
        ("rows", format!("{which}, kept: {}", kept.join(", "))),
        ("template", format!("the longest of these prompts has {longest} tokens")),
        ("memory", format!("{:.2} GiB at most ({phase}){fits}", plan.peak() as f64 / GIB)),
    ]
}
