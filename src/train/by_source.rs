//! Means of a step by the source of its rows, where `data.mix` has several.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// By metric name, `source/NAME/WHAT`; of rows of a single file nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct BySource(BTreeMap<String, Mean>);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Mean {
    sum: f64,
    count: f64,
}

impl BySource {
    /// Adds `sum`, of so many values, to the mean of `what` over the rows of a source.
    pub fn add(&mut self, source: Option<&str>, what: &str, sum: f64, count: usize) {
        let Some(source) = source else { return };
        let mean = self.0.entry(format!("source/{source}/{what}")).or_default();
        mean.sum += sum;
        mean.count += count as f64;
    }

    /// What all ranks found together.
    pub fn and(mut self, other: Self) -> Self {
        for (name, more) in other.0 {
            let mean = self.0.entry(name).or_default();
            mean.sum += more.sum;
            mean.count += more.count;
        }
        self
    }

    /// Of sources that the step saw.
    pub fn metrics(&self) -> impl Iterator<Item = (String, f64)> {
        let seen = self.0.iter().filter(|(_, mean)| mean.count > 0.0);
        seen.map(|(name, mean)| (name.clone(), mean.sum / mean.count))
    }
}
