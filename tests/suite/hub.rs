//! Models by hub name, against a hub on this machine: what is asked for, what is kept, what a user is told.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use rlvr::error::Result;
use rlvr::formats::hf::config_json;
use rlvr::hub::{Hub, Parts, RepoName, Snapshot, Token};
use rlvr::model::decoder::Decoder;
use rlvr::text::byte_tokenizer;
use rlvr::train::state::save_weights;
use serde_json::json;

use crate::support::hub_place::{HubPlace, Notes};
use crate::support::hub_server::{COMMIT, Manners, sha256};

const ID: &str = "some-org/tiny-llama";
const WEIGHTS: &str = "model.safetensors";
const SIZE: usize = 300_000;

const TRAIN: &str = r#"
task = "riskcue"
stages = ["sft"]
device = "cpu"
threads = 1
[model]
max_positions = 128
[data]
train = "rows.jsonl"
valid = "rows.jsonl"
max_prompt_tokens = 60
max_target_tokens = 60
[sft]
steps = 1
rows_per_step = 1
[eval]
max_completion_tokens = 2
[run]
name = "a"
"#;

struct Place(HubPlace);

impl std::ops::Deref for Place {
    type Target = HubPlace;

    fn deref(&self) -> &HubPlace {
        &self.0
    }
}

impl Place {
    fn new() -> Self {
        let mut files = BTreeMap::new();
        for name in ["config.json", "tokenizer.json", "chat_template.jinja", "README.md", "pytorch_model.bin"]
        {
            files.insert(name.to_string(), format!("content of {name}").into_bytes());
        }
        // Bytes that repeat nowhere, so that a piece in the wrong place shows.
        let bytes = (0..SIZE as u32 / 4).flat_map(|i| (i.wrapping_mul(2654435761)).to_le_bytes()).collect();
        files.insert(WEIGHTS.into(), bytes);
        files.insert("original/model.safetensors".into(), vec![1; 10]);
        Self::with(files)
    }

    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self(HubPlace::of_model(ID, files))
    }

    fn fetch(&self, hub: &Hub, name: &str) -> Result<Snapshot> {
        hub.fetch(&RepoName::parse(name).unwrap(), Parts::Model, &mut Notes::default())
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("hub/models--some-org--tiny-llama")
    }

    /// The names in one folder of the repository's cache, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.repo().join(folder)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn snapshot_names(&self) -> Vec<String> {
        self.names(&format!("snapshots/{COMMIT}"))
    }
}

fn token() -> Option<Token> {
    Some(Token { value: "hf_secret".into(), origin: "HF_TOKEN".into() })
}

