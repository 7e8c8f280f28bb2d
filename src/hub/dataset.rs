//! Data sets by name: `hf:org/name`, a revision of it, a split of it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::client::Client;
use super::download::Download;
use super::name::{RepoKind, SCHEME};
use super::splits::{self, Split, Subset};
use super::{Hub, Progress, RepoName};
use crate::error::{Error, Result};

const README: &str = "README.md";

/// `hf:org/name[@revision][:[config/]split]`, or a file of the repository in the place of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataName {
    pub repo: RepoName,
    part: Option<String>,
}

/// Files of a data set at one commit, in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Holds the files under their own names.
    pub dir: PathBuf,
    pub splits: Vec<DataFiles>,
}

/// A split, or a file that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    /// Means the same files for ever, `hf:org/name@commit:split`.
    pub pinned: String,
    /// In the order in which their rows follow each other.
    pub paths: Vec<PathBuf>,
}

/// How much of a data set is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// What is one source of rows.
    One,
    /// Where no split is named, all of them.
    Every,
}

impl DataName {
    /// The data set that `path` means: none where it does not begin with `hf:`.
    ///
    /// # Errors
    /// It does, and is of another form.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let Some(text) = path.to_str().and_then(|text| text.strip_prefix(SCHEME)) else { return Ok(None) };
        let (repo, part) = match text.split_once(':') {
            Some((repo, part)) => (repo, Some(part)),
            None => (text, None),
        };
        let wrong = |problem: String| {
            let fix =
                "Write hf:org/name, hf:org/name@revision, hf:org/name:split or hf:org/name:config/split";
            Error::input(path.display(), problem, fix)
        };
        if part.is_some_and(|part| part.is_empty() || part.split('/').any(str::is_empty)) {
            return Err(wrong("names nothing after the last `:`".into()));
        }
        let repo = RepoName::of_kind(RepoKind::Dataset, repo).map_err(|error| match error {
            Error::Input { problem, .. } => wrong(problem),
            other => other,
        })?;
        Ok(Some(Self { repo, part: part.map(Into::into) }))
    }

    /// The same data set at another revision.
    ///
    /// # Errors
    /// As [`RepoName::at`].
    pub fn at(&self, revision: &str) -> Result<Self> {
        Ok(Self { repo: self.repo.at(revision)?, part: self.part.clone() })
    }

    /// What a folder for it may be called: the last part of the name.
    pub fn short_name(&self) -> &str {
        self.repo.id().rsplit('/').next().unwrap_or_default()
    }

    /// The files that are wanted, each list with the name of its part.
    fn select(
        &self,
        files: &[String],
        readme: Option<&str>,
        wanted: Wanted,
    ) -> Result<Vec<(String, Vec<String>)>> {
        let part = self.part.as_deref();
        if let Some(file) = part.filter(|part| files.iter().any(|file| file == part)) {
            return Ok(vec![(file.into(), vec![self.readable(file)?])]);
        }
        let subsets = splits::subsets(files, readme)?;
        let single = subsets.len() == 1;
        let name = |subset: &Subset, split: &Split| match single {
            true => split.name.clone(),
            false => format!("{}/{}", subset.name, split.name),
        };
        let all = || subsets.iter().flat_map(|subset| subset.splits.iter().map(move |split| (subset, split)));
        let found: Vec<(&Subset, &Split)> = match part {
            Some(part) => all()
                .filter(|(subset, split)| {
                    name(subset, split) == part || format!("{}/{}", subset.name, split.name) == part
                })
                .collect(),
            None if single || wanted == Wanted::One => all().collect(),
            None => Vec::new(),
        };
        if all().next().is_none() {
            return Err(self.without_data(files));
        }
        if found.is_empty() || (wanted == Wanted::One && found.len() > 1) {
            let names: Vec<String> = all().map(|(subset, split)| name(subset, split)).collect();
            let problem = match part {
                Some(part) => format!("has no split and no file `{part}`"),
                None if single => format!("has {} splits", names.len()),
                None => format!("has {} configs", subsets.len()),
            };
            let first = names.first().cloned().unwrap_or_default();
            let fix = format!("Name one, as in {}:{first}; there are: {}", self.repo, listed(&names));
            return Err(Error::input(self, problem, fix));
        }
        found
            .into_iter()
            .map(|(subset, split)| {
                Ok((name(subset, split), self.checked(&name(subset, split), &split.files)?))
            })
            .collect()
    }

    /// The files of a split, if they are there and can be read one after the other.
    fn checked(&self, name: &str, files: &[String]) -> Result<Vec<String>> {
        let fault =
            |problem: String, fix: &str| Err(Error::input(format!("{}:{name}", self.repo), problem, fix));
        let one = "Name a file of it instead, hf:ORG/NAME:FILE";
        if files.is_empty() {
            return fault("no file of the repository is what its README.md names for this split".into(), one);
        }
        if let Some(shard) = splits::absent_shard(files) {
            return fault(format!("{shard} is missing"), "Tell the repository's owner, or name a file of it");
        }
        let files = files.iter().map(|file| self.readable(file)).collect::<Result<Vec<_>>>()?;
        let mut kinds: Vec<&str> = files.iter().filter_map(|file| splits::kind(file)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.len() > 1 {
            return fault(format!("has files of several kinds ({})", kinds.join(", ")), one);
        }
        Ok(files)
    }

    fn readable(&self, file: &str) -> Result<String> {
        let leaves = file.split('/').any(|part| matches!(part, "" | "." | "..")) || file.contains('\\');
        if leaves || splits::kind(file).is_none() {
            let problem = if leaves { "is no file in its folder" } else { "is of a kind that is not read" };
            let fix = "JSON Lines, JSON, CSV, TSV and parquet are, also packed with gzip or zstd";
            return Err(Error::input(format!("{}:{file}", self.repo), problem, fix));
        }
        Ok(file.into())
    }

    fn without_data(&self, files: &[String]) -> Error {
        let script = format!("{}.py", self.short_name());
        let fix = format!(
            "Try the hub's own copy, {}, or save the rows as JSON Lines",
            self.repo.at("refs/convert/parquet").map_or(String::new(), |name| name.to_string())
        );
        let problem = match files.contains(&script) {
            true => format!("is made by a loading script, {script}, which is not run"),
            false => format!(
                "has no JSON Lines, JSON, CSV, TSV or parquet file; there are: {}",
                listed(&files.iter().filter(|file| !file.starts_with('.')).cloned().collect::<Vec<_>>())
            ),
        };
        Error::input(self, problem, fix)
    }
}

