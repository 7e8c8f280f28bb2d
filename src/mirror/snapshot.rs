//! A run as it was at a checkpoint: which objects are its files. Written last of all, so that what it names is there.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::run::hex;

pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const OBJECTS: &str = "objects";
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    format: u32,
    /// Optimiser steps of the run.
    pub(super) step: u64,
    /// Of the lease under which it was written.
    pub(super) generation: u64,
    pub(super) files: Vec<Entry>,
    /// SHA-256 of this without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Within the run, with `/`.
    pub(super) path: String,
    /// The key of its bytes.
    pub(super) object: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Step and generation: the greatest is the newest.
pub(super) type Name = (u64, u64);

pub(super) fn key((step, generation): Name) -> String {
    format!("{SNAPSHOTS}/{step:012}-{generation:06}.json")
}

pub(super) fn name(key: &str) -> Option<Name> {
    let (step, generation) =
        key.strip_prefix(SNAPSHOTS)?.strip_prefix('/')?.strip_suffix(".json")?.split_once('-')?;
    Some((step.parse().ok()?, generation.parse().ok()?))
}

impl Snapshot {
    pub(super) fn new(step: u64, generation: u64, files: Vec<Entry>) -> Self {
        Self { format: FORMAT, step, generation, files, seal: None }
    }

    pub(super) fn name(&self) -> Name {
        (self.step, self.generation)
    }

    fn digest(&self) -> String {
        let open = Self { seal: None, ..self.clone() };
        hex(&Sha256::digest(serde_json::to_vec(&open).unwrap_or_default()))
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let sealed = Self { seal: Some(self.digest()), ..self.clone() };
        serde_json::to_vec_pretty(&sealed).unwrap_or_default()
    }

    /// # Errors
    /// What is wrong with it, a clause.
    pub(super) fn from_json(text: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(text).map_err(|error| format!("is damaged ({error})"))?;
        if read.format != FORMAT {
            return Err(format!("has format {}, this rlvr reads {FORMAT}", read.format));
        }
        if read.seal.as_deref() != Some(&read.digest()) {
            return Err("is damaged (it has changed since it was written)".into());
        }
        let inside =
            |path: &str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        match read.files.iter().find(|file| !inside(&file.path) || !inside(&file.object)) {
            Some(file) => Err(format!("names {}, which lies elsewhere", file.path)),
            None => Ok(Self { seal: None, ..read }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(path: &str) -> Snapshot {
        let object = format!("{OBJECTS}/3/ab");
        Snapshot::new(12, 3, vec![Entry { path: path.into(), object, bytes: 5, sha256: "ab".into() }])
    }

    #[test]
    fn a_snapshot_is_known_by_step_and_generation() {
        assert_eq!(key((12, 3)), "snapshots/000000000012-000003.json");
        assert_eq!(name(&key((12, 3))), Some((12, 3)));
        assert!(name("snapshots/x.json").is_none() && name("objects/12-3.json").is_none());
        assert!((12, 3) > (12, 2) && (13, 1) > (12, 2));
    }

    #[test]
    fn one_that_changed_since_is_damaged() {
        let whole = snapshot("metrics.jsonl");
        let text = String::from_utf8(whole.to_json()).unwrap();
        assert_eq!(Snapshot::from_json(text.as_bytes()), Ok(whole));
        let bytes = text.replace("\"bytes\": 5", "\"bytes\": 6");
        assert!(bytes != text && Snapshot::from_json(bytes.as_bytes()).unwrap_err().contains("has changed"));
        let cut = &text.as_bytes()[..text.len() / 2];
        assert!(Snapshot::from_json(cut).unwrap_err().contains("is damaged"));
        for outside in ["../a", "/etc/passwd", "a/../../b"] {
            let error = Snapshot::from_json(&snapshot(outside).to_json()).unwrap_err();
            assert!(error.contains("lies elsewhere"), "{error}");
        }
    }
}
