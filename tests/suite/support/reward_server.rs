//! An address that judges completions, or behaves badly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

pub enum Reply {
    /// Status, further headers, body.
    Whole(u16, Vec<(String, String)>, Vec<u8>),
    /// So many bytes are promised, and the body is what comes.
    Cut(usize, Vec<u8>),
    /// Nothing, until the client hangs up.
    Silence,
}

impl Reply {
    /// What a good one says: the number, with the id that came.
    pub fn reward(asked: &Asked, reward: f64) -> Self {
        let body = serde_json::json!({"id": asked.body["id"], "reward": reward}).to_string();
        Self::Whole(200, Vec::new(), body.into_bytes())
    }

    pub fn status(status: u16, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Self::Whole(status, headers.collect(), Vec::new())
    }
}

pub struct RewardServer {
    port: u16,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl RewardServer {
    /// `reply` is given each request and the number of those before it.
    pub fn start(reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, seen) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let (reply, kept) = (Arc::new(reply), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (reply, kept) = (Arc::clone(&reply), Arc::clone(&kept));
                // A client that hangs up is the client's business.
                std::thread::spawn(move || answer(stream.ok()?, &kept, &*reply));
            }
        });
        Self { port, seen }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/judge", self.port)
    }

    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Asked>>,
    reply: &dyn Fn(&Asked, usize) -> Reply,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    assert!(first.starts_with("POST /judge "), "{first}");
    let asked = Asked { headers, body: serde_json::from_slice(&body).unwrap() };
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(asked.clone());
        seen.len() - 1
    };
    let (status, headers, length, body) = match reply(&asked, before) {
        Reply::Whole(status, headers, body) => (status, headers, body.len(), body),
        Reply::Cut(promised, body) => (200, Vec::new(), promised, body),
        Reply::Silence => {
            let _ = reader.read(&mut [0]);
            return None;
        }
    };
    write!(stream, "HTTP/1.1 {status} Some words\r\nConnection: close\r\nContent-Length: {length}\r\n")
        .ok()?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n").ok()?;
    }
    stream.write_all(b"\r\n").ok()?;
    stream.write_all(&body).ok()
}
