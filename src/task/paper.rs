//! `[paper]`: what the paper's rule takes for a flag.

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::check::Check;
use crate::error::Result;

/// What the paper's rule takes for a flag.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PaperSection {
    /// Its first match is a flag, if capture group 1 is a label. Every other malformed answer is not flagged.
    regex: String,
}

impl PaperSection {
    /// `rule_paper`: the first rule that has a `paper` key of its own.
    pub fn check(self, check: &Check, rule_paper: Option<usize>) -> Result<Regex> {
        if let Some(i) = rule_paper {
            let problem = "paper has no effect, because [paper] decides for all rules";
            return Err(check.at(&format!("verdict[{i}].paper"), problem, "Remove it, or [paper]"));
        }
        let regex = check.regex("paper", &self.regex)?;
        if regex.captures_len() < 2 {
            let problem = "the pattern has no capture group";
            return Err(check.at("paper.regex", problem, "Put (...) around the label in it"));
        }
        Ok(regex)
    }
}
