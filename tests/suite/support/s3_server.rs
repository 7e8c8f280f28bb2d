//! An S3 server on loopback: what object_store asks of one, with conditional writes that are atomic.
//!
//! Not the crate s3s-fs, which looks and then writes: of two conditional writes at once both may win there. `scripts/node/try-mirror.sh` tries
//! the same tests with moto's server as well.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::hub_server::sha256;
use super::wire::{Request, read_request};

#[derive(Clone)]
pub struct Object {
    pub bytes: Vec<u8>,
    modified: Timestamp,
}

impl Object {
    fn tag(&self) -> String {
        format!("\"{}\"", &sha256(&self.bytes)[..32])
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    count: u64,
    /// How far the clock is ahead.
    ahead: SignedDuration,
    /// Of parts that were put together.
    multipart: usize,
}

/// One bucket, `bucket`, and one key that may write there, `key`.
#[derive(Clone)]
pub struct S3Server {
    port: u16,
    began: Instant,
    state: Arc<Mutex<State>>,
}

/// What time its clock has when it starts, seconds since 1970: it runs as any clock, and knows nothing of the machine's.
const BEGAN: i64 = 1_700_000_000;

impl S3Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, began: Instant::now(), state: Arc::default() };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, server) = (stream.unwrap(), serving.clone());
                std::thread::spawn(move || {
                    let request = read_request(&stream)?;
                    let answer = server.answer(&request);
                    answer.send(&mut stream, request.method == "HEAD")
                });
            }
        });
        server
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn set_ahead(&self, hours: i64) {
        self.state().ahead = SignedDuration::from_hours(hours);
    }

    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.state().objects.get(key).map(|object| object.bytes.clone())
    }

    /// Changes the object, behind everybody's back.
    pub fn edit(&self, key: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(&mut self.state().objects.get_mut(key).unwrap().bytes);
    }

    pub fn remove(&self, key: &str) {
        self.state().objects.remove(key).unwrap();
    }

    /// Objects that came in parts.
    pub fn multipart(&self) -> usize {
        self.state().multipart
    }

    fn answer(&self, request: &Request) -> Answer {
        let mut state = self.state();
        let signed = request
            .header("authorization")
            .is_some_and(|by| by.starts_with("AWS4-HMAC-SHA256 Credential=key/"));
        if !signed {
            return Answer::error(403, "InvalidAccessKeyId");
        }
        let Some(key) =
            request.path().strip_prefix("/bucket").map(|rest| rest.trim_start_matches('/').to_string())
        else {
            return Answer::error(404, "NoSuchBucket");
        };
        let now = Timestamp::from_second(BEGAN).unwrap() + self.began.elapsed() + state.ahead;
        match (request.method.as_str(), request.query("uploadId"), request.query("partNumber")) {
            ("PUT", Some(upload), Some(part)) => {
                let Some(parts) = state.uploads.get_mut(&upload) else {
                    return Answer::error(404, "NoSuchUpload");
                };
                parts.insert(part.parse().unwrap(), request.body.clone());
                Answer::new(200).with("ETag", &format!("\"{part}\""))
            }
            ("POST", Some(upload), _) => {
                let Some(parts) = state.uploads.remove(&upload) else {
                    return Answer::error(404, "NoSuchUpload");
                };
                let bytes = parts.into_values().flatten().collect();
                let object = Object { bytes, modified: now };
                let tag = object.tag();
                state.objects.insert(key, object);
                state.multipart += 1;
                Answer::xml(&format!(
                    "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
                ))
            }
            ("DELETE", Some(upload), _) => {
                state.uploads.remove(&upload);
                Answer::new(204)
            }
            ("POST", None, _) if request.query("uploads").is_some() => {
                state.count += 1;
                let id = format!("upload-{}", state.count);
                state.uploads.insert(id.clone(), BTreeMap::new());
                Answer::xml(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            ("POST", None, _) if request.query("delete").is_some() => {
                let text = String::from_utf8_lossy(&request.body).into_owned();
                let keys: Vec<&str> =
                    text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()).collect();
                let deleted = |key: &&str| format!("<Deleted><Key>{key}</Key></Deleted>");
                let deleted: String = keys.iter().map(deleted).collect();
                keys.iter().for_each(|key| drop(state.objects.remove(*key)));
                Answer::xml(&format!("<DeleteResult>{deleted}</DeleteResult>"))
            }
            ("PUT", None, _) => state.put(key, request, now),
            ("DELETE", None, _) => {
                state.objects.remove(&key);
                Answer::new(204)
            }
            ("GET", None, _) if key.is_empty() => state.list(request),
            ("GET" | "HEAD", None, _) => match state.objects.get(&key) {
                Some(object) => object.answer(request),
                None => Answer::error(404, "NoSuchKey"),
            },
            _ => Answer::error(501, "NotImplemented"),
        }
    }
}

