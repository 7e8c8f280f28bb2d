//! How a config comes together: defaults < preset < TOML file < `--set a.b=v`, and which of them a value is from.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::layers::{Layers, Origin, is_under, leaves, merge, parse};
use super::{Config, PRESETS, exclusive, keys, suggest};
use crate::error::{Error, Result};

/// A config, and how it came to be so.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Of every key that is not at its default, `section.key`.
    pub origins: BTreeMap<String, Origin>,
    /// What the user gave and will not get, a sentence each.
    pub notes: Vec<String>,
}

impl Config {
    /// From a file, or a preset's name, with overrides `a.b=v` on top.
    pub fn load(source: &str, overrides: &[String]) -> Result<Self> {
        Ok(Loaded::read(source, overrides)?.config)
    }

    /// `place` names the text in errors.
    pub fn from_toml(place: &str, text: &str, overrides: &[String]) -> Result<Self> {
        Ok(Loaded::from_toml(place, text, overrides)?.config)
    }

    /// The config that a run was made with. Keys that did nothing in it do nothing.
    pub fn of_run(path: &Path) -> Result<Self> {
        let place = path.to_string_lossy();
        let (_, text) = read_source(&place)?;
        Self::of_run_text(&place, &text)
    }

    /// [`Self::of_run`] from its text.
    pub fn of_run_text(place: &str, text: &str) -> Result<Self> {
        let mut layers = Layers::of_file(place, text)?;
        exclusive::settle_as_before(&mut layers.table);
        defaults_as_before(&mut layers.table);
        Ok(finish(layers, place)?.config)
    }
}

impl Loaded {
    /// As [`Config::load`].
    pub fn read(source: &str, overrides: &[String]) -> Result<Self> {
        let (place, text) = read_source(source)?;
        Self::from_toml(&place, &text, overrides)
    }

    /// As [`Config::from_toml`].
    pub fn from_toml(place: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let mut layers = Layers::of_file(place, text)?;
        for text in overrides {
            layers.lay(parse_override(text)?, |_| Origin::Set(text.clone()));
        }
        finish(layers, place)
    }

    /// Origin of a key's value; of a table whose keys the user names, the last given of them.
    pub fn origin_under(&self, key: &str) -> &Origin {
        let of_key = self.origins.iter().filter(|(given, _)| is_under(given, key));
        of_key.map(|(_, origin)| origin).max_by_key(|origin| origin.layer()).unwrap_or(&Origin::Default)
    }
}

/// The config of all layers, checked. `place` names it in errors.
fn finish(mut layers: Layers, place: &str) -> Result<Loaded> {
    retired(&mut layers.table)?;
    suggest::refuse_unknown(&layers)?;
    let mut notes = exclusive::settle(&mut layers)?;
    // Defaults lie below by key, not by section: one key of a section leaves the rest of it as it was.
    let mut whole = parse("the defaults", &Config::default().to_toml()?)?;
    merge(&mut whole, layers.table);
    let written = whole.clone();
    let origins = layers.origins;
    let config: Config = serde_path_to_error::deserialize(whole).map_err(|error| {
        let key = error.path().to_string();
        let place = match origins.iter().find(|(given, _)| is_under(given, &key) || is_under(&key, given)) {
            Some((given, Origin::Set(text))) if *given == key => format!("--set {text}"),
            Some((_, Origin::Set(text))) => format!("--set {text}: {key}"),
            Some((_, origin)) => format!("{origin}: {key}"),
            None if key == "." => place.to_string(),
            None => format!("{place}: {key}"),
        };
        let said = error.into_inner().message().replace("expected usize", "expected a whole number");
        let problem = match said.split_once("expected struct ") {
            Some((before, _)) => format!("{before}expected a table"),
            None => said,
        };
        Error::input(place, problem, suggest::EVERY_KEY)
    })?;
    config.validate()?;
    keys::check(&written)?;
    notes.extend(exclusive::idle(&config, &origins));
    Ok(Loaded { config, origins, notes })
}