#[test]
fn only_the_needed_files_come_and_the_token_stays_on_the_hub() {
    let place = Place::new();
    let hub = Hub { token: token(), ..place.hub() };
    let found = place.fetch(&hub, ID).unwrap();
    assert_eq!(found.pinned(), format!("{ID}@{COMMIT}"));
    assert_eq!(found.dir, place.repo().join("snapshots").join(COMMIT));
    let wanted = ["chat_template.jinja", "config.json", WEIGHTS, "tokenizer.json"];
    assert_eq!(place.snapshot_names(), wanted);
    for name in wanted {
        assert_eq!(std::fs::read(found.dir.join(name)).unwrap(), place.server.file(name), "{name}");
    }
    // The layout of the Python client: blobs by ETag, relative links, refs.
    let link = std::fs::read_link(found.dir.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(place.server.file(WEIGHTS))));
    assert_eq!(std::fs::read_to_string(place.repo().join("refs/main")).unwrap(), COMMIT);

    let seen = place.server.seen();
    let (away, at_home): (Vec<_>, Vec<_>) = seen.iter().partition(|s| s.host.starts_with("localhost"));
    assert!(at_home.iter().all(|s| s.authorization.as_deref() == Some("Bearer hf_secret")), "{at_home:?}");
    assert!(away.len() == 1 && away[0].authorization.is_none(), "{away:?}");

    // A second time only the revision is asked for; a pinned commit asks for nothing.
    place.fetch(&hub, ID).unwrap();
    assert_eq!(place.server.seen().len(), 1);
    assert_eq!(place.fetch(&hub, &found.pinned()).unwrap(), found);
    assert_eq!(place.server.seen().len(), 0);
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke_off() {
    let place = Place::new();
    place.server.behave(Manners { cuts: VecDeque::from([100_000, 50_000]), ..Manners::default() });
    let found = place.fetch(&place.hub(), ID).unwrap();
    assert_eq!(std::fs::read(found.dir.join(WEIGHTS)).unwrap(), place.server.file(WEIGHTS));
    let ranges: Vec<_> =
        place.server.seen().into_iter().filter(|s| s.path.starts_with("/cdn/")).map(|s| s.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".into()), Some("bytes=150000-".into())]);
    assert!(place.names("blobs").iter().all(|name| !name.ends_with("incomplete")));
}

#[test]
fn what_a_stopped_download_left_is_used_by_the_next() {
    let place = Place::new();
    let hub = Hub { tries: 1, ..place.hub() };
    place.server.behave(Manners { cuts: VecDeque::from([120_000]), ..Manners::default() });
    let error = place.fetch(&hub, ID).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("what has come is kept"), "{error}");
    assert!(!place.snapshot_names().contains(&WEIGHTS.into()) && place.names("refs").is_empty());
    let partial = format!("{}.incomplete", sha256(place.server.file(WEIGHTS)));
    assert!(place.names("blobs").contains(&partial));
    place.server.seen();

    // A server that knows no ranges sends all again.
    for ignores_range in [false, true] {
        let cut = place.repo().join("blobs").join(&partial);
        std::fs::write(cut, &place.server.file(WEIGHTS)[..120_000]).unwrap();
        place.server.behave(Manners { ignores_range, ..Manners::default() });
        let found = place.fetch(&hub, ID).unwrap();
        assert_eq!(std::fs::read(found.dir.join(WEIGHTS)).unwrap(), place.server.file(WEIGHTS));
        let asked = place.server.seen().into_iter().find(|s| s.path.starts_with("/cdn/")).unwrap();
        assert_eq!(asked.range.as_deref(), Some("bytes=120000-"));
        std::fs::remove_file(place.repo().join("blobs").join(sha256(place.server.file(WEIGHTS)))).unwrap();
    }
}

#[test]
fn bytes_that_are_not_the_files_never_get_its_name() {
    let place = Place::new();
    place.server.behave(Manners { corrupts: true, ..Manners::default() });
    let error = place.fetch(&place.hub(), ID).unwrap_err().to_string();
    assert!(error.contains("SHA-256") && error.contains(WEIGHTS), "{error}");
    let hash = sha256(place.server.file(WEIGHTS));
    assert!(place.names("blobs").iter().all(|name| !name.starts_with(&hash)));

    // A damaged rest of an earlier download is thrown away, and the file fetched from its first byte.
    place.server.behave(Manners::default());
    let partial = place.repo().join("blobs").join(format!("{hash}.incomplete"));
    std::fs::write(&partial, [7; 1000]).unwrap();
    let found = place.fetch(&place.hub(), ID).unwrap();
    assert_eq!(std::fs::read(found.dir.join(WEIGHTS)).unwrap(), place.server.file(WEIGHTS));
    assert!(!partial.exists());
}

