//! Rows in parts, such that no part knows what another is asked.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::near::{Corpus, Shingles};

/// A row as a division needs it.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Hash of what the model is given.
    pub input: [u8; 32],
    pub label: &'a str,
    pub group: Option<&'a str>,
    /// Where near-copies count.
    pub words: Option<&'a Shingles>,
}

/// Rows by part, each in the order of the file, and what bound rows together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Indices into the rows.
    pub parts: Vec<Vec<usize>>,
    /// Sets of rows that had to stay together.
    pub groups: usize,
    pub largest_group: usize,
    /// Rows in a set with others.
    pub bound: usize,
}

/// Sets of rows joined step by step.
struct Sets(Vec<usize>);

impl Sets {
    fn root(&mut self, at: usize) -> usize {
        let mut root = at;
        while self.0[root] != root {
            self.0[root] = self.0[self.0[root]];
            root = self.0[root];
        }
        root
    }

    /// The earliest row stands for its set.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

/// Rows of one group, of one input, or similar by `near` or more stay together. `shares` are those of the parts, their
/// sum 1; each label is divided alike, as far as the sets allow, and of two sets of a label one is in the second part. A
/// hash of the inputs and `seed` decides, so that the same file is always divided in the same way.
pub fn split(rows: &[Item], near: f64, shares: &[f64], seed: u64) -> Parts {
    let sets = joined(rows, near);
    let mut labels: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        let next = labels.len();
        labels.entry(row.label).or_insert(next);
    }
    let counts = |set: &[usize]| {
        let mut counts = vec![0.0; labels.len()];
        set.iter().for_each(|at| counts[labels[rows[*at].label]] += 1.0);
        counts
    };
    let all = counts(&(0..rows.len()).collect::<Vec<_>>());
    let mut missing: Vec<Vec<f64>> =
        shares.iter().map(|share| all.iter().map(|count| count * share).collect()).collect();
    let order = |set: &Vec<usize>| {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(rows[set[0]].input);
        <[u8; 32]>::from(hash.finalize())
    };
    let mut sets: Vec<Vec<usize>> = sets.into_values().collect();
    // Large sets first: what is left over is small. Within a size the hash decides.
    sets.sort_by_cached_key(|set| (usize::MAX - set.len(), order(set)));
    let mut parts = vec![Vec::new(); shares.len()];
    let (count, largest) = (sets.len(), sets.iter().map(Vec::len).max().unwrap_or(0));
    let bound = sets.iter().filter(|set| set.len() > 1).map(Vec::len).sum();
    for set in sets {
        let of_set = counts(&set);
        // The part that lacks most of what the set has, by its own measure.
        let need = |part: usize| -> f64 {
            let lacks = missing[part].iter().zip(&of_set).zip(&all);
            lacks.map(|((lack, has), all)| has * lack / (all * shares[part])).sum()
        };
        let wanted = (0..shares.len()).max_by(|a, b| need(*a).total_cmp(&need(*b)).then(b.cmp(a)));
        let part = wanted.unwrap_or(0);
        missing[part].iter_mut().zip(&of_set).for_each(|(lack, has)| *lack -= has);
        parts[part].extend(set);
    }
    parts.iter_mut().for_each(|part| part.sort_unstable());
    Parts { parts, groups: count, largest_group: largest, bound }
}