/// What a run of before was made with where its config does not know the key: it goes on as it began. Runs divided advantages by
/// the population's deviation until there was `grpo.scale_std`.
fn defaults_as_before(table: &mut Table) {
    let Some(Value::Table(grpo)) = table.get_mut("grpo") else { return };
    let divides = grpo.get("scale_rewards").and_then(Value::as_str) != Some("none");
    if divides && !grpo.contains_key("scale_std") {
        grpo.insert("scale_std".into(), "population".into());
    }
}

/// Keys of configs and runs of before: one that says what is so anyway is dropped, another is named with its heir.
fn retired(table: &mut Table) -> Result<()> {
    let Some(Value::Table(grpo)) = table.get_mut("grpo") else { return Ok(()) };
    match grpo.remove("estimator") {
        Some(Value::String(sampled)) if sampled == "sampled" => Ok(()),
        None => Ok(()),
        Some(other) => {
            let problem = format!("= {other}: enumeration is a stage of its own now");
            let fix =
                "Write \"enumerate\" in the place of \"grpo\" in stages, and its keys under [enumerate]";
            Err(Error::input("grpo.estimator", problem, fix))
        }
    }
}

fn read_source(source: &str) -> Result<(String, String)> {
    if let Some((name, text)) = PRESETS.iter().find(|(name, _)| *name == source) {
        return Ok(((*name).into(), (*text).into()));
    }
    let path = Path::new(source);
    // The presets are embedded: `configs/demo.toml` works wherever the binary is run from.
    let shipped = PRESETS.iter().find(|(name, _)| path == Path::new("configs").join(format!("{name}.toml")));
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Err(Error::input(source, "is a pipe or a device, not a file", "Give a file"));
    }
    match (std::fs::read_to_string(path), shipped) {
        (Ok(text), _) => Ok((source.into(), text)),
        (Err(_), None) if path.is_dir() => {
            Err(Error::input(source, "is a folder, not a config", "Name a TOML file in it"))
        }
        (Err(e), None) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::input(source, "is not UTF-8", "Save the config as UTF-8"))
        }
        (Err(e), None) if e.kind() == std::io::ErrorKind::NotFound && path.extension().is_none() => {
            let names = PRESETS.map(|(name, _)| name).join(", ");
            let fix = format!("Use one of: {names}; or give the path of a TOML file");
            Err(Error::input(format!("config `{source}`"), "no preset has this name", fix))
        }
        (Err(e), Some((_, text))) if e.kind() == std::io::ErrorKind::NotFound => {
            Ok((source.into(), (*text).into()))
        }
        (Err(e), _) => Err(Error::io(path, "read the config")(e)),
    }
}

/// Every key of a TOML text as `section.key`, with its value as TOML writes it.
pub fn keys_of(place: &str, text: &str) -> Result<BTreeMap<String, String>> {
    let table = parse(place, text)?;
    Ok(leaves(&table).into_iter().map(|(key, value)| (key, value.to_string())).collect())
}

/// `a.b=v`: v is TOML, or a bare string when it is not.
fn parse_override(text: &str) -> Result<Table> {
    let fix = "Write --set section.key=value";
    let Some((path, value)) = text.split_once('=') else {
        return Err(Error::input(format!("--set {text}"), "has no `=`", fix));
    };
    let value = match format!("v = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").unwrap_or(Value::String(value.into())),
        Err(_) => Value::String(value.into()),
    };
    let mut over = value;
    for key in path.trim().rsplit('.') {
        if key.is_empty() {
            return Err(Error::input(format!("--set {text}"), "has an empty key", fix));
        }
        over = Value::Table(Table::from_iter([(key.trim().to_string(), over)]));
    }
    match over {
        Value::Table(over) => Ok(over),
        _ => Ok(Table::new()),
    }
}
