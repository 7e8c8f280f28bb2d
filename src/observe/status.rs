//! Where a run is, for those who watch it from outside: over HTTP, and in a file.
//!
//! The server answers one request at a time on a thread of its own, reads no more than [`MOST_BYTES`] of it, and waits for nobody longer than
//! [`PATIENCE`]: however it is asked, a run goes on.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Event, Metrics, Sink};
use crate::disk::create_aside;
use crate::error::{Error, Result};

const MOST_BYTES: u64 = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// Least time between two heartbeats of one phase.
const BEAT: Duration = Duration::from_secs(5);

/// How far a run is.
struct State {
    /// "starting", a stage's name, what [`super::Work`] or [`Event::Phase`] is at, "done".
    phase: String,
    /// When the phase began, and when anything was last heard.
    since: Instant,
    heard: Instant,
    stage: String,
    /// Of the stage.
    step: u64,
    steps: u64,
    /// Optimiser steps of the run in its last checkpoint.
    checkpoint: Option<u64>,
    /// The newest value of each.
    metrics: Metrics,
}

impl State {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            phase: "starting".into(),
            since: now,
            heard: now,
            stage: String::new(),
            step: 0,
            steps: 0,
            checkpoint: None,
            metrics: Metrics::default(),
        }
    }

    fn enter(&mut self, phase: &str) {
        if self.phase != phase {
            (self.phase, self.since) = (phase.into(), Instant::now());
        }
    }

    fn hear(&mut self, event: &Event) {
        self.heard = Instant::now();
        match event {
            Event::StageStarted { stage, steps, done, .. } => {
                (self.stage, self.step, self.steps) = (stage.clone(), *done, *steps);
                self.enter(stage);
            }
            Event::Step { stage, step, metrics } => {
                self.step = *step;
                self.metrics.extend(metrics.iter());
                self.enter(stage);
            }
            Event::Evaluation { metrics, .. } => self.metrics.extend(metrics.iter()),
            Event::StepStarted { stage, .. } => self.enter(stage),
            Event::Work(work) => self.enter(&work.what),
            Event::Phase { what } => self.enter(what),
            Event::Checkpoint { step, .. } => self.checkpoint = Some(*step),
            Event::Finished { .. } => self.enter("done"),
            _ => {}
        }
    }

    fn json(&self) -> Value {
        json!({
            "phase": self.phase, "seconds_in_phase": self.since.elapsed().as_secs_f64(),
            "seconds_since_event": self.heard.elapsed().as_secs_f64(), "stage": self.stage, "step": self.step,
            "steps": self.steps, "checkpoint": self.checkpoint,
        })
    }

    /// Prometheus' text form. A name is that of metrics.jsonl with `_` for what a name may not have.
    fn prometheus(&self) -> String {
        let own = [
            ("step", self.step as f64),
            ("steps", self.steps as f64),
            ("seconds_in_phase", self.since.elapsed().as_secs_f64()),
            ("seconds_since_event", self.heard.elapsed().as_secs_f64()),
        ];
        let mut text = String::new();
        for (name, value) in own.into_iter().chain(self.metrics.iter()) {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let family = format!("rlvr_{}", name.chars().map(plain).collect::<String>());
            let value = match value {
                f64::INFINITY => "+Inf".into(),
                f64::NEG_INFINITY => "-Inf".into(),
                value => value.to_string(),
            };
            let help = name.replace('\\', "\\\\").replace('\n', "\\n");
            let _ = write!(text, "# HELP {family} {help}\n# TYPE {family} gauge\n{family} {value}\n");
        }
        text
    }
}

/// The sink behind `run.status` and `run.heartbeat`.
pub struct Status {
    state: Arc<Mutex<State>>,
    server: Option<Server>,
    heartbeat: Option<PathBuf>,
    beat: Option<(Instant, String)>,
}

/// Ends its thread when dropped.
struct Server {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Status {
    /// `listen`: the address of `run.status`; `heartbeat`: the file that is replaced.
    ///
    /// # Errors
    /// The address is none, or is in use.
    pub fn new(listen: Option<&str>, heartbeat: Option<PathBuf>) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::new()));
        let server = listen.map(|address| Server::start(address, Arc::clone(&state))).transpose()?;
        Ok(Self { state, server, heartbeat, beat: None })
    }

    /// Where the server listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.address)
    }
}

impl Sink for Status {
    fn name(&self) -> &str {
        "the heartbeat"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        let (now, phase) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.hear(event);
            (state.json(), state.phase.clone())
        };
        let Some(path) = &self.heartbeat else { return Ok(()) };
        if self.beat.as_ref().is_some_and(|(at, of)| *of == phase && at.elapsed() < BEAT) {
            return Ok(());
        }
        self.beat = Some((Instant::now(), phase));
        let write = || {
            let (aside, mut file) = create_aside(path)?;
            writeln!(file, "{now}")?;
            std::fs::rename(&aside, path)
        };
        write().map_err(Error::io(path, "write the heartbeat"))
    }
}