#[test]
fn a_renamed_repository_is_followed_with_the_token() {
    let place = Place::new();
    place.server.behave(Manners { renamed_from: Some("old-org/old-name"), ..Manners::default() });
    let hub = Hub { token: token(), ..place.hub() };
    let found = place.fetch(&hub, "old-org/old-name@refs/pr/1").unwrap();
    assert_eq!(std::fs::read(found.dir.join(WEIGHTS)).unwrap(), place.server.file(WEIGHTS));
    let refs = place.home.path().join("hub/models--old-org--old-name/refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(refs).unwrap(), COMMIT);
    let mut at_home = place.server.seen().into_iter().filter(|s| !s.host.starts_with("localhost"));
    assert!(at_home.all(|s| s.authorization.is_some()));
}

#[test]
fn a_refusal_says_what_to_do() {
    let gated = "Accept its licence at http";
    let cases: [(u16, &str, bool, &[&str]); 9] = [
        (401, "GatedRepo", false, &["is gated", gated, "set HF_TOKEN"]),
        (403, "GatedRepo", true, &["token in HF_TOKEN has no access", gated, "with that account"]),
        (401, "RepoNotFound", false, &["no such repository", "if it is private, set HF_TOKEN"]),
        (404, "RepoNotFound", true, &["no such repository", "the token in HF_TOKEN has no access"]),
        (404, "RevisionNotFound", false, &["no revision \"main\"", "branch, tag or commit"]),
        (401, "", true, &["does not accept the token of HF_TOKEN", "settings/tokens"]),
        (403, "DisabledRepo", false, &["disabled"]),
        (503, "", false, &["answered 503", "run the command again"]),
        (400, "", false, &["answered 400", "Check HF_ENDPOINT"]),
    ];
    for (status, code, has_token, says) in cases {
        let place = Place::new();
        place.server.behave(Manners { refuse: Some((status, code)), ..Manners::default() });
        let hub = Hub { token: token().filter(|_| has_token), ..place.hub() };
        let error = place.fetch(&hub, ID).unwrap_err();
        let text = error.to_string();
        assert!(error.is_input() && says.iter().all(|part| text.contains(part)), "{status} {code}: {text}");
        assert!(!text.contains("hf_secret"), "{text}");
        assert!(place.snapshot_names().is_empty());
    }
}

#[test]
fn a_repository_without_safetensors_is_refused_before_anything_large() {
    for (file, says) in [("model.Q4.gguf", "rlvr import"), ("pytorch_model.bin", "pickles")] {
        let files = ["config.json", file].map(|name| (name.to_string(), b"{}".to_vec()));
        let place = Place::with(BTreeMap::from(files));
        let error = place.fetch(&place.hub(), ID).unwrap_err().to_string();
        assert!(error.contains("has no model.safetensors") && error.contains(says), "{error}");
    }
}

#[test]
fn shards_come_as_the_index_names_them() {
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let mut files =
        BTreeMap::from([("model.safetensors.index.json".to_string(), index.to_string().into_bytes())]);
    for name in
        ["config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors", "model-3.safetensors"]
    {
        files.insert(name.into(), name.as_bytes().to_vec());
    }
    let place = Place::with(files);
    place.fetch(&place.hub(), ID).unwrap();
    let shards: Vec<_> = place.snapshot_names().into_iter().filter(|n| n.starts_with("model-")).collect();
    assert_eq!(shards, ["model-1.safetensors", "model-2.safetensors"]);

    // One of them gone: the pinned commit is no longer whole, and only that one is fetched again.
    let dir = place.repo().join("snapshots").join(COMMIT);
    std::fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    std::fs::remove_file(place.repo().join("blobs").join(sha256(b"model-2.safetensors"))).unwrap();
    place.server.seen();
    let offline = Hub { offline: true, ..place.hub() };
    let error = place.fetch(&offline, ID).unwrap_err().to_string();
    assert!(error.contains("without model-2.safetensors"), "{error}");
    place.fetch(&place.hub(), &format!("{ID}@{COMMIT}")).unwrap();
    assert_eq!(place.server.seen().iter().filter(|s| s.path.starts_with("/cdn/")).count(), 1);

    let escape = json!({"weight_map": {"a": "../model-1.safetensors"}}).to_string().into_bytes();
    let name = "model.safetensors.index.json".to_string();
    let place = Place::with(BTreeMap::from([("config.json".into(), b"{}".to_vec()), (name, escape)]));
    let error = place.fetch(&place.hub(), ID).unwrap_err().to_string();
    assert!(error.contains("not a .safetensors beside it"), "{error}");
}

#[test]
fn offline_and_without_a_network_the_cache_is_used() {
    let place = Place::new();
    let offline = Hub { offline: true, ..place.hub() };
    let error = place.fetch(&offline, ID).unwrap_err();
    let text = error.to_string();
    assert!(
        error.is_input() && text.contains("HF_HUB_OFFLINE") && text.contains("not in the cache"),
        "{text}"
    );
    // Laid out by hand, as the Python client does it.
    let dir = place.repo().join("snapshots").join(COMMIT);
    for folder in [&dir, &place.repo().join("refs"), &place.repo().join("blobs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(place.repo().join("refs/main"), COMMIT).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::write(place.repo().join("blobs").join(sha256(name.as_bytes())), name).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{}", sha256(name.as_bytes())), dir.join(name))
            .unwrap();
    }
    let error = place.fetch(&offline, ID).unwrap_err().to_string();
    assert!(error.contains("without model.safetensors"), "{error}");
    let name = RepoName::parse(ID).unwrap();
    assert_eq!(offline.fetch(&name, Parts::Text, &mut Notes::default()).unwrap().dir, dir);
    std::fs::write(dir.join(WEIGHTS), "weights").unwrap();
    assert_eq!(place.fetch(&offline, ID).unwrap().dir, dir);
    assert!(place.server.seen().is_empty());

    // The hub is down: said, and the cache does.
    place.server.behave(Manners { refuse: Some((502, "")), ..Manners::default() });
    let mut notes = Notes::default();
    assert_eq!(place.hub().fetch(&name, Parts::Model, &mut notes).unwrap().dir, dir);
    assert!(notes.0.len() == 1 && notes.0[0].contains(COMMIT) && notes.0[0].contains("502"), "{:?}", notes.0);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let place = Place::new();
    std::fs::write(place.home.path().join("hub"), "a file").unwrap();
    let (code, _, says) = place.rlvr(&["fetch", ID], &[]);
    assert!(code == Some(2) && says.contains("hub") && says.contains("HF_HOME"), "{code:?} {says}");
}

