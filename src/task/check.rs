//! What the sections of a task file are checked with: errors that name the key.

use regex::Regex;

use super::row::{RowPath, Template};
use super::shorten;
use crate::error::{Error, Result};

pub(super) struct Check<'a> {
    /// The file, for errors.
    pub place: &'a str,
}

impl Check<'_> {
    pub(super) fn at(&self, key: &str, problem: impl ToString, fix: impl ToString) -> Error {
        Error::input(format!("{}: {key}", self.place), problem, fix)
    }

    pub(super) fn path(&self, key: &str, text: &str) -> Result<RowPath> {
        let fix = "Write keys joined by dots and list indices in brackets, for example `security_type[-1]`";
        RowPath::parse(text).map_err(|problem| self.at(key, problem, fix))
    }

    pub(super) fn template(&self, key: &str, text: &str) -> Result<Template> {
        let fix = "Write `{path}` for a field of the row, and {{ or }} for a brace";
        Template::parse(text).map_err(|problem| self.at(key, problem, fix))
    }

    /// A regex with one capture group.
    pub(super) fn one_group(&self, key: &str, pattern: &str) -> Result<Regex> {
        let regex = self.regex(key, pattern)?;
        if regex.captures_len() != 2 {
            let problem = format!("the regex has {} capture groups", regex.captures_len() - 1);
            return Err(self.at(&format!("{key}.regex"), problem, "Put (...) around the value, once"));
        }
        Ok(regex)
    }

    pub(super) fn regex(&self, key: &str, pattern: &str) -> Result<Regex> {
        Regex::new(pattern).map_err(|e| {
            // The last line says what is wrong; those before draw the pattern.
            let why = e.to_string().lines().last().unwrap_or_default().to_string();
            let fix =
                "Correct the pattern (syntax of the Rust regex crate: no look-around, no back-references)";
            self.at(&format!("{key}.regex"), format!("`{}` does not compile: {why}", shorten(pattern)), fix)
        })
    }
}
