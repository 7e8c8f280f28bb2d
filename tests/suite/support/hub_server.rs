//! A hub on this machine, with the routes and headers of the real one. Bytes of large files come from another host name.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub host: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// What the hub does beyond serving.
#[derive(Default)]
pub struct Manners {
    /// Answer everything on the hub with this status and X-Error-Code.
    pub refuse: Option<(u16, &'static str)>,
    /// Close the connection after so many bytes of a large file's body, once for each number.
    pub cuts: VecDeque<usize>,
    pub ignores_range: bool,
    /// Send the first byte of large files wrong.
    pub corrupts: bool,
    /// Redirect this repository to the one that is served.
    pub renamed_from: Option<&'static str>,
}

pub struct Server {
    port: u16,
    state: Arc<State>,
}

struct State {
    id: String,
    /// `models` or `datasets`, in the addresses of the interface.
    kind: &'static str,
    port: u16,
    files: BTreeMap<String, Vec<u8>>,
    manners: Mutex<Manners>,
    seen: Mutex<Vec<Seen>>,
}

impl Server {
    /// Serves one repository. Files that end in .safetensors or .parquet are large: they have a SHA-256 and lie elsewhere.
    pub fn start(id: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::of("models", id, files)
    }

    /// Serves one data set.
    pub fn of_data(id: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::of("datasets", id, files)
    }

    fn of(kind: &'static str, id: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state =
            State { id: id.into(), kind, port, files, manners: Mutex::default(), seen: Mutex::default() };
        let state = Arc::new(state);
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                // A client that hangs up is the client's business.
                std::thread::spawn(move || state.answer(stream));
            }
        });
        Self { port, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn file(&self, name: &str) -> &[u8] {
        &self.state.files[name]
    }

    pub fn behave(&self, manners: Manners) {
        *self.state.manners.lock().unwrap() = manners;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.state.seen.lock().unwrap())
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    fn answer(&self, stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
        let first = lines.next()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
        let headers: BTreeMap<String, String> = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_string())))
            .collect();
        let seen = Seen {
            method,
            host: headers.get("host").cloned().unwrap_or_default(),
            path,
            range: headers.get("range").cloned(),
            authorization: headers.get("authorization").cloned(),
        };
        self.seen.lock().unwrap().push(seen.clone());
        self.respond(&seen, stream)
    }

    fn respond(&self, seen: &Seen, stream: TcpStream) -> Option<()> {
        let mut manners = self.manners.lock().unwrap();
        if let Some(hash) = seen.path.strip_prefix("/cdn/") {
            let file = self.files.values().find(|bytes| sha256(bytes) == hash)?;
            return self.large(file, seen, &mut manners, stream);
        }
        if let Some((status, code)) = manners.refuse {
            return send(stream, status, &[("X-Error-Code", code)], b"{}");
        }
        if let Some(old) = manners.renamed_from.filter(|old| seen.path.contains(old)) {
            let to = seen.path.replace(old, &self.id);
            return send(stream, 307, &[("Location", &to)], b"");
        }
        if let Some(rest) = seen.path.strip_prefix(&format!("/api/{}/{}/revision/", self.kind, self.id)) {
            if !["main", "refs%2Fpr%2F1", COMMIT].contains(&rest) {
                return send(stream, 404, &[("X-Error-Code", "RevisionNotFound")], b"{}");
            }
            let files: Vec<_> = self.files.keys().map(|name| json!({"rfilename": name})).collect();
            let body = json!({"id": self.id, "sha": COMMIT, "siblings": files}).to_string();
            return send(stream, 200, &[("Content-Type", "application/json")], body.as_bytes());
        }
        let section = if self.kind == "datasets" { "datasets/" } else { "" };
        let name = seen.path.strip_prefix(&format!("/{section}{}/resolve/{COMMIT}/", self.id));
        let name = name.map(|name| name.replace("%20", " "));
        let Some((name, file)) = name.and_then(|name| Some((name.clone(), self.files.get(&name)?))) else {
            return send(stream, 404, &[("X-Error-Code", "RepoNotFound")], b"{}");
        };
        let (hash, size) = (sha256(file), file.len().to_string());
        let mut headers = vec![("X-Repo-Commit", COMMIT)];
        let is_large = name.ends_with(".safetensors") || name.ends_with(".parquet");
        let quoted = format!("\"{}\"", if is_large { &hash } else { &hash[..40] });
        if is_large {
            let location = format!("http://localhost:{}/cdn/{hash}", self.port);
            headers.extend([
                ("X-Linked-Etag", quoted.as_str()),
                ("X-Linked-Size", &size),
                ("Location", &location),
            ]);
            return send(stream, 302, &headers, b"");
        }
        headers.push(("ETag", &quoted));
        if seen.method == "HEAD" {
            headers.push(("Content-Length", &size));
            return send(stream, 200, &headers, b"");
        }
        send(stream, 200, &headers, file)
    }

    fn large(&self, file: &[u8], seen: &Seen, manners: &mut Manners, mut stream: TcpStream) -> Option<()> {
        let range = seen.range.as_ref().filter(|_| !manners.ignores_range);
        let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let start: usize = start.unwrap_or(0);
        let mut body = file[start..].to_vec();
        if manners.corrupts && start == 0 {
            body[0] ^= 1;
        }
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let content_range = format!("bytes {start}-{}/{}", file.len() - 1, file.len());
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())
            .ok()?;
        if range.is_some() {
            write!(stream, "Content-Range: {content_range}\r\n").ok()?;
        }
        stream.write_all(b"\r\n").ok()?;
        if let Some(cut) = manners.cuts.pop_front() {
            body.truncate(cut);
        }
        stream.write_all(&body).ok()
    }
}

fn send(mut stream: TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Option<()> {
    write!(stream, "HTTP/1.1 {status} Some words\r\nConnection: close\r\n").ok()?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n").ok()?;
    }
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        write!(stream, "Content-Length: {}\r\n", body.len()).ok()?;
    }
    stream.write_all(b"\r\n").ok()?;
    stream.write_all(body).ok()
}
