//! Where a mirror is: `s3://bucket/prefix` and its like, as a config names it.

use std::fmt;
use std::path::PathBuf;

/// Of one run, below what the config names.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub(super) kind: Kind,
    /// Bucket, or container.
    pub(super) bucket: String,
    /// Folders within it, the run's name last; of `file://` a path of the system.
    pub(super) prefix: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    S3,
    Gcs,
    Azure,
    Folder,
}

impl Place {
    /// `url`: as `config::MIRRORS` has it, which the config was held against.
    pub fn new(url: &str, run: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("file", url));
        let rest = rest.trim_end_matches('/');
        let kind = match scheme {
            "s3" => Kind::S3,
            "gs" => Kind::Gcs,
            "az" => Kind::Azure,
            _ => Kind::Folder,
        };
        if kind == Kind::Folder {
            return Self { kind, bucket: String::new(), prefix: format!("{rest}/{run}") };
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = if prefix.is_empty() { run.into() } else { format!("{prefix}/{run}") };
        Self { kind, bucket: bucket.into(), prefix }
    }

    /// The folder that a `file://` mirror of every run is in: it has to be there.
    pub(super) fn folder(&self) -> PathBuf {
        let path = PathBuf::from(&self.prefix);
        path.parent().map_or(path.clone(), Into::into)
    }

    /// What access depends on, for an error's fix.
    pub(super) fn access(&self) -> &'static str {
        match self.kind {
            Kind::S3 => {
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL (and AWS_ALLOW_HTTP=true for http://)"
            }
            Kind::Gcs => "GOOGLE_SERVICE_ACCOUNT",
            Kind::Azure => "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
            Kind::Folder => "the folder",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, bucket, prefix } = self;
        match kind {
            Kind::S3 => write!(f, "s3://{bucket}/{prefix}"),
            Kind::Gcs => write!(f, "gs://{bucket}/{prefix}"),
            Kind::Azure => write!(f, "az://{bucket}/{prefix}"),
            Kind::Folder => write!(f, "file://{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_a_folder_of_its_own_and_is_named_as_the_config_does() {
        for (url, bucket, prefix) in [
            ("s3://b/p/q/", "b", "p/q/a"),
            ("gs://b", "b", "a"),
            ("az://box/p", "box", "p/a"),
            ("file:///mnt/runs", "", "/mnt/runs/a"),
        ] {
            let place = Place::new(url, "a");
            assert_eq!((place.bucket.as_str(), place.prefix.as_str()), (bucket, prefix), "{url}");
            assert_eq!(place.to_string(), format!("{}/a", url.trim_end_matches('/')));
        }
        assert_eq!(Place::new("file:///mnt/runs", "a").folder(), PathBuf::from("/mnt/runs"));
    }
}
