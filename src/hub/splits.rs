//! Which files of a data set's repository are which split: as its README says, or else as their names say.
//!
//! <https://huggingface.co/docs/hub/datasets-data-files-configuration>

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::card;
use crate::error::Result;

/// A `config_name` of the README, or all of a repository that has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subset {
    pub name: String,
    pub splits: Vec<Split>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub name: String,
    /// In the order in which their rows follow each other.
    pub files: Vec<String>,
}

/// Endings of files that hold rows, and a name of their kind.
const KINDS: [(&str, &str); 6] = [
    (".parquet", "parquet"),
    (".jsonl", "JSON"),
    (".json", "JSON"),
    (".ndjson", "JSON"),
    (".csv", "CSV"),
    (".tsv", "CSV"),
];
/// Files about the data.
const ABOUT: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// Words that make a file or folder name one of a split, most telling first.
const KEYWORDS: [(&str, &str); 3] = [
    ("train", "train|training"),
    ("validation", "validation|valid|dev|val"),
    ("test", "test|testing|eval|evaluation"),
];

/// The kind of file that is read under this name; none where it is not read.
pub(super) fn kind(file: &str) -> Option<&'static str> {
    let name = file.to_ascii_lowercase();
    let bare = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    KINDS.iter().find(|(end, _)| bare.ends_with(end)).map(|(_, kind)| *kind)
}

/// What the repository is divided into. `readme`: its README.md. Splits that match no file are kept, empty.
///
/// # Errors
/// A README whose front matter is no YAML.
pub(super) fn subsets(files: &[String], readme: Option<&str>) -> Result<Vec<Subset>> {
    let mut files: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_shown(file)).collect();
    files.sort_unstable();
    let card = readme.map(card::front_matter).transpose()?.flatten().unwrap_or_default();
    if let Some(configs) = card.get("configs").and_then(Value::as_array).filter(|list| !list.is_empty()) {
        return Ok(configs.iter().map(|config| declared(config, &files)).collect());
    }
    if let Some(found) = converted(&files) {
        return Ok(found);
    }
    Ok(vec![Subset { name: "default".into(), splits: inferred(&files) }])
}

/// Neither hidden nor in a folder such as `__pycache__`.
fn is_shown(file: &str) -> bool {
    let (folder, _) = file.rsplit_once('/').unwrap_or(("", file));
    !file.split('/').any(|part| part.starts_with('.'))
        && !folder.split('/').any(|part| part.starts_with("__"))
}

/// An entry of the README's `configs`.
fn declared(config: &Value, files: &[&str]) -> Subset {
    let name = config["config_name"].as_str().unwrap_or("default").to_string();
    let dir = config["data_dir"].as_str().map(|dir| dir.trim_matches('/')).filter(|dir| !dir.is_empty());
    let within = dir.map_or(String::new(), |dir| format!("{dir}/"));
    let patterns = patterns(&config["data_files"]);
    let splits = if patterns.is_empty() {
        let inside: Vec<&str> = files.iter().filter_map(|file| file.strip_prefix(&within)).collect();
        let mut splits = inferred(&inside);
        splits.iter_mut().flat_map(|split| &mut split.files).for_each(|file| file.insert_str(0, &within));
        splits
    } else {
        let split = |(name, patterns): (String, Vec<String>)| Split {
            files: matched(
                &patterns.iter().map(|pattern| format!("{within}{pattern}")).collect::<Vec<_>>(),
                files,
            ),
            name,
        };
        patterns.into_iter().map(split).collect()
    };
    Subset { name, splits }
}

/// The patterns of each split: a text or texts for `train`, `{split, path}` in a list, or a map of splits.
fn patterns(data_files: &Value) -> Vec<(String, Vec<String>)> {
    let texts = |value: &Value| match value {
        Value::String(text) => vec![text.clone()],
        other => other.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect(),
    };
    match data_files {
        Value::Object(map) => map.iter().map(|(split, paths)| (split.clone(), texts(paths))).collect(),
        Value::Array(list) if list.iter().any(Value::is_object) => list
            .iter()
            .map(|entry| (entry["split"].as_str().unwrap_or("train").into(), texts(&entry["path"])))
            .collect(),
        Value::Null => Vec::new(),
        other => vec![("train".into(), texts(other))],
    }
}

/// Files that match, by pattern and then by name, each once.
fn matched(patterns: &[String], files: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for pattern in patterns {
        let Some(glob) = glob(pattern.trim_start_matches("./")) else { continue };
        for file in files.iter().filter(|file| glob.is_match(file)) {
            if !found.iter().any(|known| known == file) {
                found.push((*file).into());
            }
        }
    }
    found
}

