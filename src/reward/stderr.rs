//! What a program says on stderr: read to its end, so that it never waits, and the last of it kept for an error.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::ChildStderr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::question::shortened;

const LINES: usize = 5;
/// Bytes of a line that are kept.
const LINE: u64 = 4096;

pub(super) struct LastLines {
    lines: Arc<Mutex<VecDeque<String>>>,
    /// Hears nothing, and of the end.
    read: Receiver<()>,
}

impl LastLines {
    pub(super) fn of(stderr: ChildStderr) -> std::io::Result<Self> {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let (kept, (done, read)) = (Arc::clone(&lines), channel());
        std::thread::Builder::new().name("rlvr-reward".into()).spawn(move || {
            let _done = done;
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut stderr).take(LINE).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {
                        let text = shortened(&String::from_utf8_lossy(&line));
                        if text.is_empty() {
                            continue;
                        }
                        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                        kept.push_back(text);
                        if kept.len() > LINES {
                            kept.pop_front();
                        }
                    }
                }
            }
        })?;
        Ok(Self { lines, read })
    }

    /// Of a process that has ended. A child of it that left its group may hold stderr open: that is not waited for.
    pub(super) fn text(&self) -> String {
        let _ = self.read.recv_timeout(Duration::from_secs(1));
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match lines.is_empty() {
            true => "it said nothing on stderr".into(),
            false => format!("its last words on stderr: {}", Vec::from(lines.clone()).join(" | ")),
        }
    }
}