impl State {
    fn put(&mut self, key: String, request: &Request, now: Timestamp) -> Answer {
        let there = self.objects.get(&key);
        let (absent, same) = (request.header("if-none-match"), request.header("if-match"));
        if absent.is_some() && there.is_some() {
            return Answer::error(412, "PreconditionFailed");
        }
        if let Some(tag) = same {
            match there {
                None => return Answer::error(404, "NoSuchKey"),
                Some(object) if object.tag() != tag => return Answer::error(412, "PreconditionFailed"),
                Some(_) => {}
            }
        }
        let object = Object { bytes: request.body.clone(), modified: now };
        let tag = object.tag();
        self.objects.insert(key, object);
        Answer::new(200).with("ETag", &tag)
    }

    fn list(&self, request: &Request) -> Answer {
        let prefix = request.query("prefix").unwrap_or_default();
        let (mut contents, mut folders) = (String::new(), Vec::new());
        for (key, object) in self.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            match key[prefix.len()..].split_once('/') {
                Some((folder, _)) if request.query("delimiter").is_some() => {
                    let folder =
                        format!("<CommonPrefixes><Prefix>{prefix}{folder}/</Prefix></CommonPrefixes>");
                    if !folders.contains(&folder) {
                        folders.push(folder);
                    }
                }
                _ => {
                    let (size, tag) = (object.bytes.len(), object.tag().replace('"', "&quot;"));
                    contents += &format!(
                        "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>",
                        object.modified
                    );
                }
            }
        }
        let folders = folders.concat();
        Answer::xml(&format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{folders}</ListBucketResult>"
        ))
    }
}

impl Object {
    fn answer(&self, request: &Request) -> Answer {
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let range =
            range.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?)));
        let modified = self.modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let answer = match range {
            Some((from, to)) => {
                let to = to.min(self.bytes.len().saturating_sub(1));
                let range = format!("bytes {from}-{to}/{}", self.bytes.len());
                Answer { status: 206, headers: Vec::new(), body: self.bytes[from..=to].to_vec() }
                    .with("Content-Range", &range)
            }
            None => Answer { status: 200, headers: Vec::new(), body: self.bytes.clone() },
        };
        answer.with("ETag", &self.tag()).with("Last-Modified", &modified)
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn xml(text: &str) -> Self {
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}").into_bytes();
        Self { body, ..Self::new(200).with("Content-Type", "application/xml") }
    }

    fn error(status: u16, code: &str) -> Self {
        let xml = Self::xml(&format!("<Error><Code>{code}</Code><Message>as said</Message></Error>"));
        Self { status, ..xml }
    }

    fn send(&self, stream: &mut TcpStream, is_head: bool) -> Option<()> {
        write!(stream, "HTTP/1.1 {} Some words\r\nConnection: close\r\n", self.status).ok()?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n").ok()?;
        }
        if self.status != 204 {
            write!(stream, "Content-Length: {}\r\n", self.body.len()).ok()?;
        }
        stream.write_all(b"\r\n").ok()?;
        if is_head { Some(()) } else { stream.write_all(&self.body).ok() }
    }
}
