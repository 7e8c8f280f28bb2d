//! Where the hub and its cache are, as the environment says.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::Cache;

const PUBLIC: &str = "https://huggingface.co";

/// The hub as this process uses it.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Without a slash at the end.
    pub endpoint: String,
    pub cache: Cache,
    pub token: Option<Token>,
    /// Only the cache is used.
    pub offline: bool,
    /// Tries in a row that bring nothing before a download is given up.
    pub tries: u32,
    /// Wait before the second try; doubles with each further one.
    pub wait: Duration,
}

/// What a repository that is gated or private asks for.
#[derive(Clone)]
pub struct Token {
    pub value: String,
    /// The variable or file it was read from.
    pub origin: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token from {}", self.origin)
    }
}

impl Hub {
    /// Reads HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH and HF_HUB_OFFLINE, which mean here what they
    /// mean to the Python client.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let base = || {
            let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let base = base.or_else(|| Some(std::env::home_dir()?.join(".cache")));
            base.unwrap_or_else(|| ".cache".into()).join("huggingface")
        };
        let home = variable("HF_HOME").map_or_else(base, PathBuf::from);
        let cache = variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| PUBLIC.into());
        let from_variable =
            || Some(Token { value: variable("HF_TOKEN")?.trim().into(), origin: "HF_TOKEN".into() });
        let from_file = || {
            let file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            let value = std::fs::read_to_string(&file).ok()?.trim().to_string();
            (!value.is_empty()).then(|| Token { value, origin: file.display().to_string() })
        };
        Self {
            token: from_variable().or_else(from_file),
            endpoint: endpoint.trim_end_matches('/').into(),
            offline: variable("HF_HUB_OFFLINE")
                .is_some_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")),
            cache: Cache::new(cache),
            tries: 5,
            wait: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with(variables: &[(&str, &str)]) -> Hub {
        Hub::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_variables_of_the_python_client_mean_the_same() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(home.path().join("other"), "hf_other").unwrap();
        let other = home.path().join("other");

        let hub =
            with(&[("HF_HOME", dir), ("HF_ENDPOINT", "http://localhost:1/"), ("HF_HUB_OFFLINE", "true")]);
        assert_eq!(hub.cache.path(), &home.path().join("hub"));
        assert_eq!((hub.endpoint.as_str(), hub.offline), ("http://localhost:1", true));
        assert_eq!(hub.token.unwrap().value, "hf_file");

        let hub = with(&[("HF_HOME", dir), ("HF_TOKEN", "hf_variable"), ("HF_HUB_CACHE", "elsewhere")]);
        assert_eq!(hub.cache.path(), Path::new("elsewhere"));
        assert_eq!((hub.endpoint.as_str(), hub.offline), (PUBLIC, false));
        assert!(!format!("{:?}", hub.token).contains("hf_variable"));
        assert_eq!(hub.token.unwrap().value, "hf_variable");

        let hub = with(&[("XDG_CACHE_HOME", dir), ("HF_TOKEN_PATH", other.to_str().unwrap())]);
        assert_eq!(hub.cache.path(), &home.path().join("huggingface/hub"));
        assert_eq!(hub.token.unwrap().value, "hf_other");
    }
}