impl fmt::Display for DataName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        self.part.as_ref().map_or(Ok(()), |part| write!(f, ":{part}"))
    }
}

/// The first names of a long list.
fn listed(names: &[String]) -> String {
    const MOST: usize = 20;
    let mut text = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        text += &format!(" and {} more", names.len() - MOST);
    }
    if text.is_empty() { "none".into() } else { text }
}

/// The files that a data file's name means: itself, or those of a data set, which are downloaded where the cache has not
/// got them.
///
/// # Errors
/// As [`Hub::data`].
pub fn data_files(named: &Path) -> Result<Vec<PathBuf>> {
    let Some(name) = DataName::of(named)? else { return Ok(vec![named.into()]) };
    let found = Hub::from_env().data(&name, &mut Unheard)?;
    Ok(found.splits.into_iter().flat_map(|split| split.paths).collect())
}

/// [`data_files`], by one name that means them for ever; `progress` hears of downloads.
///
/// # Errors
/// As [`Hub::data`].
pub fn pinned_data(named: &Path, progress: &mut dyn Progress) -> Result<PathBuf> {
    let Some(name) = DataName::of(named)? else { return Ok(named.into()) };
    let found = Hub::from_env().data(&name, progress)?;
    Ok(found.splits.into_iter().next().map_or_else(|| named.into(), |split| split.pinned.into()))
}

struct Unheard;