/// A model of one layer with its tokenizer, as the files of a repository.
fn tiny_model() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
    byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 259,
        "tie_word_embeddings": true, "eos_token_id": 2,
    });
    let config = config_json::from_json(&config, "config.json").unwrap();
    save_weights(dir.path(), &Decoder::random(config, 1, 128).unwrap()).unwrap();
    let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn commands_take_hub_names_and_a_run_records_the_commit() {
    let place = Place::with(tiny_model());
    let (code, out, says) = place.rlvr(&["fetch", ID, "--revision", "main"], &[("HF_TOKEN", "hf_secret")]);
    assert_eq!(code, Some(0), "{says}");
    assert_eq!(Path::new(out.trim()), place.repo().join("snapshots").join(COMMIT));
    assert!(says.contains(&format!("{ID}@{COMMIT}")) && says.contains("fetched model.safetensors"), "{says}");
    assert!(place.server.seen().iter().any(|s| s.authorization.as_deref() == Some("Bearer hf_secret")));

    let row =
        json!({"prompt": [{"role": "user", "content": "a"}], "security_type": ["Safe"], "chosen": "ok"});
    std::fs::write(place.home.path().join("rows.jsonl"), row.to_string()).unwrap();
    let (code, out, says) = place.rlvr(&["data", "check", "rows.jsonl", "--model", ID], &[]);
    assert!(code == Some(0) && out.contains("token"), "{out} {says}");
    let offline = [("HF_HUB_OFFLINE", "1")];
    let words = ["eval", ID, "rows.jsonl", "--max-completion-tokens", "2", "--device", "cpu"];
    let (code, out, says) = place.rlvr(&words, &offline);
    assert!(code == Some(0) && out.contains("strict"), "{out} {says}");

    let (code, out, says) = place.rlvr(&["plan", "--model", ID, "--memory-gib", "1000", "--json"], &offline);
    assert_eq!(code, Some(0), "{says}");
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(plan["fits"] == true && plan["peak_bytes"].as_u64() > Some(0), "{out}");

    std::fs::write(place.home.path().join("config.toml"), TRAIN).unwrap();
    let path = format!("model.path={ID}");
    let (code, _, says) = place.rlvr(&["train", "config.toml", "--set", &path], &[]);
    assert_eq!(code, Some(0), "{says}");
    let recorded = std::fs::read_to_string(place.home.path().join("runs/a/config.resolved.toml")).unwrap();
    assert!(recorded.contains(&format!("path = \"{ID}@{COMMIT}\"")), "{recorded}");
    // What was recorded trains again without the hub.
    place.server.seen();
    let words = ["train", "runs/a/config.resolved.toml", "--set", "run.name=b"];
    let (code, _, says) = place.rlvr(&words, &[]);
    assert!(code == Some(0) && place.server.seen().is_empty(), "{says}");

    let (code, _, says) = place.rlvr(&["fetch", "no-org/absent-model"], &[]);
    assert!(code == Some(2) && says.contains("no such repository"), "{says}");
    let (code, _, says) = place.rlvr(&["fetch", "absent-model"], &[]);
    assert!(code == Some(2) && says.contains("org/name"), "{says}");
}

