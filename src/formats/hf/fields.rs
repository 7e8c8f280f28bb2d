//! The fields of a JSON object, read with errors that name the file and the field.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A JSON object whose errors name the file and the field. An explicit null reads as absent.
pub(super) struct Fields<'a> {
    pub(super) place: String,
    pub(super) map: &'a Map<String, Value>,
}

impl Fields<'_> {
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, field: &str, problem: impl ToString, fix: &str) -> Error {
        Error::input(format!("{}: {field}", self.place), problem, fix)
    }

    pub(super) fn missing(&self, field: &str) -> Error {
        self.wrong(field, "missing", "Fetch the model's own config.json")
    }

    pub(super) fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => {
                value.as_u64().filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                    self.wrong(field, format!("{value} is not a positive whole number"), "Correct it")
                })
            }
        }
    }

    pub(super) fn positive(&self, field: &str, default: Option<f64>) -> Result<f64> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| self.wrong(field, format!("{value} is not a positive number"), "Correct it")),
        }
    }

    pub(super) fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(field, format!("{value} is neither true nor false"), "Correct it")),
        }
    }

    /// One id, a list of ids, or nothing. A negative id is some files' way of saying none.
    pub(super) fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => &[],
            Some(Value::Array(values)) => &values[..],
            Some(value) => std::slice::from_ref(value),
        };
        let values = values.iter().filter(|value| value.as_i64().is_none_or(|id| id >= 0));
        values
            .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong(field, "not a token id or a list of them", "Correct it"))
    }
}