/// `*` and `?` stay within a folder's name, `**` does not.
fn glob(pattern: &str) -> Option<Regex> {
    let mut regex = String::from("^");
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        let (taken, text) = if rest.starts_with("**/") {
            (3, "(?:.*/)?".to_string())
        } else if rest.starts_with("**") {
            (2, ".*".into())
        } else if let Some(class) = rest.strip_prefix('[').and_then(|class| Some(&class[..class.find(']')?]))
        {
            (class.len() + 2, format!("[{}]", class.replacen('!', "^", usize::from(class.starts_with('!')))))
        } else {
            let text = match next {
                '*' => "[^/]*".into(),
                '?' => "[^/]".into(),
                other => regex::escape(&other.to_string()),
            };
            (next.len_utf8(), text)
        };
        regex += &text;
        rest = &rest[taken..];
    }
    Regex::new(&(regex + "$")).ok()
}

/// The hub's own parquet copies, `subset/split/0000.parquet` and nothing else.
fn converted(files: &[&str]) -> Option<Vec<Subset>> {
    static PATH: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^([^/]+)/([^/]+)/\d{4}\.parquet$").ok());
    let path = PATH.as_ref()?;
    let mut found: Vec<Subset> = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with(".md")) {
        let parts = path.captures(file)?;
        add(&mut found, &parts[1], &parts[2], file);
    }
    Some(found).filter(|found| !found.is_empty())
}

fn add(subsets: &mut Vec<Subset>, subset: &str, split: &str, file: &str) {
    let at = subsets.iter().position(|known| known.name == subset).unwrap_or_else(|| {
        subsets.push(Subset { name: subset.into(), splits: Vec::new() });
        subsets.len() - 1
    });
    let splits = &mut subsets[at].splits;
    let at = splits.iter().position(|known| known.name == split).unwrap_or_else(|| {
        splits.push(Split { name: split.into(), files: Vec::new() });
        splits.len() - 1
    });
    splits[at].files.push(file.into());
}

/// By `data/SPLIT-00000-of-00001.parquet`; else by folders named after a split; else by such files; else all are `train`.
fn inferred(files: &[&str]) -> Vec<Split> {
    let base = |file: &str| file.rsplit('/').next().unwrap_or(file).to_string();
    let files: Vec<&str> =
        files.iter().copied().filter(|f| kind(f).is_some() && !ABOUT.contains(&base(f).as_str())).collect();
    let sharded = Regex::new(r"^data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*$").ok();
    let mut found = Vec::new();
    for file in &files {
        if let Some(parts) = sharded.as_ref().and_then(|sharded| sharded.captures(file)) {
            add(&mut found, "", &parts[1], file);
        }
    }
    if let Some(Subset { mut splits, .. }) = found.pop() {
        let usual = |split: &Split| KEYWORDS.iter().position(|(name, _)| *name == split.name).unwrap_or(9);
        splits.sort_by_key(usual);
        return splits;
    }
    // A name holds the word alone, or between characters that are no letters; a file's goes on after it.
    let folder = |words: &str| format!("(?:^|/)(?:[^/]*[-._ 0-9])?(?:{words})(?:[-._ 0-9][^/]*)?/");
    let name = |words: &str| format!("(?:^|/)(?:[^/]*[-._ 0-9])?(?:{words})[-._ 0-9][^/]*$");
    for pattern in [&folder as &dyn Fn(&str) -> String, &name] {
        let of = |(split, words): &(&str, &str)| {
            let regex = Regex::new(&pattern(words)).ok()?;
            let files: Vec<String> =
                files.iter().filter(|file| regex.is_match(file)).map(|f| f.to_string()).collect();
            (!files.is_empty()).then(|| Split { name: split.to_string(), files })
        };
        let splits: Vec<Split> = KEYWORDS.iter().filter_map(of).collect();
        if !splits.is_empty() {
            return splits;
        }
    }
    match files.is_empty() {
        true => Vec::new(),
        false => vec![Split { name: "train".into(), files: files.iter().map(|f| f.to_string()).collect() }],
    }
}

