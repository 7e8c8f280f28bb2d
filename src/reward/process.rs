//! One started program: questions in, answers out, and its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::Fault;
use super::guard::Guard;
use super::question::{Answer, read, shortened};
use super::stderr::LastLines;
use crate::task::ProgramReward;

/// Bytes of an answer.
const MOST_BYTES: u64 = 1 << 16;
/// Lines that are read ahead.
const AHEAD: usize = 64;
/// Between two looks at whether the answer is still wanted.
const LOOK: Duration = Duration::from_millis(50);
/// For a program whose input has ended to end by itself.
const GRACE: Duration = Duration::from_secs(2);

const FIX: &str = "Print {\"id\": ID, \"reward\": NUMBER} once for every line that comes in, with its id, and flush it; anything else \
                   belongs on stderr (docs/rewards.md)";
const CORRECT: &str = "Correct the program; its command can be tried by hand with one line (docs/rewards.md)";

pub(super) struct Process {
    child: Child,
    /// Ends the group once it is dropped.
    guard: Option<Guard>,
    questions: Option<Sender<String>>,
    lines: Receiver<Line>,
    stderr: LastLines,
    has_answered: bool,
    timeout: Duration,
    start_timeout: Duration,
}

enum Line {
    Text(Vec<u8>),
    TooLong,
}

/// Who is to blame, by its place among the questions, and for what.
pub(super) struct Failure {
    pub(super) blamed: usize,
    pub(super) fault: Fault,
    /// It ended or said nothing: another process may do better. What is said wrongly is said.
    pub(super) may_pass: bool,
}

impl Process {
    pub(super) fn start(spec: &ProgramReward) -> Result<Self, Fault> {
        let cannot = |what: &str, error: std::io::Error| {
            Fault {
            problem: format!("{what} cannot be started in {}: {error}", spec.folder.display()),
            fix: "Give a command that is there; a name without a slash is looked for in PATH, any other from the task file's folder"
                .into(),
        }
        };
        if cfg!(not(unix)) {
            let error = std::io::Error::other("programs as rewards need process groups, as Unix has them");
            return Err(cannot("it", error));
        }
        let guard = Guard::start().map_err(|error| cannot("the shell that would end `it` with us", error))?;
        let mut command = Command::new(spec.executable());
        command.args(spec.command.iter().skip(1)).current_dir(&spec.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        guard.take_in(&mut command);
        let name = format!("`{}`", spec.line());
        let mut child = command.spawn().map_err(|error| cannot(&name, error))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(cannot(&name, std::io::Error::other("it has no pipes")));
        };
        let threads = || Ok((writer(stdin)?, reader(stdout)?, LastLines::of(stderr)?));
        let (questions, lines, stderr) = threads().map_err(|error| cannot(&name, error))?;
        let (timeout, start_timeout) = (spec.timeout, spec.start_timeout);
        let (guard, questions) = (Some(guard), Some(questions));
        Ok(Self { child, guard, questions, lines, stderr, has_answered: false, timeout, start_timeout })
    }

