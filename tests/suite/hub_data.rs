//! Data sets by hub name, against a hub on this machine: every command that takes rows takes them.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use rlvr::error::Result;
use rlvr::hub::{Data, DataName, Hub};

use crate::support::hub_place::{HubPlace, Notes};
use crate::support::hub_server::{COMMIT, Manners, sha256};
use crate::support::runs::label_task;

const ID: &str = "some-org/rows";
const CONFIG: &str = r#"
task = "task.toml"
stages = ["sft"]
device = "cpu"
threads = 1
[model]
max_positions = 128
[model.random]
hidden_size = 8
intermediate_size = 12
layers = 1
attention_heads = 2
key_value_heads = 1
vocab_size = 300
rope_theta = 10000.0
[data]
train = "hf:some-org/rows:train"
valid = "hf:some-org/rows@main:test"
max_prompt_tokens = 100
max_target_tokens = 20
[sft]
steps = 1
rows_per_step = 1
[eval]
max_completion_tokens = 2
[run]
name = "a"
"#;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data-files").join(name)).unwrap()
}

struct Place(HubPlace);

impl std::ops::Deref for Place {
    type Target = HubPlace;

    fn deref(&self) -> &HubPlace {
        &self.0
    }
}

impl Place {
    /// Two shards of three rows, and a test split with one row that no task can read.
    fn new() -> Self {
        Self::with(&[
            ("README.md", b"---\nlicense: mit\n---\n".to_vec()),
            (".gitattributes", b"*".to_vec()),
            ("data/train-00000-of-00002.parquet", golden("datasets.parquet")),
            ("data/train-00001-of-00002.parquet", golden("pyarrow-zstd.parquet")),
            ("data/test-00000-of-00001.jsonl", b"{\"text\": \"a\", \"label\": \"Safe\"}\n".to_vec()),
            ("data/odd-00000-of-00002.jsonl", b"{\"text\": \"a\", \"label\": \"Safe\"}\n\n".to_vec()),
            ("data/odd-00001-of-00002.jsonl", b"\n{\"text\": \"b\", \"label\": \"Sfae\"}\n".to_vec()),
        ])
    }

    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        let files: BTreeMap<_, _> =
            files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
        let place = Self(HubPlace::of_data(ID, files));
        std::fs::write(place.home.path().join("task.toml"), label_task("Safe", &["Denial-of-Service"]))
            .unwrap();
        std::fs::write(place.home.path().join("config.toml"), CONFIG).unwrap();
        place
    }

    fn data(&self, hub: &Hub, name: &str) -> Result<Data> {
        hub.data(&DataName::of(Path::new(name))?.unwrap(), &mut Notes::default())
    }

    fn snapshot(&self) -> PathBuf {
        self.home.path().join("hub/datasets--some-org--rows/snapshots").join(COMMIT)
    }
}

