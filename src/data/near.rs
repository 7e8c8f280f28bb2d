//! Texts that are the same or nearly so: which rows of a corpus share most of their word triples.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// Bands of MinHash values. Two texts are compared when one band is equal: at a similarity of .8 that fails for one pair in
/// 10^7, at .3 it happens for 15 in 100.
const BANDS: usize = 20;
const ROWS: usize = 4;
/// A triple that so few texts have is common in no corpus.
const FEW: usize = 10;
/// Words in a shingle.
const WORDS: usize = 3;

/// Two texts are nearly the same from this share of equal word triples on (Jaccard index).
pub const NEAR: f64 = 0.8;

/// A text as a set of hashed word triples; digits count as one digit, so that only times, ports and counters differ in no way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shingles {
    /// Sorted, each once.
    hashes: Vec<u64>,
}

impl Shingles {
    pub fn of(text: &str) -> Self {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        let words: Vec<String> = words.map(normal).collect();
        let mut hashes: Vec<u64> = match words.len() {
            0 => vec![hasher.hash_one(text)],
            short if short < WORDS => vec![hasher.hash_one(&words[..])],
            _ => words.windows(WORDS).map(|window| hasher.hash_one(window)).collect(),
        };
        hashes.sort_unstable();
        hashes.dedup();
        Self { hashes }
    }

    /// Shared triples of all that either has.
    pub fn similarity(&self, other: &Self) -> f64 {
        let (mut a, mut b) = (self.hashes.iter().peekable(), other.hashes.iter().peekable());
        let mut shared = 0;
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            match x.cmp(y) {
                std::cmp::Ordering::Less => drop(a.next()),
                std::cmp::Ordering::Greater => drop(b.next()),
                std::cmp::Ordering::Equal => {
                    shared += 1;
                    a.next();
                    b.next();
                }
            }
        }
        shared as f64 / (self.hashes.len() + other.hashes.len() - shared) as f64
    }

    /// The least of the hashes under each of the permutations, band by band.
    fn bands(&self) -> [[u64; ROWS]; BANDS] {
        let mut bands = [[u64::MAX; ROWS]; BANDS];
        for (at, least) in bands.as_flattened_mut().iter_mut().enumerate() {
            let salt = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            *least = self.hashes.iter().map(|hash| mixed(hash ^ salt)).min().unwrap_or(u64::MAX);
        }
        bands
    }
}

fn normal(word: &str) -> String {
    let mut normal = String::with_capacity(word.len());
    for c in word.chars() {
        match c {
            c if c.is_numeric() && normal.ends_with('0') => {}
            c if c.is_numeric() => normal.push('0'),
            c => normal.extend(c.to_lowercase()),
        }
    }
    normal
}

/// The finaliser of SplitMix64, a permutation.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Texts that can be asked for those like another. What more than half of them have, such as one system message, is left out
/// of the comparison.
pub struct Corpus {
    common: HashSet<u64>,
    texts: Vec<Shingles>,
    buckets: HashMap<(usize, [u64; ROWS]), Vec<usize>>,
}

impl Corpus {
    pub fn new(texts: Vec<Shingles>) -> Self {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        texts.iter().flat_map(|text| &text.hashes).for_each(|hash| *counts.entry(*hash).or_default() += 1);
        let half = texts.len() / 2;
        let is_common = |(hash, count): (u64, usize)| (count > half.max(FEW)).then_some(hash);
        let mut corpus = Self {
            common: counts.into_iter().filter_map(is_common).collect(),
            texts: Vec::with_capacity(texts.len()),
            buckets: HashMap::new(),
        };
        for text in texts {
            let text = corpus.stripped(text);
            for (band, key) in text.bands().into_iter().enumerate() {
                corpus.buckets.entry((band, key)).or_default().push(corpus.texts.len());
            }
            corpus.texts.push(text);
        }
        corpus
    }

    /// Text number `at` from 0, without what is common.
    pub fn text(&self, at: usize) -> &Shingles {
        &self.texts[at]
    }

    /// Another text, to be held against these.
    pub fn stripped(&self, text: Shingles) -> Shingles {
        let hashes: Vec<u64> =
            text.hashes.iter().copied().filter(|hash| !self.common.contains(hash)).collect();
        if hashes.is_empty() { text } else { Shingles { hashes } }
    }

    /// Those that may be like `text`, each once, in their order.
    pub fn candidates(&self, text: &Shingles) -> Vec<usize> {
        let found = text.bands().into_iter().enumerate().filter_map(|key| self.buckets.get(&key));
        let mut found: Vec<usize> = found.flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str =
        "You watch the logs of tool servers and name the risk that a log shows, if it shows any at all";

    fn log(what: &str) -> Shingles {
        Shingles::of(&format!("{SYSTEM}. {what}"))
    }

    #[test]
    fn times_and_counters_make_no_difference_and_words_do() {
        let a = Shingles::of("12:00:01 GET /users/17 took 12 ms, 200 OK from 10.0.0.1");
        assert_eq!(
            a.similarity(&Shingles::of("23:59:59 get /users/4711 took 9 ms, 200 OK from 10.1.22.3")),
            1.0
        );
        let b = Shingles::of("12:00:01 GET /admin/17 failed after 12 ms, 403 from 10.0.0.1");
        let similarity = a.similarity(&b);
        assert!(similarity < 0.5 && similarity == b.similarity(&a), "{similarity}");
        // Worked by hand: a b c, b c d, c d e of a b c, b c d, c d x.
        assert_eq!(Shingles::of("a b c d e").similarity(&Shingles::of("a b c d x")), 0.5);
        assert_eq!(Shingles::of("--").similarity(&Shingles::of("--")), 1.0);
        assert_eq!(Shingles::of("--").similarity(&Shingles::of("==")), 0.0);
    }

    #[test]
    fn what_all_texts_share_makes_none_like_another() {
        let letter = |n: usize| char::from(b'a' + n as u8);
        // Forty words of their own, of which the last `changed` are others.
        let text = |i: usize, changed: usize| {
            let word = |k: usize| {
                let kind = if k < 40 - changed { 'x' } else { letter(changed) };
                format!("{}{}{}{kind}", letter(i), letter(k / 20), letter(k % 20))
            };
            (0..40).map(word).collect::<Vec<_>>().join(" ")
        };
        let texts = (0..20).flat_map(|i| [0, 2, 6].map(|changed| log(&text(i, changed))));
        let corpus = Corpus::new(texts.collect());
        for at in 0..60 {
            let like: Vec<usize> = corpus
                .candidates(corpus.text(at))
                .into_iter()
                .filter(|other| corpus.text(at).similarity(corpus.text(*other)) >= NEAR)
                .collect();
            // Forty triples each, two of them with the end of what all share: two other words leave 38 of 42, .90; six 34
            // of 46, .74.
            let want = if at % 3 == 2 { vec![at] } else { vec![at / 3 * 3, at / 3 * 3 + 1] };
            assert_eq!(like, want);
        }
        let new = corpus.stripped(log(&text(5, 0)));
        assert!(corpus.candidates(&new).contains(&15));
        assert_eq!(new.similarity(corpus.text(15)), 1.0);
    }
}
