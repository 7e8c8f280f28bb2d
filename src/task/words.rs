//! Words of answers and values in one spelling: small letters, numbers without commas and idle zeros, months as numbers.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    /// Written in digits.
    pub is_number: bool,
}

static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\d+(?:[.,]\d+)*|[^\W\d_]+").ok());

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// The words of a text, in its order.
pub fn of(text: &str) -> impl Iterator<Item = Word> {
    let found = WORD.iter().flat_map(move |regex| regex.find_iter(text));
    found.map(|found| spelt(found.as_str()))
}

fn spelt(word: &str) -> Word {
    if word.starts_with(char::is_numeric) {
        return Word { text: number(word), is_number: true };
    }
    let small = word.to_lowercase();
    let month = MONTHS.iter().position(|month| *month == small);
    Word { text: month.map_or(small, |month| (month + 1).to_string()), is_number: false }
}

/// `1,250.50` is `1250.5`, `08` is `8`; what has two points is a version or an address.
fn number(digits: &str) -> String {
    let plain = digits.replace(',', "");
    let whole = |part: &str| match part.trim_start_matches('0') {
        "" => "0".to_string(),
        rest => rest.to_string(),
    };
    match plain.split_once('.') {
        None => whole(&plain),
        Some((_, rest)) if rest.contains('.') => plain,
        Some((before, after)) => match after.trim_end_matches('0') {
            "" => whole(before),
            after => format!("{}.{after}", whole(before)),
        },
    }
}

/// The values of a row's field, each as its different words, each value once: of JSON its leaves, of true and false the
/// key; of another text its numbers and capitalised words.
pub fn values(field: &Value) -> Vec<Vec<Word>> {
    let mut all = Vec::new();
    match field {
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(json) => leaves(&json, "", &mut all),
            Err(_) => all.extend(named(text).map(|word| vec![word])),
        },
        json => leaves(json, "", &mut all),
    }
    let mut once: Vec<Vec<Word>> = Vec::new();
    for mut value in all {
        let mut seen: Vec<Word> = Vec::new();
        value.retain(|word| {
            let is_new = !seen.contains(word);
            seen.extend(is_new.then(|| word.clone()));
            is_new
        });
        if !value.is_empty() && !once.contains(&value) {
            once.push(value);
        }
    }
    once
}

fn leaves(value: &Value, key: &str, all: &mut Vec<Vec<Word>>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(value, key, all)),
        Value::Array(list) => list.iter().for_each(|value| leaves(value, key, all)),
        Value::Null => {}
        Value::Bool(_) => all.push(of(key).collect()),
        Value::String(text) => all.push(of(text).collect()),
        Value::Number(number) => all.push(of(&number.to_string()).collect()),
    }
}

fn named(text: &str) -> impl Iterator<Item = Word> {
    let found = WORD.iter().flat_map(move |regex| regex.find_iter(text));
    let is_value = |word: &&str| word.starts_with(|c: char| c.is_numeric() || c.is_uppercase());
    found.map(|found| found.as_str()).filter(is_value).map(spelt)
}

/// A hash (FNV-1a) of every run of `length` words.
pub fn runs(words: &[String], length: usize) -> impl Iterator<Item = u64> {
    words.windows(length.clamp(1, words.len() + 1)).map(|run| {
        let bytes = run.iter().flat_map(|word| word.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(text: &str) -> Vec<String> {
        of(text).map(|word| word.text).collect()
    }

    #[test]
    fn one_spelling_for_what_means_the_same() {
        assert_eq!(texts("$1,250.50 on August 3"), ["1250.5", "on", "8", "3"]);
        assert_eq!(texts("2025-08-03T00:10 user_id"), ["2025", "8", "3", "t", "0", "10", "user", "id"]);
        assert_eq!(texts("10.0.0.1, 7.0 and 0.25"), ["10.0.0.1", "7", "and", "0.25"]);
        assert!(of("you may").all(|word| !word.is_number), "a month in letters is no number of the answer");
    }

    #[test]
    fn values_are_leaves_or_what_stands_out() {
        let said = |field: Value| -> Vec<String> {
            values(&field)
                .iter()
                .map(|v| v.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(" "))
                .collect()
        };
        let result = json!({"city": "New York", "is_open": true, "rates": [1.50, 1.5], "none": null});
        assert_eq!(said(result.clone()), ["new york", "is open", "1.5"]);
        assert_eq!(said(result.to_string().into()), said(result), "JSON in a text is JSON");
        assert_eq!(said("The lamp in Oslo took 40 W".into()), ["the", "oslo", "40", "w"]);
    }

    #[test]
    fn equal_runs_have_equal_hashes() {
        let words = |text: &str| texts(text);
        let log: Vec<u64> = runs(&words("one two three four"), 3).collect();
        assert_eq!(log.len(), 2);
        assert_eq!(runs(&words("so two three four"), 3).filter(|run| log.contains(run)).count(), 1);
        assert_eq!(runs(&words("on e two"), 3).filter(|run| log.contains(run)).count(), 0);
        assert_eq!(runs(&words("one"), 3).count(), 0);
        assert_eq!(runs(&words("one"), usize::MAX).count(), 0);
    }
}
