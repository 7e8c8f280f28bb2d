//! Between a program and a server: passes requests on, or has something go wrong with them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::wire::{Request, read_request};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The connection is closed before anything is read.
    Refused,
    /// The server never hears of it.
    Busy,
    /// It is done, and the answer says that it failed.
    DoneAndFailed,
    /// It is done, and nothing is answered.
    DoneAndSilent,
    /// The answer breaks off in the middle.
    CutAnswer,
    /// A byte of an answer's body is another.
    Damaged,
    /// The answer trickles.
    Slow,
    /// Nothing comes for longer than the program waits.
    Timeout,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Busy,
        Self::DoneAndFailed,
        Self::DoneAndSilent,
        Self::CutAnswer,
        Self::Damaged,
        Self::Slow,
        Self::Timeout,
    ];
}

/// Decides by the number of the request, from 0.
type Plan = dyn Fn(usize, &Request) -> Option<Fault> + Send;

pub struct FaultProxy {
    port: u16,
    plan: Arc<Mutex<Box<Plan>>>,
    requests: Arc<AtomicUsize>,
    happened: Arc<Mutex<Vec<Fault>>>,
}

impl FaultProxy {
    /// `server`: its address. `patience`: how long the program waits for an answer.
    pub fn start(server: &str, patience: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan: Arc<Mutex<Box<Plan>>> = Arc::new(Mutex::new(Box::new(|_, _| None)));
        let (requests, happened) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let proxy = Self {
            port,
            plan: Arc::clone(&plan),
            requests: Arc::clone(&requests),
            happened: Arc::clone(&happened),
        };
        let server = server.to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, server) = (stream.unwrap(), server.clone());
                let (plan, requests, happened) =
                    (Arc::clone(&plan), Arc::clone(&requests), Arc::clone(&happened));
                std::thread::spawn(move || {
                    let request = read_request(&stream)?;
                    let at = requests.fetch_add(1, Ordering::SeqCst);
                    let fault = plan.lock().unwrap()(at, &request);
                    happened.lock().unwrap().extend(fault);
                    pass(stream, &request, &server, fault, patience)
                });
            }
        });
        proxy
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn plan(&self, plan: impl Fn(usize, &Request) -> Option<Fault> + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn happened(&self) -> Vec<Fault> {
        self.happened.lock().unwrap().clone()
    }
}

fn pass(
    mut stream: TcpStream,
    request: &Request,
    server: &str,
    fault: Option<Fault>,
    patience: Duration,
) -> Option<()> {
    match fault {
        Some(Fault::Refused) => return None,
        Some(Fault::Busy) => return busy(&mut stream),
        Some(Fault::Timeout) => {
            std::thread::sleep(2 * patience);
            return None;
        }
        _ => {}
    }
    let mut answer = ask(request, server)?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match fault {
        Some(Fault::DoneAndFailed) => busy(&mut stream),
        Some(Fault::DoneAndSilent) => None,
        Some(Fault::CutAnswer) => {
            let cut = if body < answer.len() { (body + answer.len()) / 2 } else { body / 2 };
            stream.write_all(&answer[..cut]).ok()
        }
        Some(Fault::Damaged) => {
            if let Some(byte) = answer[body..].last_mut() {
                *byte ^= 1;
            }
            stream.write_all(&answer).ok()
        }
        Some(Fault::Slow) => {
            for piece in answer.chunks(answer.len().div_ceil(5).max(1)) {
                stream.write_all(piece).ok()?;
                std::thread::sleep(patience / 20);
            }
            Some(())
        }
        _ => stream.write_all(&answer).ok(),
    }
}

fn busy(stream: &mut TcpStream) -> Option<()> {
    let body = "<Error><Code>InternalError</Code></Error>";
    write!(stream, "HTTP/1.1 500 Busy\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .ok()
}

fn ask(request: &Request, server: &str) -> Option<Vec<u8>> {
    let mut there = TcpStream::connect(server).ok()?;
    write!(there, "{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.target).ok()?;
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
        write!(there, "{name}: {value}\r\n").ok()?;
    }
    there.write_all(b"\r\n").ok()?;
    there.write_all(&request.body).ok()?;
    let mut answer = Vec::new();
    there.read_to_end(&mut answer).ok()?;
    Some(answer)
}