/// Sets of rows by their first row.
fn joined(rows: &[Item], near: f64) -> BTreeMap<usize, Vec<usize>> {
    let mut sets = Sets((0..rows.len()).collect());
    let mut seen = HashMap::new();
    let mut of_group = HashMap::new();
    for (at, row) in rows.iter().enumerate() {
        sets.join(at, *seen.entry(row.input).or_insert(at));
        if let Some(group) = row.group {
            sets.join(at, *of_group.entry(group).or_insert(at));
        }
    }
    let (with_words, words): (Vec<usize>, Vec<Shingles>) =
        rows.iter().enumerate().filter_map(|(at, row)| Some((at, row.words?.clone()))).unzip();
    let corpus = Corpus::new(words);
    for (number, at) in with_words.iter().enumerate() {
        let text = corpus.text(number);
        for other in corpus.candidates(text).into_iter().take_while(|other| *other < number) {
            // Of a set that the row is in already, nothing more is compared.
            let there = with_words[other];
            if sets.root(there) != sets.root(*at) && text.similarity(corpus.text(other)) >= near {
                sets.join(*at, there);
            }
        }
    }
    let mut by_root: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..rows.len() {
        by_root.entry(sets.root(at)).or_default().push(at);
    }
    by_root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::near::NEAR;

    /// A text and its label.
    type Row = (String, &'static str);

    fn divided(rows: &[Row], groups: Option<&[String]>, words: bool, shares: &[f64], seed: u64) -> Parts {
        let shingles: Vec<Shingles> = rows.iter().map(|(text, _)| Shingles::of(text)).collect();
        let item = |(at, (text, label)): (usize, &Row)| Item {
            input: Sha256::digest(text).into(),
            label,
            group: groups.map(|groups| groups[at].as_str()),
            words: words.then_some(&shingles[at]),
        };
        let items: Vec<Item> = rows.iter().enumerate().map(item).collect();
        split(&items, NEAR, shares, seed)
    }

    /// Rows that share no triple; every fourth is risky.
    fn rows(count: usize) -> Vec<Row> {
        let word = |i: usize, k: usize| {
            let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
            format!("{}{}{}{}", letter(i), letter(i / 26), letter(k), letter(k + i))
        };
        let text = |i: usize| (0..8).map(|k| word(i, k)).collect::<Vec<_>>().join(" ");
        (0..count).map(|i| (text(i), if i % 4 == 0 { "risk" } else { "safe" })).collect()
    }

    #[test]
    fn labels_are_divided_alike_and_always_in_the_same_way() {
        let rows = rows(400);
        let divide = |seed| divided(&rows, None, true, &[0.8, 0.1, 0.1], seed);
        let parts = divide(0);
        assert_eq!(parts.parts.iter().map(Vec::len).collect::<Vec<_>>(), [320, 40, 40]);
        for part in &parts.parts {
            let risky = part.iter().filter(|at| rows[**at].1 == "risk").count();
            assert_eq!(risky * 4, part.len());
        }
        assert_eq!((parts.groups, parts.largest_group, parts.bound), (400, 1, 0));
        assert_eq!(parts, divide(0));
        assert_ne!(parts.parts[1], divide(1).parts[1]);
    }

    #[test]
    fn of_two_rows_of_a_label_one_is_held_out() {
        for seed in 0..20 {
            let few = divided(&rows(5), None, false, &[0.8, 0.2], seed);
            let risky = few.parts[1].iter().filter(|at| *at % 4 == 0).count();
            assert_eq!((few.parts[1].len(), risky), (2, 1), "{few:?}");
        }
    }

    #[test]
    fn groups_copies_and_near_copies_stay_together() {
        let mut rows = rows(60);
        rows.push(("12:00 the same log of a server that was asked for the file 17 by a user".into(), "safe"));
        rows.push(("12:59 the same log of a server that was asked for the file 99 by a user".into(), "safe"));
        rows.push(("12:59 the same log of a server that was asked for the file 99 by a user".into(), "risk"));
        let groups: Vec<String> = (0..63).map(|i| format!("server {}", if i < 12 { 0 } else { i })).collect();
        let parts = divided(&rows, Some(&groups), true, &[0.5, 0.5], 3);
        let part = |at: usize| parts.parts.iter().position(|part| part.contains(&at)).unwrap();
        assert!((0..12).all(|at| part(at) == part(0)));
        assert!(part(60) == part(61) && part(61) == part(62));
        assert_eq!((parts.groups, parts.largest_group, parts.bound), (63 - 11 - 2, 12, 15));
        // Only equal texts.
        let parts = divided(&rows, None, false, &[0.5, 0.5], 3);
        assert_eq!((parts.groups, parts.largest_group, parts.bound), (62, 2, 2));
    }
}
