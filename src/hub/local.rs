//! A model by what it is called: a folder, a short name in `checkpoints/`, or a hub name.

use std::path::{Component, Path, PathBuf};

use super::name::is_commit;
use super::{DataName, Hub, Parts, Progress, RepoName, Snapshot};
use crate::error::{Error, Result};

/// Folder of imported, fetched and finished models, in the current directory.
pub const CHECKPOINTS: &str = "checkpoints";

/// The config that makes a folder a run.
pub const RUN_CONFIG: &str = "config.resolved.toml";
/// A run's final model and its adapter.
pub const RUN_MODEL: &str = "model";
pub const RUN_ADAPTER: &str = "adapter";

/// A model that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    pub dir: PathBuf,
    /// `org/name@commit` when it came from the hub.
    pub pinned: Option<String>,
}

/// The folder that `named` means: itself where it exists, or its `model/` where it is a run; else `checkpoints/NAME` of a
/// name without a `/`; else the cache's where it is a hub name (`org/name`, `org/name@revision`).
///
/// # Errors
/// As [`Hub::fetch`]; a name without a `/` that is nowhere; a run without a model. Whether another folder holds a model
/// is left to whoever reads it.
pub fn find(named: &Path, parts: Parts, progress: &mut dyn Progress) -> Result<Folder> {
    if DataName::of(named).is_ok_and(|name| name.is_some()) {
        let fix = "Name a model: org/name, a short name or a folder";
        return Err(Error::input(named.display(), "is a data set", fix));
    }
    if let Some(name) = RepoName::of(named) {
        let snapshot = Hub::from_env().fetch(&name, parts, progress)?;
        return Ok(Folder { pinned: Some(snapshot.pinned()), dir: snapshot.dir });
    }
    if let Some(dir) = in_run(named, RUN_MODEL)? {
        return Ok(Folder { dir, pinned: None });
    }
    match here(named) {
        Some(dir) if dir != named => Ok(Folder { pinned: pinned(&dir), dir }),
        None if is_short(named) => Err(unknown(named, Path::new(CHECKPOINTS))),
        _ => Ok(Folder { dir: named.into(), pinned: None }),
    }
}

/// The `part` of `named`, where that is a run.
///
/// # Errors
/// The run has none.
pub fn in_run(named: &Path, part: &str) -> Result<Option<PathBuf>> {
    if !named.join(RUN_CONFIG).is_file() {
        return Ok(None);
    }
    let dir = named.join(part);
    if dir.is_dir() {
        return Ok(Some(dir));
    }
    let fix = match part {
        RUN_ADAPTER => "Name a run with [lora] in its config, or the adapter's folder".into(),
        _ => format!("Finish it with `rlvr train --resume {}`, or name a model folder", named.display()),
    };
    Err(Error::input(named.display(), format!("is a run without {part}/"), fix))
}

/// The run that a folder is or lies in: that of `runs/NAME/model`.
pub fn run_of(folder: &Path) -> Option<PathBuf> {
    let is_run = |dir: &&Path| dir.join(RUN_CONFIG).is_file();
    let found = folder.canonicalize().ok()?;
    [Some(found.as_path()), found.parent()].into_iter().flatten().find(is_run).map(Into::into)
}

/// The folder that `named` means without the hub: itself, or the one in `checkpoints/`.
pub fn here(named: &Path) -> Option<PathBuf> {
    if named.exists() {
        return Some(named.into());
    }
    Some(Path::new(CHECKPOINTS).join(named)).filter(|dir| is_short(named) && dir.is_dir())
}

/// Where a model called `named` is written: in `checkpoints/` where that is a name without a `/` and nothing is there.
pub fn target(named: &Path) -> PathBuf {
    if is_short(named) && !named.exists() { Path::new(CHECKPOINTS).join(named) } else { named.into() }
}

/// `SmolLM2-135M-Instruct` of `some/SmolLM2-135M-Instruct.Q4_1.gguf`, in small letters. Of a part, that of the whole.
pub fn short_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let whole = stem.rsplit_once("-of-").filter(|(_, count)| number(count));
    let whole = whole.and_then(|(part, _)| part.rsplit_once('-')).filter(|(_, part)| number(part));
    let stem = whole.map_or(stem.as_str(), |(name, _)| name);
    let stem = match stem.rsplit_once(['.', '-']) {
        Some((name, quantisation)) if !name.is_empty() && is_quantisation(quantisation) => name,
        _ => stem,
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    stem.chars().map(plain).collect()
}

/// How llama.cpp calls the types of a file: `q4_1`, `iq4_xs`, `bf16`.
fn is_quantisation(text: &str) -> bool {
    let digits = text.trim_start_matches(['i', 't']).strip_prefix('q');
    matches!(text, "f32" | "f16" | "bf16")
        || digits.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Gives a snapshot of the cache a short name: a link in `checkpoints/`, in the place of an older link.
///
/// # Errors
/// Something else has the name; the link cannot be made.
pub fn keep(snapshot: &Snapshot) -> Result<PathBuf> {
    let link = Path::new(CHECKPOINTS).join(snapshot.short_name());
    keep_as(snapshot, &link)?;
    Ok(link)
}

fn keep_as(snapshot: &Snapshot, link: &Path) -> Result<()> {
    let fix = "Use the folder that was printed, or move it away and fetch again";
    match std::fs::symlink_metadata(link) {
        Ok(found) if found.is_symlink() => {
            std::fs::remove_file(link).map_err(Error::io(link, "replace the link"))?;
        }
        Ok(_) => return Err(Error::input(link.display(), "is there already and no link", fix)),
        Err(_) => {}
    }
    let folder = link.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "make the folder"))?;
    let dir = std::path::absolute(&snapshot.dir).map_err(Error::io(&snapshot.dir, "name the folder"))?;
    #[cfg(unix)]
    return std::os::unix::fs::symlink(dir, link).map_err(Error::io(link, "link"));
    #[cfg(not(unix))]
    Err(Error::input(link.display(), format!("is no link to {}: this system has none", dir.display()), fix))
}