#[test]
fn a_split_comes_whole_and_in_order_and_lies_where_the_python_client_looks() {
    let place = Place::new();
    place.server.behave(Manners { cuts: VecDeque::from([500]), ..Manners::default() });
    let found = place.data(&place.hub(), "hf:some-org/rows:train").unwrap();
    assert_eq!(found.dir, place.snapshot());
    let [split] = found.splits.as_slice() else { panic!("{found:?}") };
    assert_eq!(split.pinned, format!("hf:{ID}@{COMMIT}:train"));
    let names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
    assert_eq!(split.paths, names.map(|name| place.snapshot().join(name)));
    for name in names {
        assert_eq!(std::fs::read(place.snapshot().join(name)).unwrap(), place.server.file(name));
        let link = std::fs::read_link(place.snapshot().join(name)).unwrap();
        assert_eq!(link, Path::new("../../../blobs").join(sha256(place.server.file(name))));
    }
    assert!(!place.snapshot().join("data/test-00000-of-00001.jsonl").exists());
    let seen = place.server.seen();
    assert!(seen.iter().any(|s| s.path == format!("/api/datasets/{ID}/revision/main")), "{seen:?}");
    assert!(seen.iter().any(|s| s.range.as_deref() == Some("bytes=500-")), "{seen:?}");

    // Pinned and whole: the hub is not asked. Not whole: offline says so.
    let pinned = format!("hf:{ID}@{COMMIT}");
    assert_eq!(place.data(&place.hub(), &format!("{pinned}:train")).unwrap(), found);
    assert!(place.server.seen().is_empty());
    let offline = Hub { offline: true, ..place.hub() };
    assert_eq!(place.data(&offline, "hf:some-org/rows:train").unwrap(), found);
    let error = place.data(&offline, "hf:some-org/rows:test").unwrap_err();
    let text = error.to_string();
    assert!(error.is_input() && text.contains("without all of hf:some-org/rows:test"), "{text}");
    assert!(text.contains("`rlvr fetch hf:some-org/rows`"), "{text}");
    // The hub is down: the cache does.
    place.server.behave(Manners { refuse: Some((502, "")), ..Manners::default() });
    let mut notes = Notes::default();
    let name = DataName::of(Path::new("hf:some-org/rows:train")).unwrap().unwrap();
    assert_eq!(place.hub().data(&name, &mut notes).unwrap(), found);
    assert!(notes.0.len() == 1 && notes.0[0].contains("502"), "{:?}", notes.0);
}

#[test]
fn what_another_program_put_into_the_cache_is_used_as_far_as_it_goes() {
    let place = Place::new();
    let data = place.snapshot().join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(place.snapshot().join("../../refs")).unwrap();
    std::fs::write(place.snapshot().join("../../refs/main"), COMMIT).unwrap();
    std::fs::write(data.join("train-00001-of-00002.parquet"), golden("datasets.parquet")).unwrap();
    let offline = Hub { offline: true, ..place.hub() };
    let error = place.data(&offline, "hf:some-org/rows").unwrap_err().to_string();
    assert!(error.contains("data/train-00000-of-00002.parquet is missing"), "{error}");
    std::fs::write(data.join("train-00000-of-00002.parquet"), golden("datasets.parquet")).unwrap();
    let mut notes = Notes::default();
    let name = DataName::of(Path::new("hf:some-org/rows")).unwrap().unwrap();
    assert_eq!(offline.data(&name, &mut notes).unwrap().splits[0].paths.len(), 2);
    assert!(notes.0[0].contains("that they are all, it does not say"), "{:?}", notes.0);
    assert!(place.server.seen().is_empty());
}

#[test]
fn a_refusal_names_the_data_set_and_its_page() {
    let cases: [(u16, &str, &str); 3] = [
        (
            401,
            "GatedRepo",
            "hf:some-org/rows: is gated: the hub wants to know who asks. Accept its licence at http",
        ),
        (404, "RepoNotFound", "hf:some-org/rows: there is no such data set on http"),
        (
            404,
            "RevisionNotFound",
            "hf:some-org/rows: has no revision \"main\". Take a branch, tag or commit listed at",
        ),
    ];
    for (status, code, want) in cases {
        let place = Place::new();
        place.server.behave(Manners { refuse: Some((status, code)), ..Manners::default() });
        let (code, _, says) =
            place.rlvr(&["data", "check", "hf:some-org/rows:train", "--task", "task.toml"], &[]);
        assert!(code == Some(2) && says.contains(want), "{says}");
        assert!(says.contains("/datasets/some-org/rows") || status == 404, "{says}");
    }
    let place = Place::new();
    let (code, _, says) = place.rlvr(&["data", "check", "hf:some-org/rows", "--task", "task.toml"], &[]);
    let want =
        "hf:some-org/rows: has 3 splits. Name one, as in hf:some-org/rows:train; there are: train, test, odd";
    assert!(code == Some(2) && says.contains(want), "{says}");
    let (code, _, says) = place.rlvr(&["eval", "hf:some-org/rows", "x.jsonl"], &[]);
    assert!(code == Some(2) && says.contains("hf:some-org/rows: is a data set"), "{says}");
}

