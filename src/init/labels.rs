//! The labels of a draft, and which of them flags nothing.

use std::path::Path;

use super::Row;
use crate::error::{Error, Result};

/// More are not names but texts.
const MOST: usize = 64;
/// Names of "nothing to flag", as lists of labels have them.
const NEGATIVE: [&str; 22] = [
    "safe",
    "benign",
    "none",
    "ok",
    "normal",
    "negative",
    "clean",
    "ham",
    "no",
    "false",
    "0",
    "legitimate",
    "harmless",
    "allowed",
    "allow",
    "pass",
    "not flagged",
    "not_flagged",
    "non-toxic",
    "neutral",
    "other",
    "unflagged",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    pub negative: String,
    /// In the order of their first rows.
    pub positive: Vec<String>,
    /// Rows of each, the negative one first.
    pub counts: Vec<usize>,
    /// Why the negative one is that.
    pub because: String,
}

impl Labels {
    pub(super) fn of(file: &Path, rows: &[Row], negative: Option<&str>) -> Result<Self> {
        let mut found: Vec<(String, usize)> = Vec::new();
        for row in rows {
            match found.iter_mut().find(|(name, _)| *name == row.label) {
                Some((_, count)) => *count += 1,
                None => found.push((row.label.clone(), 1)),
            }
            if found.len() > MOST {
                let problem = format!("more than {MOST} different labels or answers: they are free text");
                let fix = "rlvr trains verdicts: give every row a field `label` with one of a few names";
                return Err(Error::input(file.display(), problem, fix));
            }
        }
        if let [(only, count)] = found.as_slice() {
            let problem =
                format!("all {count} rows have the label `{only}`, so there is nothing to tell apart");
            return Err(Error::input(file.display(), problem, "Add rows of another label"));
        }
        let names = || found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        for (name, _) in &found {
            let problem = if name.starts_with(['@', '$']) {
                "begins with `@` or `$`, which task files use"
            } else if name.contains('\n') {
                "has a line break"
            } else {
                continue;
            };
            return Err(Error::input(
                file.display(),
                format!("the label `{name}` {problem}"),
                "Rename it in the rows",
            ));
        }
        let by_name = || found.iter().position(|(name, _)| NEGATIVE.contains(&name.to_lowercase().as_str()));
        let (at, because) = match negative {
            Some(wanted) => match found.iter().position(|(name, _)| name == wanted) {
                Some(at) => (at, "as you say".to_string()),
                None => {
                    let problem = "no row has this label";
                    return Err(Error::input(
                        format!("--negative {wanted}"),
                        problem,
                        format!("Use one of: {}", names()),
                    ));
                }
            },
            None => match by_name() {
                Some(at) => (at, "by its name".to_string()),
                None => {
                    let most = found.iter().map(|(_, count)| *count).max().unwrap_or(0);
                    let at = found.iter().position(|(_, count)| *count == most).unwrap_or(0);
                    (at, "the most frequent, as no name says it; --negative NAME says otherwise".to_string())
                }
            },
        };
        let (negative, first) = found.remove(at);
        let counts = std::iter::once(first).chain(found.iter().map(|(_, count)| *count)).collect();
        Ok(Self { negative, positive: found.into_iter().map(|(name, _)| name).collect(), counts, because })
    }

    /// The negative one first.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.negative.as_str()).chain(self.positive.iter().map(String::as_str))
    }
}