impl Progress for Unheard {
    fn file(&mut self, _: &str, _: u64, _: u64) {}
    fn at(&mut self, _: u64) {}
    fn done(&mut self) {}
    fn note(&mut self, _: &str) {}
}

impl Hub {
    /// The one split that the name means, downloaded where the cache has not got it; of the cache and of a hub that cannot be
    /// reached as [`Self::fetch`].
    ///
    /// # Errors
    /// As [`Self::fetch`]; there are several splits and none is named; there is none that is named; its files are of a kind
    /// that is not read, or want a loading script.
    pub fn data(&self, name: &DataName, progress: &mut dyn Progress) -> Result<Data> {
        self.data_of(name, Wanted::One, progress)
    }

    /// [`Self::data`]; every split where none is named.
    ///
    /// # Errors
    /// As [`Self::data`]; there are several configs, and none is named.
    pub fn all_data(&self, name: &DataName, progress: &mut dyn Progress) -> Result<Data> {
        self.data_of(name, Wanted::Every, progress)
    }

    fn data_of(&self, name: &DataName, wanted: Wanted, progress: &mut dyn Progress) -> Result<Data> {
        let cache = RepoCache::new(&self.cache, &name.repo);
        let held = Held { name, wanted, cache: &cache };
        let cached = cache.commit()?;
        if self.offline {
            let Some(commit) = cached else {
                return Err(self.not_cached(&name.repo, "it is not in the cache".into()));
            };
            return match held.look(&commit)? {
                (Some(data), false) => Ok(data),
                (Some(data), true) => {
                    progress.note(&format!(
                        "{name}: the files that the cache has; that they are all, it does not say"
                    ));
                    Ok(data)
                }
                (None, _) => Err(self
                    .not_cached(&name.repo, format!("the cache has commit {commit} without all of {name}"))),
            };
        }
        if let (Some(commit), true) = (&cached, name.repo.is_commit())
            && let (Some(data), false) = held.look(commit)?
        {
            return Ok(data);
        }
        let client = Client::new(self, &name.repo)?;
        let listing = match (client.listing(), &cached) {
            (Err(fault), Some(commit)) if fault.is_passing() => {
                let (Some(data), _) = held.look(commit)? else { return Err(fault.into()) };
                progress.note(&format!("{name}: {fault}; using commit {commit} from the cache"));
                return Ok(data);
            }
            (listing, _) => listing?,
        };
        let commit = listing.commit.as_str();
        cache.keep_listing(commit, &listing.files)?;
        let download = Download { client: &client, cache: &cache, commit };
        if listing.files.iter().any(|file| file == README) {
            download.file(README, progress)?;
        }
        let chosen = name.select(&listing.files, held.readme(commit).as_deref(), wanted)?;
        for file in chosen.iter().flat_map(|(_, files)| files) {
            download.file(file, progress)?;
        }
        cache.remember(commit)?;
        Ok(held.data(commit, chosen))
    }
}

/// What the cache has of a data set.
struct Held<'a> {
    name: &'a DataName,
    wanted: Wanted,
    cache: &'a RepoCache,
}