/// `rlvr fetch` leaves a link in checkpoints/; the short name is enough from then on, also for what is exported there.
#[test]
fn short_names_are_those_of_checkpoints() {
    let place = Place::with(tiny_model());
    let home = place.home.path();
    let (code, _, says) = place.rlvr(&["fetch", ID], &[]);
    assert!(code == Some(0) && says.contains("kept as checkpoints/tiny-llama"), "{says}");
    let row =
        json!({"prompt": [{"role": "user", "content": "a"}], "security_type": ["Safe"], "chosen": "ok"});
    std::fs::write(home.join("rows.jsonl"), row.to_string()).unwrap();
    std::fs::write(home.join("config.toml"), TRAIN).unwrap();
    let offline = [("HF_HUB_OFFLINE", "1")];

    let (code, _, says) = place.rlvr(&["export", "tiny-llama", "mine", "--format", "hf"], &offline);
    assert!(code == Some(0) && home.join("checkpoints/mine/config.json").is_file(), "{says}");
    let (code, out, says) = place.rlvr(&["data", "check", "rows.jsonl", "--model", "mine"], &offline);
    assert!(code == Some(0) && out.contains("token"), "{out} {says}");
    // A folder of the current directory comes first.
    std::fs::create_dir(home.join("mine")).unwrap();
    let (code, _, says) = place.rlvr(&["data", "check", "rows.jsonl", "--model", "mine"], &offline);
    assert!(code == Some(2) && says.contains("mine/tokenizer.json"), "{says}");
    std::fs::remove_dir(home.join("mine")).unwrap();

    for (name, run, recorded) in
        [("tiny-llama", "a", format!("{ID}@{COMMIT}")), ("mine", "b", "checkpoints/mine".into())]
    {
        let (path, run_name) = (format!("model.path={name}"), format!("run.name={run}"));
        let (code, _, says) =
            place.rlvr(&["train", "config.toml", "--set", &path, "--set", &run_name], &offline);
        assert_eq!(code, Some(0), "{says}");
        let text = std::fs::read_to_string(home.join("runs").join(run).join("config.resolved.toml")).unwrap();
        assert!(text.contains(&format!("path = \"{recorded}\"")), "{text}");
    }

    let known = "or one of checkpoints/: mine, tiny-llama";
    let (code, _, says) = place.rlvr(&["eval", "yours", "rows.jsonl"], &offline);
    assert!(code == Some(2) && says.contains("yours: no such folder") && says.contains(known), "{says}");
    let (code, _, says) = place.rlvr(&["train", "config.toml", "--set", "model.path=yours"], &offline);
    assert!(code == Some(2) && says.contains("model.path = yours: no such folder"), "{says}");
    assert!(says.contains(known), "{says}");
}