impl Server {
    fn start(address: &str, state: Arc<Mutex<State>>) -> Result<Self> {
        let refused = |error: std::io::Error| {
            let want = "an address of this machine whose port is free, such as 127.0.0.1:9100";
            Error::config("run.status", format!("\"{address}\""), want, error)
        };
        let listener = TcpListener::bind(address).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away, or sends what is no request, has no answer.
                let _ = stream.and_then(|stream| answer(stream, &state));
            }
        });
        Ok(Self { address, ended })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The thread waits for somebody to come.
        let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let begun = Instant::now();
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => break,
            read => request.extend_from_slice(&part[..read]),
        }
        if request.len() as u64 > MOST_BYTES || begun.elapsed() > PATIENCE {
            return Ok(());
        }
    }
    let line = String::from_utf8_lossy(&request);
    let mut words = line.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (code, kind, body) = {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match (method, path) {
            ("GET", "/healthz") => ("200 OK", "application/json", format!("{}\n", state.json())),
            ("GET", "/metrics") => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", state.prometheus()),
            ("GET", _) => ("404 Not Found", "text/plain", "/healthz or /metrics\n".into()),
            _ => ("405 Method Not Allowed", "text/plain", "GET only\n".into()),
        }
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().into(), body.into())
    }

    fn step(step: u64) -> Event {
        let metrics = [("loss", 0.5), ("verdict/accuracy_strict", 0.25), ("kl", f64::NAN)];
        Event::Step { stage: "grpo".into(), step, metrics: metrics.into_iter().collect() }
    }

    #[test]
    fn a_run_is_asked_for_its_phase_and_its_metrics() {
        let mut status = Status::new(Some("127.0.0.1:0"), None).unwrap();
        let address = status.address().unwrap();
        let health = || serde_json::from_str::<Value>(&get(address, "/healthz").1).unwrap();
        assert_eq!(health()["phase"], "starting");
        status.emit(&Event::StageStarted { stage: "grpo".into(), steps: 20, done: 6, before: 0 }).unwrap();
        status.emit(&step(7)).unwrap();
        status.emit(&Event::Checkpoint { step: 7, path: "a".into() }).unwrap();
        let now = health();
        assert_eq!((&now["phase"], &now["step"], &now["steps"]), (&"grpo".into(), &7.into(), &20.into()));
        assert_eq!(now["checkpoint"], 7);
        assert!(now["seconds_in_phase"].as_f64() >= Some(0.0));
        let (code, metrics) = get(address, "/metrics?x");
        assert!(code.contains("200") && metrics.contains("\nrlvr_loss 0.5\n"), "{code} {metrics}");
        assert!(
            metrics.contains("# HELP rlvr_verdict_accuracy_strict verdict/accuracy_strict\n"),
            "{metrics}"
        );
        assert!(metrics.contains("\nrlvr_kl NaN\n") && metrics.contains("\nrlvr_step 7\n"), "{metrics}");
        assert!(get(address, "/").0.contains("404"));
        status.emit(&Event::work("evaluating grpo 7".into(), "rows", 0, 8, Instant::now())).unwrap();
        assert_eq!(health()["phase"], "evaluating grpo 7");
    }

    #[test]
    fn a_port_in_use_is_refused_and_one_that_was_given_back_is_not() {
        let first = Status::new(Some("127.0.0.1:0"), None).unwrap();
        let address = first.address().unwrap().to_string();
        let error = Status::new(Some(&address), None).err().unwrap();
        assert!(error.is_input() && error.to_string().contains("whose port is free"), "{error}");
        assert!(Status::new(Some("nowhere"), None).is_err());
    }

    #[test]
    fn clients_that_send_nonsense_or_too_much_get_nothing_and_the_next_one_is_answered() {
        let status = Status::new(Some("127.0.0.1:0"), None).unwrap();
        let address = status.address().unwrap();
        for sent in [vec![0xff; 100], vec![b'a'; 100_000]] {
            let mut stream = TcpStream::connect(address).unwrap();
            // The server may hang up before all is sent.
            let _ = stream.write_all(&sent).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
            let _ = stream.read_to_end(&mut Vec::new());
        }
        drop(TcpStream::connect(address).unwrap());
        assert!(get(address, "/healthz").0.contains("200"));
    }

    #[test]
    fn a_heartbeat_is_one_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heartbeat.json");
        let mut status = Status::new(None, Some(path.clone())).unwrap();
        status.emit(&step(1)).unwrap();
        let beat = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((&beat()["phase"], &beat()["step"]), (&"grpo".into(), &1.into()));
        // Not every step of a fast run, but every phase.
        status.emit(&step(2)).unwrap();
        status.emit(&Event::Finished { rows: Vec::new(), run: "a".into(), chosen: None }).unwrap();
        assert_eq!((&beat()["phase"], &beat()["step"]), (&"done".into(), &2.into()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let mut lost = Status::new(None, Some(folder.path().join("gone/heartbeat.json"))).unwrap();
        assert!(lost.emit(&step(1)).unwrap_err().to_string().contains("heartbeat"));
    }
}
