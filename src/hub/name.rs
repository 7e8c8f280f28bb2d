//! `org/name` and `org/name@revision`, of a model or, with `hf:` before it, of a data set.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// First parts of paths that nobody means as an organisation on the hub.
const FOLDERS: [&str; 6] = ["models", "datasets", "spaces", "runs", "data", "checkpoints"];
const LONGEST: usize = 96;
/// Before the name of a data set.
pub(super) const SCHEME: &str = "hf:";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    Model,
    Dataset,
}

/// A repository, and the branch, tag or commit of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    kind: RepoKind,
    id: String,
    revision: Option<String>,
}

impl RepoName {
    /// A model's.
    ///
    /// # Errors
    /// When the text is not of that form.
    pub fn parse(text: &str) -> Result<Self> {
        Self::of_kind(RepoKind::Model, text)
    }

    /// # Errors
    /// As [`Self::parse`].
    pub(super) fn of_kind(kind: RepoKind, text: &str) -> Result<Self> {
        let wrong = |problem: &str| {
            let fix = "Write org/name, or org/name@revision with a branch, tag or commit";
            Err(Error::input(format!("hub name {text:?}"), problem, fix))
        };
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_name(part)) || id.len() > LONGEST {
            return wrong("is not two names with a / between");
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return wrong("has a revision of other characters than letters, digits, `-`, `_`, `.` and `/`");
        }
        Ok(Self { kind, id: id.into(), revision: revision.map(Into::into) })
    }

    /// The repository that `path` means: none when there is such a file or folder, or one to start with, or when the
    /// path is of another form.
    pub fn of(path: &Path) -> Option<Self> {
        let name = Self::parse(path.to_str()?).ok()?;
        let (first, _) = name.id.split_once('/')?;
        let is_path = path.exists() || Path::new(first).exists() || FOLDERS.contains(&first);
        (!is_path).then_some(name)
    }

    /// The same repository at another revision.
    ///
    /// # Errors
    /// When the revision has characters that none has.
    pub fn at(&self, revision: &str) -> Result<Self> {
        Self::of_kind(self.kind, &format!("{}@{revision}", self.id))
    }

    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    pub fn is_commit(&self) -> bool {
        is_commit(self.revision())
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.kind == RepoKind::Dataset { SCHEME } else { "" };
        write!(f, "{scheme}{}", self.id)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let inner = !part.contains("--") && !part.contains("..");
    !part.is_empty() && part.chars().all(allowed) && inner && !part.starts_with(['.', '-'])
}

fn is_revision(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    text.chars().all(allowed) && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_revisions_are_told_from_paths() {
        let name = RepoName::parse("meta-llama/Llama-3.2-1B@refs/pr/1").unwrap();
        assert_eq!((name.id(), name.revision()), ("meta-llama/Llama-3.2-1B", "refs/pr/1"));
        assert_eq!(RepoName::parse("a/b").unwrap().revision(), "main");
        assert_eq!(RepoName::parse("a/b").unwrap().at("v1").unwrap().to_string(), "a/b@v1");
        for wrong in
            ["a", "a/b/c", "/a", "a/", "../b", "./b", "a/b@", "a/b@../x", "a/b@/x", "a b/c", "a--b/c"]
        {
            assert!(RepoName::parse(wrong).is_err(), "{wrong}");
        }
        assert!(RepoName::of(Path::new("some-org/some-model")).is_some());
        for path in ["models/smollm2", "src/absent", "src/lib.rs", "/some-org/model", "some-org/model/part"] {
            assert_eq!(RepoName::of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn only_forty_hexadecimal_digits_are_a_commit() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(RepoName::parse(&format!("a/b@{commit}")).unwrap().is_commit());
        assert!(!RepoName::parse(&format!("a/b@{}", &commit[1..])).unwrap().is_commit());
        assert!(!RepoName::parse("a/b").unwrap().is_commit());
    }
}
