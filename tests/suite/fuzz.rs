//! Files of every format that comes from outside, mutated: read or refused, never a panic, an abort or a wait. The mutations
//! are the same every day; `fuzz/` looks for other ones with libFuzzer, through the same entries and from the same corpus.

use std::path::Path;
use std::process::Command;

use rlvr::rng::{Purpose, Sequential, Stream};

use crate::support::entries::{FORMATS, Files};
use crate::support::{project, seed};

/// Mutations of each file of the corpus, unless `RLVR_FUZZ_MUTATIONS` says how many.
const MUTATIONS: u32 = 200;
const ONE_FORMAT: &str = "fuzz::files_of_one_format_are_read_or_refused";
/// What a child is told: the format, and the seed of its mutations.
const FORMAT: &str = "RLVR_FUZZ_FORMAT";
const SEED: &str = "RLVR_FUZZ_SEED";
/// What takes long or much is given up, by design, and so is all that such a process would do after it.
const GIVEN_UP: &str = " takes more than ";

/// In a process of its own each: an abort is found too, and work that is given up ends with it.
#[test]
fn mutated_files_are_read_or_refused() {
    let seed = seed::of_test().to_string();
    let mut faults = Vec::new();
    for (format, _) in FORMATS {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", ONE_FORMAT, "--ignored", "--nocapture"]).env(FORMAT, format).env(SEED, &seed);
        let output = child.output().unwrap();
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            faults.push(format!("{format}: {}\n{text}", output.status));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
#[ignore = "a part of the test above, which starts it"]
fn files_of_one_format_are_read_or_refused() {
    let said = |name: &str| std::env::var(name).ok();
    let (Some(format), Some(seed)) = (said(FORMAT), said(SEED)) else { return };
    let seed: u64 = seed.parse().unwrap();
    let count = said("RLVR_FUZZ_MUTATIONS").map_or(MUTATIONS, |number| number.parse().unwrap());
    let (_, entry) = FORMATS.into_iter().find(|(name, _)| *name == format).unwrap();
    let corpus = corpus(&format);
    assert!(!corpus.is_empty(), "fuzz/corpus/{format} has no files");
    let files = Files::new();
    for (index, (name, whole)) in corpus.iter().enumerate() {
        if let Err(error) = entry(&files, whole) {
            assert!(!name.starts_with("good"), "{name}: {error}");
        }
        for number in 0..count {
            let draws = &mut Stream::new(seed, Purpose::Check, [index as u32, number, 0]).sequential();
            let mut bytes = whole.clone();
            (0..=draws.below(4)).for_each(|_| mutate(&mut bytes, &corpus, draws));
            // What a crash was about is in this file.
            std::fs::write(kept(&format), &bytes).unwrap();
            let error = entry(&files, &bytes).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.lines().count() < 9, "{name}, mutation {number}: {error}");
            if error.contains(GIVEN_UP) {
                eprintln!("{name}, mutation {number}: {error}");
                return;
            }
        }
    }
    std::fs::remove_file(kept(&format)).unwrap();
}

/// The bytes that are being read.
fn kept(format: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("rlvr-fuzz-{format}-{}", std::process::id()))
}

/// Files by name.
fn corpus(format: &str) -> Vec<(String, Vec<u8>)> {
    let folder = project().join("fuzz/corpus").join(format);
    let read =
        |path: &Path| (path.file_name().unwrap().to_string_lossy().into(), std::fs::read(path).unwrap());
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| read(&entry.unwrap().path())).collect();
    files.sort();
    files
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[(String, Vec<u8>)], draws: &mut Sequential) {
    const NUMBERS: [&str; 12] = [
        "0",
        "-1",
        "1",
        "1e308",
        "-1e999",
        "NaN",
        "65536",
        "2147483648",
        "4294967295",
        "9223372036854775807",
        "18446744073709551615",
        "99999999999999999999999",
    ];
    const WORDS: [&str; 18] = [
        "null",
        "true",
        "[]",
        "{}",
        "\"\"",
        "\\ud800",
        "\0",
        "\u{feff}",
        "\u{202e}",
        "{{",
        "{%",
        "%}",
        "<|im_end|>",
        "]]]",
        "\n",
        "\r",
        "é",
        "\\",
    ];
    const NESTS: [&str; 8] = ["[", "{\"a\":", "(", "[[", "{{ x", "-", "+1", "{% if a %}"];
    let (start, end) = {
        let (a, b) = (draws.below(bytes.len() + 1), draws.below(bytes.len() + 1));
        (a.min(b), a.max(b).min(a.min(b) + 64))
    };
    match draws.below(10) {
        0 if !bytes.is_empty() => {
            let at = draws.below(bytes.len());
            bytes[at] ^= 1 << draws.below(8);
        }
        1 if !bytes.is_empty() => {
            let at = draws.below(bytes.len());
            bytes[at] = [0, 0x7f, 0x80, 0xff, b'"', b'{', b'\n'][draws.below(7)];
        }
        2 => drop(bytes.drain(start..end)),
        3 => {
            let again = bytes[start..end].to_vec();
            bytes.splice(start..start, again);
        }
        4 => {
            let word = draws.choose(&WORDS);
            bytes.splice(start..start, word.bytes());
        }
        // A number of the text.
        5 | 6 => {
            let digits: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i].is_ascii_digit()).collect();
            if let Some(first) = digits.get(draws.below(digits.len().max(1))).copied() {
                let more = bytes[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let number = draws.choose(&NUMBERS);
                bytes.splice(first..first + more, number.bytes());
            }
        }
        // A number of the binary.
        7 if bytes.len() >= 8 => {
            let at = draws.below(bytes.len() - 7);
            let number = [0, 1, u64::MAX, 1 << 31, 1 << 62, 255][draws.below(6)];
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
        }
        8 => {
            let deep = draws.choose(&NESTS).repeat([3, 200, 20_000][draws.below(3)]);
            bytes.splice(start..start, deep.bytes());
        }
        9 => {
            let other = &corpus[draws.below(corpus.len())].1;
            let from = draws.below(other.len() + 1);
            bytes.truncate(start);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => bytes.truncate(start),
    }
}
