//! Rows to train on and rows held out.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::Row;
use crate::data::split::{self, Item};

/// Of the rows to train on and of those held out.
const SHARES: [f64; 2] = [0.8, 0.2];

pub struct Halves {
    pub train: Vec<Row>,
    pub valid: Vec<Row>,
    /// Inputs that come with several labels.
    pub contradictory: usize,
}

/// A fifth of every label is held out, at least one row where there are two; rows of equal input stay together.
pub fn split(rows: &[Row]) -> Halves {
    let input = |row: &Row| {
        let mut input = row.json.clone();
        if let Some(object) = input.as_object_mut() {
            object.remove("label");
        }
        <[u8; 32]>::from(Sha256::digest(input.to_string()))
    };
    let items: Vec<Item> = rows
        .iter()
        .map(|row| Item { input: input(row), label: &row.label, group: None, words: None })
        .collect();
    let mut labels: HashMap<[u8; 32], (&str, bool)> = HashMap::new();
    for item in &items {
        let (first, several) = labels.entry(item.input).or_insert((item.label, false));
        *several |= *first != item.label;
    }
    let contradictory = labels.values().filter(|(_, several)| *several).count();
    let parts = split::split(&items, 1.0, &SHARES, 0).parts;
    let of = |part: usize| parts[part].iter().map(|at| rows[*at].clone()).collect();
    Halves { train: of(0), valid: of(1), contradictory }
}
