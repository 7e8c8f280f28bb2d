//! Rows to train on and rows held out.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::Row;

/// One row of so many is held out.
const SHARE: usize = 5;

pub struct Halves {
    pub train: Vec<Row>,
    pub valid: Vec<Row>,
    /// Inputs that come with several labels.
    pub contradictory: usize,
}

/// A fifth of every label is held out, at least one row where there are two; rows of equal input stay together. Which,
/// a hash of the input decides: the same file is always split in the same way.
pub fn split(rows: &[Row]) -> Halves {
    let mut inputs: BTreeMap<[u8; 32], Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let mut input = row.json.clone();
        if let Some(object) = input.as_object_mut() {
            object.remove("label");
        }
        inputs.entry(Sha256::digest(input.to_string()).into()).or_default().push(row);
    }
    let contradictory =
        inputs.values().filter(|rows| rows.iter().any(|row| row.label != rows[0].label)).count();
    let mut by_label: BTreeMap<&str, Vec<&Vec<&Row>>> = BTreeMap::new();
    for rows in inputs.values() {
        by_label.entry(&rows[0].label).or_default().push(rows);
    }
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for groups in by_label.values() {
        let held_out = if groups.len() < 2 { 0 } else { (groups.len() / SHARE).max(1) };
        for (at, group) in groups.iter().enumerate() {
            let side = if at < held_out { &mut valid } else { &mut train };
            side.extend(group.iter().map(|row| (*row).clone()));
        }
    }
    train.sort_by_key(|row: &Row| row.line);
    valid.sort_by_key(|row: &Row| row.line);
    Halves { train, valid, contradictory }
}