impl Snapshot {
    fn short_name(&self) -> String {
        self.id.rsplit('/').next().unwrap_or(&self.id).to_ascii_lowercase()
    }
}

/// The hub name of a folder that is, or is a link to, a snapshot in a cache: `models--ORG--NAME/snapshots/COMMIT`.
fn pinned(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mut names = dir.iter().rev().map(|part| part.to_str());
    let (commit, snapshots, repo) = (names.next()??, names.next()??, names.next()??);
    let id = repo.strip_prefix("models--")?.replacen("--", "/", 1);
    let known = snapshots == "snapshots" && is_commit(commit);
    known.then(|| RepoName::parse(&format!("{id}@{commit}")).ok()).flatten().map(|name| name.to_string())
}

/// A single name: no path, so that it can be one in `checkpoints/`.
fn is_short(named: &Path) -> bool {
    let mut parts = named.components();
    // `components` drops a `/` at the end.
    let plain = named.to_str().is_some_and(|text| !text.ends_with(std::path::MAIN_SEPARATOR));
    plain && matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

fn unknown(named: &Path, checkpoints: &Path) -> Error {
    let entries = std::fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let fix = match names.as_slice() {
        [] => format!("or a hub name, org/name; {CHECKPOINTS}/ has no model yet"),
        names => format!("a hub name, org/name, or one of {CHECKPOINTS}/: {}", names.join(", ")),
    };
    let fix = format!("Name a model folder (config.json, safetensors, tokenizer.json), {fix}");
    Error::input(named.display(), "no such folder", fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_slash_is_short() {
        assert!(is_short(Path::new("smollm2-135m")) && is_short(Path::new("a.b")));
        for path in ["./a", "a/", "a/b", "/a", "..", ".", ""] {
            assert!(!is_short(Path::new(path)), "{path}");
        }
        assert_eq!(target(Path::new("some-model")), Path::new("checkpoints/some-model"));
        for path in ["./some-model", "src", "a/b"] {
            assert_eq!(target(Path::new(path)), Path::new(path));
        }
    }

    #[test]
    fn the_short_name_of_a_file_leaves_its_types_out() {
        for (file, name) in [
            ("a/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
            ("Llama-3.2-1B-Instruct-IQ4_XS.gguf", "llama-3.2-1b-instruct"),
            ("qwen3-bf16.gguf", "qwen3"),
            ("Qwen 3.gguf", "qwen-3"),
            ("q8_0.gguf", "q8_0"),
            ("tokenizer.model", "tokenizer"),
            ("Qwen3-8B-Q8_0-00001-of-00002.gguf", "qwen3-8b"),
            ("one-of-00002.gguf", "one-of-00002"),
        ] {
            assert_eq!(short_name(Path::new(file)), name, "{file}");
        }
    }

    #[test]
    fn an_unknown_name_is_told_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let says = unknown(Path::new("absent"), dir.path()).to_string();
        assert!(
            says.starts_with("absent: no such folder. Name a model folder") && says.contains("no model yet"),
            "{says}"
        );
        for name in ["b", "a"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("README.md"), "").unwrap();
        assert!(unknown(Path::new("absent"), dir.path()).to_string().ends_with("one of checkpoints/: a, b"));
    }

    #[test]
    fn a_run_stands_for_its_model_and_says_when_it_has_none() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("demo-001");
        std::fs::create_dir(&run).unwrap();
        assert_eq!(in_run(&run, RUN_MODEL).unwrap(), None);
        std::fs::write(run.join(RUN_CONFIG), "").unwrap();
        let says = in_run(&run, RUN_MODEL).unwrap_err().to_string();
        assert!(says.contains("is a run without model/") && says.contains("--resume"), "{says}");
        let model = run.join("model");
        std::fs::create_dir(&model).unwrap();
        assert_eq!(in_run(&run, RUN_MODEL).unwrap(), Some(model.clone()));
        assert_eq!(in_run(&model, RUN_MODEL).unwrap(), None);
        let run = run.canonicalize().unwrap();
        assert_eq!([run_of(&model), run_of(&run), run_of(root.path())], [Some(run.clone()), Some(run), None]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_snapshot_keeps_its_hub_name() {
        let home = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let dir = home.path().join("hub/models--Some-Org--Tiny/snapshots").join(commit);
        std::fs::create_dir_all(&dir).unwrap();
        let snapshot = Snapshot { dir, id: "Some-Org/Tiny".into(), commit: commit.into() };
        let link = home.path().join("checkpoints").join(snapshot.short_name());
        assert!(link.ends_with("tiny"));
        keep_as(&snapshot, &link).unwrap();
        keep_as(&snapshot, &link).unwrap();
        assert_eq!(pinned(&link).as_deref(), Some(&*snapshot.pinned()));
        assert_eq!(pinned(home.path()), None);
        std::fs::remove_file(&link).unwrap();
        std::fs::create_dir(&link).unwrap();
        assert!(keep_as(&snapshot, &link).unwrap_err().to_string().contains("no link"));
    }
}