    /// Asks `questions`, id and line each, all at once; `heard` gets the answers by place as they come.
    ///
    /// # Errors
    /// The first fault, after which the process is of no use. `None`: the answers are not wanted any more.
    pub(super) fn ask(
        &mut self,
        questions: &[(&str, &str)],
        cancelled: &AtomicBool,
        heard: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Option<Failure>> {
        let mut open: Vec<usize> = (0..questions.len()).collect();
        let all = questions.iter().map(|(_, line)| *line).collect::<String>();
        if let Some(sender) = &self.questions {
            // One that reads no more says so by its silence or its end.
            let _ = sender.send(all);
        }
        let mut since = Instant::now();
        while let Some(first) = open.first().copied() {
            let fail = |blamed, problem, may_pass, fix: &str| {
                Some(Failure { blamed, fault: Fault { problem, fix: fix.into() }, may_pass })
            };
            let most = if self.has_answered { self.timeout } else { self.start_timeout };
            let left = most.saturating_sub(since.elapsed());
            let line = match self.lines.recv_timeout(left.min(LOOK)) {
                Ok(Line::Text(line)) => line,
                Ok(Line::TooLong) => {
                    let problem = format!("it printed a line of more than {MOST_BYTES} bytes");
                    return Err(fail(first, problem, false, FIX));
                }
                Err(_) if cancelled.load(Ordering::Relaxed) => return Err(None),
                Err(RecvTimeoutError::Timeout) if left > LOOK => continue,
                Err(RecvTimeoutError::Timeout) => {
                    let (seconds, key) = (
                        most.as_secs_f64(),
                        if self.has_answered { "timeout_seconds" } else { "start_timeout_seconds" },
                    );
                    let problem = format!("it did not answer within {seconds} s ({key})");
                    let fix = format!(
                        "Make it answer sooner, or raise {key}; an answer that is printed has to be flushed"
                    );
                    return Err(fail(first, problem, true, &fix));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let problem = match self.status_within(Duration::from_secs(1)) {
                        Some(status) => format!("it ended ({status}) before it answered"),
                        None => "it closed its output before it answered".into(),
                    };
                    return Err(fail(first, problem, true, CORRECT));
                }
            };
            let (id, answer) = match read(&String::from_utf8_lossy(&line)) {
                Ok(read) => read,
                Err((id, problem)) => {
                    let blamed = open.iter().copied().find(|at| Some(questions[*at].0) == id.as_deref());
                    return Err(fail(blamed.unwrap_or(first), problem, false, FIX));
                }
            };
            let Some(place) = open.iter().position(|at| questions[*at].0 == id) else {
                let problem = format!(
                    "it printed an answer to `{}`, which was not asked, or answered before",
                    shortened(&id)
                );
                return Err(fail(first, problem, false, FIX));
            };
            self.has_answered = true;
            since = Instant::now();
            heard(open.remove(place), answer);
        }
        Ok(())
    }

    /// Ends the process and all of its group, and adds its last words to what it did.
    pub(super) fn end(mut self, fault: Fault) -> Fault {
        self.kill();
        Fault { problem: format!("{}; {}", fault.problem, self.stderr.text()), ..fault }
    }

    /// Closes its input and gives it time to end.
    ///
    /// # Errors
    /// It printed more than it was asked for.
    pub(super) fn finish(mut self) -> Result<(), Fault> {
        self.questions = None;
        let begun = Instant::now();
        let extra = match self.lines.recv_timeout(GRACE) {
            Ok(Line::Text(line)) => Some(shortened(&String::from_utf8_lossy(&line))),
            Ok(Line::TooLong) => Some("...".into()),
            Err(_) => None,
        };
        self.status_within(GRACE.saturating_sub(begun.elapsed()));
        self.kill();
        match extra {
            None => Ok(()),
            Some(line) => {
                let problem = format!("it printed `{line}`, which nobody had asked for");
                Err(Fault { problem: format!("{problem}; {}", self.stderr.text()), fix: FIX.into() })
            }
        }
    }

    fn status_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if begun.elapsed() < time => std::thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }

    fn kill(&mut self) {
        self.questions = None;
        let _ = self.child.kill();
        self.guard = None;
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes what it is sent: a program that does not read holds up this thread only.
fn writer(mut stdin: ChildStdin) -> std::io::Result<Sender<String>> {
    let (sender, questions) = channel::<String>();
    std::thread::Builder::new().name("rlvr-reward".into()).spawn(move || {
        for text in questions {
            if stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                return;
            }
        }
    })?;
    Ok(sender)
}

fn reader(stdout: ChildStdout) -> std::io::Result<Receiver<Line>> {
    let (sender, lines) = sync_channel(AHEAD);
    std::thread::Builder::new().name("rlvr-reward".into()).spawn(move || {
        let mut stdout = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            let read = (&mut stdout).take(MOST_BYTES + 1).read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) | Err(_) => return,
                Ok(_) if line.len() as u64 > MOST_BYTES => Line::TooLong,
                Ok(_) => Line::Text(line),
            };
            let is_last = matches!(line, Line::TooLong);
            if sender.send(line).is_err() || is_last {
                return;
            }
        }
    })?;
    Ok(lines)
}
