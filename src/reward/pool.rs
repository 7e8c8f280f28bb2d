//! Questions on their way to whoever answers, and answers put back in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Fault;
use super::endpoint::Endpoint;
use super::process::{Failure, Process};
use super::question::{Answer, Question};
use crate::error::{Error, Result};
use crate::stop;
use crate::task::{HttpReward, ProgramReward};

/// Between two looks at whether a stop was asked for.
const LOOK: Duration = Duration::from_millis(100);

/// Threads that have the questions of one reward answered.
pub(super) struct Pool {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
    /// Whether the threads are waited for at an abrupt end: those that have a process to kill.
    has_processes: bool,
}

type Outcome = std::result::Result<Answer, Fault>;

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    /// A question came, or none will any more.
    asked: Condvar,
    answered: Condvar,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Arc<Question>)>,
    /// Asked and not taken, in order.
    open: VecDeque<(u64, Arc<Question>)>,
    answers: BTreeMap<u64, Outcome>,
    next: u64,
    is_closed: bool,
    /// What processes did beside answering.
    extra: Vec<Fault>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `most` questions; none once there will be no more.
    fn next(&self, most: usize) -> Vec<(u64, Arc<Question>)> {
        let mut state = self.lock();
        while state.waiting.is_empty() && !state.is_closed {
            state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let count = most.min(state.waiting.len());
        state.waiting.drain(..count).collect()
    }

    fn put(&self, number: u64, outcome: Outcome) {
        self.lock().answers.insert(number, outcome);
        self.answered.notify_all();
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.asked.notify_all();
    }
}

impl Pool {
    pub(super) fn of_program(spec: &ProgramReward) -> Result<Self> {
        let spec = Arc::new(spec.clone());
        Self::start(spec.workers, true, |desk| {
            let spec = Arc::clone(&spec);
            move || work(&spec, &desk)
        })
    }

    /// `place`: the reward's key.
    pub(super) fn of_address(spec: &HttpReward, place: &str) -> Result<Self> {
        let endpoint = Arc::new(Endpoint::new(spec, place)?);
        Self::start(spec.workers, false, |desk| {
            let endpoint = Arc::clone(&endpoint);
            move || {
                for (number, question) in std::iter::from_fn(|| desk.next(1).pop()) {
                    desk.put(number, endpoint.ask(&question, &desk.cancelled));
                }
            }
        })
    }

    fn start<F: FnOnce() + Send + 'static>(
        workers: usize,
        has_processes: bool,
        work: impl Fn(Arc<Desk>) -> F,
    ) -> Result<Self> {
        let mut pool = Self { desk: Arc::default(), threads: Vec::new(), has_processes };
        for _ in 0..workers {
            let thread = std::thread::Builder::new().name("rlvr-reward".into());
            let thread = thread.spawn(work(Arc::clone(&pool.desk)));
            pool.threads.push(thread.map_err(|error| Error::Compute(error.into()))?);
        }
        Ok(pool)
    }

    pub(super) fn ask(&self, question: Arc<Question>) {
        let mut state = self.desk.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, Arc::clone(&question)));
        state.open.push_back((number, question));
        drop(state);
        self.desk.asked.notify_one();
    }

    /// Those that [`Self::take`] has not answered.
    pub(super) fn open_questions(&self) -> Vec<Arc<Question>> {
        self.desk.lock().open.iter().map(|(_, question)| Arc::clone(question)).collect()
    }

    /// Waits for the answer to the oldest open question.
    ///
    /// # Errors
    /// [`Error::Stopped`]; nothing is asked, or nobody is left to answer.
    pub(super) fn take(&self) -> Result<Outcome> {
        let mut state = self.desk.lock();
        let number = state.open.front().map(|(number, _)| *number);
        let number = number.ok_or_else(|| Error::Compute("no reward was asked for".into()))?;
        loop {
            if let Some(outcome) = state.answers.remove(&number) {
                state.open.pop_front();
                return Ok(outcome);
            }
            if stop::is_asked() {
                return Err(Error::Stopped);
            }
            if self.threads.iter().all(JoinHandle::is_finished) {
                return Err(Error::Compute("the threads that ask for rewards have ended".into()));
            }
            let waited = self.desk.answered.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the processes end by themselves; what they did beside answering.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        self.desk.close();
        if self.has_processes {
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
        std::mem::take(&mut self.desk.lock().extra)
    }
}

impl Drop for Pool {
    /// No process is left when this returns. Those that owe nothing end by themselves.
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        if !state.open.is_empty() {
            self.desk.cancelled.store(true, Ordering::Relaxed);
            state.waiting.clear();
        }
        drop(state);
        self.desk.close();
        if self.has_processes {
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
    }
}

/// Has a program answer questions until there are no more.
fn work(spec: &ProgramReward, desk: &Desk) {
    let mut process = None;
    loop {
        let mut left = desk.next(spec.batch);
        if left.is_empty() {
            break;
        }
        let mut failures = 0;
        while !left.is_empty() {
            let failure = attempt(spec, desk, &mut process, &mut left);
            let Some(Failure { blamed, fault, may_pass }) = failure else { continue };
            failures += 1;
            if !may_pass || failures > spec.restarts {
                let (number, _) = left.remove(blamed);
                desk.put(number, Err(fault));
                failures = 0;
            }
        }
    }
    if let Some(Err(fault)) = process.map(|process: Process| match desk.cancelled.load(Ordering::Relaxed) {
        true => Ok(()),
        false => process.finish(),
    }) {
        desk.lock().extra.push(fault);
    }
}

/// Asks once; `left` are then those without an answer. After a failure the process is gone. No failure and some left: their answers
/// are not wanted.
fn attempt(
    spec: &ProgramReward,
    desk: &Desk,
    process: &mut Option<Process>,
    left: &mut Vec<(u64, Arc<Question>)>,
) -> Option<Failure> {
    let mut asked = match process.take() {
        Some(running) => running,
        None => match Process::start(spec) {
            Ok(started) => started,
            Err(fault) => return Some(Failure { blamed: 0, fault, may_pass: true }),
        },
    };
    let questions: Vec<(&str, &str)> = left.iter().map(|(_, q)| (q.id.as_str(), q.line.as_str())).collect();
    let mut answered = vec![false; left.len()];
    let outcome = asked.ask(&questions, &desk.cancelled, &mut |at, answer| {
        answered[at] = true;
        desk.put(left[at].0, Ok(answer));
    });
    let before = |at: usize| answered[..at].iter().filter(|done| !**done).count();
    let failure = match outcome {
        Ok(()) => {
            *process = Some(asked);
            None
        }
        Err(None) => {
            left.clear();
            return None;
        }
        Err(Some(Failure { blamed, fault, may_pass })) => {
            Some(Failure { blamed: before(blamed), fault: asked.end(fault), may_pass })
        }
    };
    let mut done = answered.iter();
    left.retain(|_| done.next().is_none_or(|done| !done));
    failure
}