#[test]
fn configs_of_the_readme_are_told_apart() {
    let readme = "---\nconfigs:\n- config_name: one\n  data_files:\n  - {split: train, path: 'a b/*.csv'}\n- config_name: two\n  \
        data_files: two.csv\n---\n";
    let csv = b"text,label\na,Safe\n".to_vec();
    let files = [
        ("README.md", readme.into()),
        ("a b/x y.csv", csv.clone()),
        ("two.csv", csv.clone()),
        ("no.csv", csv),
    ];
    let place = Place::with(&files);
    let error = place.data(&place.hub(), "hf:some-org/rows").unwrap_err().to_string();
    assert!(
        error.contains(
            "has 2 configs. Name one, as in hf:some-org/rows:one/train; there are: one/train, two/train"
        ),
        "{error}"
    );
    let found = place.data(&place.hub(), "hf:some-org/rows:one/train").unwrap();
    assert_eq!(found.splits[0].paths, [place.snapshot().join("a b/x y.csv")]);
    let found = place.data(&place.hub(), "hf:some-org/rows:no.csv").unwrap();
    assert_eq!(found.splits[0].pinned, format!("hf:{ID}@{COMMIT}:no.csv"));
}

#[test]
fn every_command_that_takes_rows_takes_a_data_set() {
    let place = Place::new();
    let run = |words: &[&str], more: &[(&str, &str)]| {
        let (code, out, says) = place.rlvr(words, more);
        assert_eq!(code, Some(0), "{words:?}: {out}{says}");
        (out, says)
    };
    let (out, says) = run(&["fetch", "hf:some-org/rows"], &[]);
    assert_eq!(Path::new(out.trim()), place.snapshot());
    assert!(says.contains(&format!("hf:{ID}@{COMMIT}:train: 2 files")), "{says}");
    let offline = [("HF_HUB_OFFLINE", "1")];
    let task = ["--task", "task.toml"];
    let train = "hf:some-org/rows:train";
    let (out, _) =
        run(&[&["data", "check", train, "--against", "hf:some-org/rows:test"], &task[..]].concat(), &offline);
    assert!(out.contains("rows        6 (6 good") && out.contains("duplicates       3"), "{out}");
    let (_, out, _) = place.rlvr(&["data", "check", "hf:some-org/rows:odd", "--task", "task.toml"], &offline);
    assert!(out.contains("data/odd-00001-of-00002.jsonl:2: `label` is `Sfae`"), "{out}");
    run(&[&["data", "audit", train], &task[..]].concat(), &offline);
    run(
        &[&["data", "split", train, "--out", "parts", "--valid", "0.4", "--test", "0"], &task[..]].concat(),
        &offline,
    );
    let (out, _) = run(&["init", train, "--into", "mine"], &offline);
    assert!(out.contains(&format!("rows      6 in hf:{ID}@{COMMIT}:train")), "{out}");

    let (_, says) = run(&["train", "config.toml"], &[]);
    assert!(says.contains(&format!("data: hf:{ID}@{COMMIT}:train")), "{says}");
    let recorded = std::fs::read_to_string(place.home.path().join("runs/a/config.resolved.toml")).unwrap();
    for (key, split) in [("train", "train"), ("valid", "test")] {
        assert!(recorded.contains(&format!("{key} = \"hf:{ID}@{COMMIT}:{split}\"")), "{recorded}");
    }
    place.server.seen();
    run(&["train", "runs/a/config.resolved.toml", "--set", "run.name=b"], &[]);
    assert!(place.server.seen().is_empty());
    run(&["train", "config.toml", "--set", "run.name=c", "--dry-run"], &offline);
    run(&[&["data", "preview", train, "--model", "runs/a", "--row", "6"], &task[..]].concat(), &offline);
    run(&["eval", "runs/a", train, "--device", "cpu"], &offline);
    let (out, _) = run(&["predict", "runs/a", train, "--device", "cpu"], &offline);
    assert_eq!(out.lines().count(), 6);
    assert!(out.lines().nth(5).unwrap().contains("\"line\":6"), "{out}");
}
