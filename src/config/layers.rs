//! What was given for a config, layer on layer, and which layer each value is from.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::PRESETS;
use crate::error::{Error, Result};

/// Where the value of a key is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A shipped config, by name and line.
    Preset(String, usize),
    File(String, usize),
    /// `--set`, word for word.
    Set(String),
}

impl Origin {
    /// Later layers lie on top.
    pub fn layer(&self) -> usize {
        match self {
            Self::Default => 0,
            Self::Preset(..) => 1,
            Self::File(..) => 2,
            Self::Set(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Preset(name, line) => write!(f, "preset {name}:{line}"),
            Self::File(place, line) => write!(f, "{place}:{line}"),
            Self::Set(_) => f.write_str("--set"),
        }
    }
}

/// What was given so far, later on top of earlier.
pub struct Layers {
    pub table: Table,
    pub origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// A file and the preset that it names.
    pub fn of_file(place: &str, text: &str) -> Result<Self> {
        let mut layers = Self { table: Table::new(), origins: BTreeMap::new() };
        let mut table = parse(place, text)?;
        if let Some(preset) = table.remove("preset") {
            let name = preset.as_str().unwrap_or_default();
            let Some((_, base)) = PRESETS.iter().find(|(n, _)| *n == name) else {
                let names: Vec<&str> = PRESETS.iter().map(|(n, _)| *n).collect();
                let want = format!("one of {}", names.join(", "));
                return Err(Error::config("preset", preset, want, "no other preset is shipped"));
            };
            layers.lay_text(name, base)?;
        }
        let lines = lines_of(text);
        let shipped = PRESETS.iter().any(|(name, _)| *name == place);
        layers.lay(table, |key| origin_in(place, shipped, line_of(&lines, key)));
        Ok(layers)
    }

    fn lay_text(&mut self, name: &str, text: &str) -> Result<()> {
        let lines = lines_of(text);
        self.lay(parse(name, text)?, |key| origin_in(name, true, line_of(&lines, key)));
        Ok(())
    }

    pub fn lay(&mut self, over: Table, origin: impl Fn(&str) -> Origin) {
        let given: Vec<String> = leaves(&over).into_iter().map(|(key, _)| key).collect();
        merge(&mut self.table, over);
        self.origins.extend(given.into_iter().map(|key| {
            let origin = origin(&key);
            (key, origin)
        }));
        let left: BTreeMap<String, &Value> = leaves(&self.table).into_iter().collect();
        self.origins.retain(|key, _| left.contains_key(key));
    }

    /// Takes a key or a section back to its default.
    pub fn remove(&mut self, key: &str) {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let path = section.split('.').filter(|part| !part.is_empty());
        let table = path
            .into_iter()
            .try_fold(&mut self.table, |table, part| table.get_mut(part).and_then(Value::as_table_mut));
        if let Some(table) = table {
            table.remove(name);
        }
        self.origins.retain(|given, _| !is_under(given, key));
    }
}

/// Whether `key` is `section`, or a key of it.
pub fn is_under(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
}

fn origin_in(place: &str, shipped: bool, line: usize) -> Origin {
    if shipped { Origin::Preset(place.into(), line) } else { Origin::File(place.into(), line) }
}

/// Every value that is no table, by `section.key`.
pub fn leaves(table: &Table) -> Vec<(String, &Value)> {
    fn collect<'a>(prefix: &str, table: &'a Table, out: &mut Vec<(String, &'a Value)>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(table) => collect(&key, table, out),
                other => out.push((key, other)),
            }
        }
    }
    let mut out = Vec::new();
    collect("", table, &mut out);
    out
}

/// The line, from 1, of every key of a TOML text that parses.
fn lines_of(text: &str) -> BTreeMap<String, usize> {
    fn collect(prefix: &str, table: &DeTable, text: &str, out: &mut BTreeMap<String, usize>) {
        for (name, value) in table {
            let key = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            let before = text.get(..name.span().start).unwrap_or_default();
            if let DeValue::Table(table) = value.get_ref() {
                collect(&key, table, text, out);
            }
            out.insert(key, before.matches('\n').count() + 1);
        }
    }
    let mut lines = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        collect("", table.get_ref(), text, &mut lines);
    }
    lines
}

fn line_of(lines: &BTreeMap<String, usize>, key: &str) -> usize {
    lines.get(key).copied().unwrap_or(1)
}

pub fn parse(place: &str, text: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start));
        let line = line.map_or(1, |before| before.matches('\n').count() + 1);
        Error::input(format!("{place}:{line}"), error.message(), "Correct the TOML on that line")
    })
}

/// `over` wins; tables merge key by key, except that a table with another `type` replaces the whole.
pub fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(b)), Value::Table(o))
                if o.get("type").is_none() || o.get("type") == b.get("type") =>
            {
                merge(b, o);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