/// A shard that the others' names say there is, `data/train-00001-of-00002.parquet`.
pub(super) fn absent_shard(files: &[String]) -> Option<String> {
    let shard = Regex::new(r"^(.*-)(\d{5})(-of-)(\d{5})(.*)$").ok()?;
    files.iter().find_map(|file| {
        let parts = shard.captures(file)?;
        let count: usize = parts[4].parse().ok()?;
        let names =
            (0..count).map(|at| format!("{}{at:05}{}{}{}", &parts[1], &parts[3], &parts[4], &parts[5]));
        // Shards whose names end in a hash of their own cannot be told from each other.
        let hashed = parts[5].trim_start_matches('-').len() > 16;
        names.into_iter().find(|name| !hashed && !files.contains(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[&str], readme: Option<&str>) -> Vec<(String, String, Vec<String>)> {
        let files: Vec<String> = files.iter().map(|file| file.to_string()).collect();
        let subsets = subsets(&files, readme).unwrap().into_iter();
        subsets
            .flat_map(|subset| {
                subset.splits.into_iter().map(move |split| (subset.name.clone(), split.name, split.files))
            })
            .collect()
    }

    fn inferred(files: &[&str]) -> Vec<(String, String)> {
        found(files, None).into_iter().map(|(_, split, files)| (split, files.join(" "))).collect()
    }

    fn pair(split: &str, files: &str) -> (String, String) {
        (split.into(), files.into())
    }

    #[test]
    fn names_tell_the_splits() {
        let about = ["README.md", ".gitattributes", "dataset_infos.json", "LICENSE", "make.py"];
        let with = |files: &[&'static str]| inferred(&[&about[..], files].concat());
        assert_eq!(
            with(&[
                "data/unseen.v2-00000-of-00001.parquet",
                "data/test-00000-of-00001-0123456789abcdef.parquet",
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "extra/test.csv",
            ]),
            [
                pair("train", "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet"),
                pair("test", "data/test-00000-of-00001-0123456789abcdef.parquet"),
                pair("unseen.v2", "data/unseen.v2-00000-of-00001.parquet"),
            ]
        );
        assert_eq!(
            with(&["train/a.jsonl", "train/b.jsonl", "dev_2/train.jsonl", "other/c.jsonl", "__x/test/d.csv"]),
            [pair("train", "train/a.jsonl train/b.jsonl"), pair("validation", "dev_2/train.jsonl")]
        );
        assert_eq!(
            with(&["my-train.csv", "my_val.csv", "sub/testing.csv.gz", "trainer.csv", "latest.csv"]),
            [
                pair("train", "my-train.csv"),
                pair("validation", "my_val.csv"),
                pair("test", "sub/testing.csv.gz")
            ]
        );
        assert_eq!(with(&["b.jsonl", "a.jsonl"]), [pair("train", "a.jsonl b.jsonl")]);
        assert_eq!(with(&["rows.arrow", "rows.zip"]), []);
    }

    #[test]
    fn the_readme_says_it_first() {
        let files = ["en/a.csv", "en/b.csv", "en/c.csv", "fr/train.csv", "fr/test.csv", "data/x/y.jsonl"];
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path:\n    - \
            en/b.csv\n    - 'en/[ab].csv'\n  - split: test\n    path: en/c*\n  - split: gone\n    path: \"no/*\"\n- \
            config_name: fr\n  data_dir: fr\n- config_name: all\n  data_files: 'data/**/*.jsonl'\n  default: true\n---\n# X\n";
        let all = found(&files, Some(readme));
        let want = [
            ("en", "train", "en/b.csv en/a.csv"),
            ("en", "test", "en/c.csv"),
            ("en", "gone", ""),
            ("fr", "train", "fr/train.csv"),
            ("fr", "test", "fr/test.csv"),
            ("all", "train", "data/x/y.jsonl"),
        ];
        let all: Vec<_> = all.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.join(" "))).collect();
        assert_eq!(all, want.map(|(a, b, c)| (a, b, c.to_string())));
        assert_eq!(inferred(&["train.csv"]), [pair("train", "train.csv")]);
        let plain = "---\nlicense: mit\n---\n";
        assert_eq!(found(&["train.csv"], Some(plain)).len(), 1);
    }

    #[test]
    fn the_hubs_parquet_copies_have_subsets_as_folders() {
        let files = [
            "en/train/0000.parquet",
            "en/train/0001.parquet",
            "en/test/0000.parquet",
            "fr/train/0000.parquet",
        ];
        let all = found(&files, None);
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].2, ["en/train/0000.parquet", "en/train/0001.parquet"]);
        assert_eq!((all[2].0.as_str(), all[2].1.as_str()), ("fr", "train"));
    }

    #[test]
    fn a_shard_that_is_not_there_is_missed() {
        let names = |files: &[&str]| files.iter().map(|file| file.to_string()).collect::<Vec<_>>();
        assert_eq!(
            absent_shard(&names(&["data/train-00000-of-00002.parquet"])).as_deref(),
            Some("data/train-00001-of-00002.parquet")
        );
        assert_eq!(absent_shard(&names(&["a-00000-of-00002.csv", "a-00001-of-00002.csv", "b.csv"])), None);
        assert_eq!(absent_shard(&names(&["a-00000-of-00002-0123456789abcdef.parquet"])), None);
    }
}
