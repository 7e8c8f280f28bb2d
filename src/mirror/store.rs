//! Objects of a store below a run's place: read and written whole, in parts where they are large, and on a condition.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig, UpdateVersion,
};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::faults::Fault;
use super::folder::{Folder, Seen};
use super::place::{Kind, Place};
use super::wire::Connector;
use crate::error::{Error, Result};
use crate::run::hex;

type Answer<T> = std::result::Result<T, Fault>;
/// Asked before every request.
pub(super) type May<'a> = &'a dyn Fn() -> Answer<()>;

/// Of a large object, at least: S3 wants 5 MiB.
const PART: u64 = 16 << 20;
/// S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;
/// Requests at once.
const AT_ONCE: usize = 4;
/// For an answer.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Store {
    place: Place,
    inner: Inner,
    /// Counts the parts that were uploaded.
    moved: Arc<AtomicU64>,
}

enum Inner {
    Objects(Objects),
    Folder(Folder),
}

struct Objects {
    store: Arc<dyn ObjectStore>,
    base: Path,
    runtime: Runtime,
    place: Place,
    /// Bytes of a request, at least.
    part: u64,
}

/// An object as it was found.
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    pub(super) at: Stat,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stat {
    /// By the store's clock, seconds since 1970.
    pub(super) modified: i64,
    pub(super) version: Version,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Version(UpdateVersion);

impl From<Seen> for Stat {
    fn from((modified, tag): Seen) -> Self {
        Self { modified, version: Version(UpdateVersion { e_tag: Some(tag), version: None }) }
    }
}

impl From<ObjectMeta> for Stat {
    fn from(meta: ObjectMeta) -> Self {
        let version = Version(UpdateVersion { e_tag: meta.e_tag, version: meta.version });
        Self { modified: meta.last_modified.timestamp(), version }
    }
}

/// What has to be so for a write.
pub(super) enum Condition {
    Absent,
    Is(Version),
}

/// A test's word for seconds in an environment variable, or the usual.
pub(super) fn seconds_of(variable: &str, usual: Duration) -> Duration {
    let said = std::env::var(variable).ok().and_then(|text| text.parse::<f64>().ok());
    said.filter(|seconds| (0.01..1e6).contains(seconds)).map_or(usual, Duration::from_secs_f64)
}

impl Store {
    /// # Errors
    /// What the place or the environment have that no store can be made of. No request is made.
    pub(super) fn open(place: &Place) -> Result<Self> {
        if place.kind == Kind::Folder {
            if !place.folder().is_dir() {
                let fix = "Make the folder or mount what it is on, or correct run.mirror";
                return Err(Error::input(place, "its folder is not there", fix));
            }
            let path = &place.prefix;
            std::fs::create_dir_all(path).map_err(Error::io(path, "create the mirror's folder"))?;
            return Ok(Self {
                place: place.clone(),
                inner: Inner::Folder(Folder(path.into())),
                moved: Arc::default(),
            });
        }
        let wire = Connector::new(seconds_of("RLVR_MIRROR_TIMEOUT", PATIENCE))?;
        let refused = |error: &dyn std::fmt::Display| {
            let fix = format!("Check run.mirror and {}", place.access());
            Error::input(place, format!("is no place for a mirror ({error})"), fix)
        };
        let store = objects(place, wire).map_err(|error| refused(&error))?;
        let base = Path::parse(&place.prefix).map_err(|error| refused(&error))?;
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(Error::io("the mirror", "start a thread"))?;
        let part = std::env::var("RLVR_MIRROR_PART").ok().and_then(|text| text.parse().ok());
        let part = part.filter(|part| *part > 0).unwrap_or(PART);
        let inner = Inner::Objects(Objects { store, base, runtime, place: place.clone(), part });
        Ok(Self { place: place.clone(), inner, moved: Arc::default() })
    }

    /// The same, with the parts that it uploads counted by `moved`.
    pub(super) fn counted(self, moved: &Arc<AtomicU64>) -> Self {
        Self { moved: Arc::clone(moved), ..self }
    }

    fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn get(&self, key: &str) -> Answer<Found> {
        match &self.inner {
            Inner::Folder(folder) => folder.get(key).map(|(bytes, seen)| Found { bytes, at: seen.into() }),
            Inner::Objects(objects) => objects.wait(async {
                let got = objects.store.get(&objects.path(key)).await?;
                let at = got.meta.clone().into();
                Ok(Found { bytes: got.bytes().await?.into(), at })
            }),
        }
    }

    pub(super) fn head(&self, key: &str) -> Answer<Stat> {
        match &self.inner {
            Inner::Folder(folder) => folder.head(key).map(Into::into),
            Inner::Objects(objects) => {
                objects.wait(async { Ok(objects.store.head(&objects.path(key)).await?.into()) })
            }
        }
    }

    pub(super) fn put(&self, key: &str, bytes: Vec<u8>) -> Answer<()> {
        match &self.inner {
            Inner::Folder(folder) => folder.put(key, |file| file.write_all(&bytes).map_err(here)),
            Inner::Objects(objects) => objects.wait(async {
                objects.store.put(&objects.path(key), PutPayload::from(bytes)).await.map(|_| ())
            }),
        }
    }

    /// Writes where the condition holds; the version written.
    ///
    /// # Errors
    /// [`Fault::Changed`] where it does not. After a passing fault it may have been written.
    pub(super) fn put_if(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Answer<Version> {
        match &self.inner {
            Inner::Folder(folder) => {
                let is = match &condition {
                    Condition::Absent => None,
                    Condition::Is(Version(version)) => version.e_tag.as_deref(),
                };
                folder.put_if(key, &bytes, is).map(|seen| Stat::from(seen).version)
            }
            Inner::Objects(objects) => objects.wait(async {
                let mode = match condition {
                    Condition::Absent => PutMode::Create,
                    Condition::Is(Version(version)) => PutMode::Update(version),
                };
                let put =
                    objects.store.put_opts(&objects.path(key), PutPayload::from(bytes), mode.into()).await?;
                Ok(Version(UpdateVersion { e_tag: put.e_tag, version: put.version }))
            }),
        }
    }

    /// Keys of a folder, and of folders there.
    pub(super) fn list(&self, folder: &str) -> Answer<Vec<String>> {
        match &self.inner {
            Inner::Folder(store) => store.list(folder),
            Inner::Objects(objects) => objects.wait(async {
                let (mut keys, mut folders) = (Vec::new(), vec![objects.path(folder)]);
                while let Some(folder) = folders.pop() {
                    let listed = objects.store.list_with_delimiter(Some(&folder)).await?;
                    folders.extend(listed.common_prefixes);
                    keys.extend(listed.objects.into_iter().map(|meta| meta.location));
                }
                let key = |path: Path| {
                    let parts = path.prefix_match(&objects.base)?;
                    Some(parts.map(|part| part.as_ref().to_string()).collect::<Vec<_>>().join("/"))
                };
                Ok(keys.into_iter().filter_map(key).collect())
            }),
        }
    }

    /// One that is gone already is as good.
    pub(super) fn delete(&self, key: &str) -> Answer<()> {
        let deleted = match &self.inner {
            Inner::Folder(folder) => folder.delete(key),
            Inner::Objects(objects) => objects.wait(async { objects.store.delete(&objects.path(key)).await }),
        };
        if deleted == Err(Fault::Missing) { Ok(()) } else { deleted }
    }

    /// The first `bytes` of a file; SHA-256 of what was read.
    pub(super) fn upload(&self, key: &str, mut file: &File, bytes: u64, may: May) -> Answer<String> {
        file.seek(SeekFrom::Start(0)).map_err(here)?;
        let mut hash = Sha256::new();
        let mut read = |most: u64| {
            let mut part = Vec::with_capacity(most as usize);
            file.take(most).read_to_end(&mut part).map_err(here)?;
            if part.len() as u64 != most {
                return Err(Fault::Here("a file that is to be copied has become shorter".into()));
            }
            hash.update(&part);
            Ok(part)
        };
        match &self.inner {
            Inner::Objects(objects) if bytes > objects.part => {
                objects.upload(key, bytes, &mut read, &|is_done| {
                    is_done.then(|| self.moved());
                    may()
                })?;
            }
            Inner::Objects(_) => {
                let all = read(bytes)?;
                may()?;
                self.put(key, all)?;
            }
            Inner::Folder(folder) => folder.put(key, |to| {
                let mut left = bytes;
                while left > 0 {
                    may()?;
                    let most = left.min(PART);
                    to.write_all(&read(most)?).map_err(here)?;
                    left -= most;
                }
                Ok(())
            })?,
        }
        self.moved();
        Ok(hex(&hash.finalize()))
    }

    /// An object of so many bytes into a file; SHA-256 of what came.
    pub(super) fn download(&self, key: &str, bytes: u64, file: &mut File, may: May) -> Answer<String> {
        let mut hash = Sha256::new();
        let mut take = |part: &[u8]| {
            hash.update(part);
            file.write_all(part).map_err(here)
        };
        match &self.inner {
            Inner::Folder(folder) => {
                let (mut from, mut part) = (folder.open(key)?, vec![0; 1 << 20]);
                loop {
                    may()?;
                    match from.read(&mut part).map_err(here)? {
                        0 => break,
                        read => take(&part[..read])?,
                    }
                }
            }
            Inner::Objects(objects) => objects.download(key, bytes, &mut take, may)?,
        }
        Ok(hex(&hash.finalize()))
    }
}

fn here(error: std::io::Error) -> Fault {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Fault::Full,
        _ => Fault::Here(error.to_string()),
    }
}

fn objects(place: &Place, wire: Connector) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(60),
    };
    let bucket = place.bucket.as_str();
    Ok(match place.kind {
        Kind::Gcs => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            Arc::new(builder.with_http_connector(wire).with_retry(retry).build()?)
        }
        Kind::Azure => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            Arc::new(builder.with_http_connector(wire).with_retry(retry).build()?)
        }
        Kind::S3 | Kind::Folder => {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
            Arc::new(builder.with_http_connector(wire).with_retry(retry).build()?)
        }
    })
}