impl Held<'_> {
    fn readme(&self, commit: &str) -> Option<String> {
        let bytes = std::fs::read(self.cache.snapshot(commit).join(README)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The data if all of it is there, and whether that is a guess: another program put it there, and left no list.
    fn look(&self, commit: &str) -> Result<(Option<Data>, bool)> {
        let (files, is_guess) = match self.cache.listing(commit) {
            Some(files) => (files, false),
            None => (self.cache.held(commit), true),
        };
        let dir = self.cache.snapshot(commit);
        let readme = self.readme(commit);
        if files.is_empty() || (readme.is_none() && files.iter().any(|file| file == README)) {
            return Ok((None, is_guess));
        }
        let chosen = self.name.select(&files, readme.as_deref(), self.wanted)?;
        let whole = chosen.iter().flat_map(|(_, files)| files).all(|file| dir.join(file).is_file());
        Ok((whole.then(|| self.data(commit, chosen)), is_guess))
    }

    fn data(&self, commit: &str, chosen: Vec<(String, Vec<String>)>) -> Data {
        let dir = self.cache.snapshot(commit);
        let splits = chosen.into_iter().map(|(part, files)| DataFiles {
            pinned: format!("{SCHEME}{}@{commit}:{part}", self.name.repo.id()),
            paths: files.iter().map(|file| dir.join(file)).collect(),
        });
        Data { splits: splits.collect(), dir }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(name: &str, files: &[&str]) -> Result<Vec<(String, Vec<String>)>> {
        let files: Vec<String> = files.iter().map(|file| file.to_string()).collect();
        DataName::of(Path::new(name))?.expect("a data set").select(&files, None, Wanted::One)
    }

    #[test]
    fn a_name_is_told_from_a_path() {
        let name =
            DataName::of(Path::new("hf:some-org/rows@refs/convert/parquet:en/train")).unwrap().unwrap();
        assert_eq!((name.repo.id(), name.repo.revision()), ("some-org/rows", "refs/convert/parquet"));
        assert_eq!((name.part.as_deref(), name.short_name()), (Some("en/train"), "rows"));
        assert_eq!(name.at("v1").unwrap().to_string(), "hf:some-org/rows@v1:en/train");
        for path in ["rows.jsonl", "some-org/rows", "./hf:some-org/rows", "-"] {
            assert_eq!(DataName::of(Path::new(path)).unwrap(), None, "{path}");
        }
        for wrong in
            ["hf:", "hf:rows", "hf:a/b/c", "hf:a/b:", "hf:a/b@", "hf:a/b:x//y", "hf://a/b", "hf:a/b:/x"]
        {
            let error = DataName::of(Path::new(wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("Write hf:org/name,"), "{error}");
        }
    }

    #[test]
    fn what_is_meant_is_one_split_or_said_why_not() {
        let two = ["train.csv", "test.csv", "LICENSE"];
        assert_eq!(select("hf:a/b:test", &two).unwrap(), [("test".into(), vec!["test.csv".into()])]);
        assert_eq!(select("hf:a/b:default/test", &two).unwrap()[0].0, "test");
        assert_eq!(select("hf:a/b:train.csv", &two).unwrap()[0].1, ["train.csv"]);
        assert_eq!(select("hf:a/b", &two[..1]).unwrap()[0].0, "train");
        let parquet = ["en/train/0000.parquet", "fr/train/0000.parquet"];
        assert_eq!(select("hf:a/b:fr/train", &parquet).unwrap()[0].1, ["fr/train/0000.parquet"]);
        let cases: [(&str, &[&str], &str); 8] = [
            ("hf:a/b", &two, "hf:a/b: has 2 splits. Name one, as in hf:a/b:train; there are: train, test"),
            ("hf:a/b:dev", &two, "hf:a/b:dev: has no split and no file `dev`. Name one"),
            (
                "hf:a/b@v1",
                &parquet,
                "has 2 configs. Name one, as in hf:a/b@v1:en/train; there are: en/train, fr/train",
            ),
            ("hf:a/b:LICENSE", &two, "hf:a/b:LICENSE: is of a kind that is not read. JSON Lines"),
            (
                "hf:a/b",
                &["b.py", "README.md"],
                "made by a loading script, b.py, which is not run. Try the hub's own copy, \
                hf:a/b@refs/convert/parquet,",
            ),
            ("hf:a/b", &["rows.zip", ".gitattributes"], "or parquet file; there are: rows.zip. Try"),
            (
                "hf:a/b",
                &["x.csv", "y.jsonl"],
                "hf:a/b:train: has files of several kinds (CSV, JSON). Name a file",
            ),
            (
                "hf:a/b",
                &["data/train-00000-of-00002.parquet"],
                "data/train-00001-of-00002.parquet is missing",
            ),
        ];
        for (name, files, want) in cases {
            let error = select(name, files).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(want), "{error} instead of {want}");
        }
        let error = select("hf:a/b:../x.csv", &["../x.csv"]).unwrap_err().to_string();
        assert!(error.contains("is no file in its folder"), "{error}");
    }
}
