//! Models by name: folders in `checkpoints/`, and repositories of the hub, found in the cache folder that the Python
//! client uses too, or downloaded into it. Data sets of the hub by name, likewise.
//!
//! Layout of the cache: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>

mod cache;
mod card;
mod client;
mod dataset;
mod download;
mod faults;
mod local;
mod name;
mod settings;
mod splits;

use std::path::PathBuf;

use self::cache::RepoCache;
use self::client::Client;
use crate::error::{Error, Result};

pub use self::dataset::{Data, DataFiles, DataName, data_files, pinned_data};
pub use self::local::{
    CHECKPOINTS, Folder, RUN_ADAPTER, RUN_CONFIG, RUN_MODEL, find, here, in_run, keep, run_of, short_name,
    target,
};
pub use self::name::RepoName;
pub use self::settings::{Hub, Token};

/// How much of a repository is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// config.json.
    Config,
    /// Tokenizer, chat template and the configs.
    Text,
    /// [`Parts::Text`] and the safetensors.
    Model,
}

/// A repository at one commit, in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Holds the files under their own names.
    pub dir: PathBuf,
    pub id: String,
    /// 40 hexadecimal digits.
    pub commit: String,
}

impl Snapshot {
    /// The name that means the same files for ever.
    pub fn pinned(&self) -> String {
        format!("{}@{}", self.id, self.commit)
    }
}

/// Hears how a download goes.
pub trait Progress {
    /// `have` of the file's `size` bytes are there already.
    fn file(&mut self, name: &str, size: u64, have: u64);
    /// Bytes of the file that are there now.
    fn at(&mut self, bytes: u64);
    /// The file is whole.
    fn done(&mut self);
    fn note(&mut self, text: &str);
}

/// Small files in the order they are fetched; the weights come last, so that a folder with whole weights has the rest.
const SMALL: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "adapter_config.json",
    "threshold.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";

impl Hub {
    /// The folder of a repository with the `parts` of it, downloaded where the cache has not got them.
    ///
    /// A pinned commit that the cache has whole is used without asking the hub; so is a branch that the cache knows,
    /// with a note, when the hub cannot be reached.
    ///
    /// # Errors
    /// Says what to do about a gated, private or missing repository, a missing revision, an incomplete cache when
    /// offline, a full disk. Nothing half done has its final name.
    pub fn fetch(&self, name: &RepoName, parts: Parts, progress: &mut dyn Progress) -> Result<Snapshot> {
        let cache = RepoCache::new(&self.cache, name);
        let cached = cache.commit()?;
        let snapshot = |commit: &str| Snapshot {
            dir: cache.snapshot(commit),
            id: name.id().into(),
            commit: commit.into(),
        };
        if let Some(commit) = &cached {
            let whole = cache.missing(commit, parts)?.is_empty() && cache.has_text(commit, parts);
            if name.is_commit() && whole {
                return Ok(snapshot(commit));
            }
        }
        if self.offline {
            let Some(commit) = cached else {
                return Err(self.not_cached(name, "it is not in the cache".into()));
            };
            let missing = cache.missing(&commit, parts)?;
            if !missing.is_empty() {
                let problem = format!("the cache has commit {commit} without {}", missing.join(", "));
                return Err(self.not_cached(name, problem));
            }
            return Ok(snapshot(&commit));
        }
        let client = Client::new(self, name)?;
        let listing = match (client.listing(), &cached) {
            (Err(fault), Some(commit)) if fault.is_passing() && cache.missing(commit, parts)?.is_empty() => {
                progress.note(&format!("{}: {fault}; using commit {commit} from the cache", name.id()));
                return Ok(snapshot(commit));
            }
            (listing, _) => listing?,
        };
        let commit = listing.commit.as_str();
        let download = download::Download { client: &client, cache: &cache, commit };
        let has = |file: &str| listing.files.iter().any(|listed| listed == file);
        for file in SMALL.into_iter().filter(|file| parts != Parts::Config || *file == "config.json") {
            if has(file) {
                download.file(file, progress)?;
            }
        }
        if parts == Parts::Model {
            let mut weights = Vec::new();
            // In the order the loader prefers.
            if has(SINGLE) {
                weights.push(SINGLE.to_string());
            } else if has(INDEX) {
                weights = cache::shards(&download.file(INDEX, progress)?)?;
            }
            if has(ADAPTER) {
                weights.push(ADAPTER.into());
            }
            if weights.is_empty() {
                return Err(client.no_safetensors(&listing.files));
            }
            for file in &weights {
                download.file(file, progress)?;
            }
        }
        cache.remember(commit)?;
        Ok(snapshot(commit))
    }

    fn not_cached(&self, name: &RepoName, problem: String) -> Error {
        let fix = format!(
            "Unset HF_HUB_OFFLINE, or run `rlvr fetch {name}` where there is a network and set HF_HOME to its cache \
             (here: {})",
            self.cache.path().display()
        );
        Error::input(name, format!("HF_HUB_OFFLINE is set and {problem}"), fix)
    }
}