impl Objects {
    fn wait<T>(&self, answer: impl Future<Output = object_store::Result<T>>) -> Answer<T> {
        self.runtime.block_on(answer).map_err(|error| Fault::of(error, &self.place))
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.base.clone(), |path, part| path.join(part))
    }

    /// In parts that `read` gives. `may` hears whether some have been uploaded.
    fn upload(
        &self,
        key: &str,
        bytes: u64,
        read: &mut dyn FnMut(u64) -> Answer<Vec<u8>>,
        may: &dyn Fn(bool) -> Answer<()>,
    ) -> Answer<()> {
        let part = bytes.div_ceil(MOST_PARTS).max(self.part);
        may(false)?;
        let path = self.path(key);
        let mut upload = self.wait(self.store.put_multipart(&path))?;
        let mut copy = || {
            let (mut left, first) = (bytes, bytes.min(part * AT_ONCE as u64));
            while left > 0 {
                let mut sent = Vec::new();
                while left > 0 && sent.len() < AT_ONCE {
                    let most = part.min(left);
                    sent.push(upload.put_part(PutPayload::from(read(most)?)));
                    left -= most;
                }
                may(left < bytes - first)?;
                self.wait(together(sent))?;
            }
            may(true)?;
            self.wait(upload.complete()).map(|_| ())
        };
        // Parts that nobody completes are not seen, and cost until they are removed.
        copy().inspect_err(|_| drop(self.wait(upload.abort())))
    }

    fn download(
        &self,
        key: &str,
        bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> Answer<()>,
        may: May,
    ) -> Answer<()> {
        let mut start = 0;
        while start < bytes {
            may()?;
            let mut ranges = Vec::new();
            while start < bytes && ranges.len() < AT_ONCE {
                let end = bytes.min(start + self.part);
                let (store, path) = (Arc::clone(&self.store), self.path(key));
                let options =
                    GetOptions { range: Some(GetRange::Bounded(start..end)), ..GetOptions::default() };
                ranges.push(async move { store.get_opts(&path, options).await?.bytes().await });
                start = end;
            }
            self.wait(together(ranges))?.iter().try_for_each(|part| take(part))?;
        }
        Ok(())
    }
}

/// Runs all at once; their answers in order.
async fn together<T: Send + 'static>(
    all: Vec<impl Future<Output = object_store::Result<T>> + Send + 'static>,
) -> object_store::Result<Vec<T>> {
    let mut set = JoinSet::new();
    for (at, one) in all.into_iter().enumerate() {
        set.spawn(async move { (at, one.await) });
    }
    let mut done = Vec::new();
    while let Some(joined) = set.join_next().await {
        let (at, answer) = joined?;
        done.push((at, answer?));
    }
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, answer)| answer).collect())
}
