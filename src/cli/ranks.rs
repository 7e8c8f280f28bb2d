//! Several processes that train together, as a command meets them: who it is among them, those that it starts itself, and how it ends
//! with them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Result;

use super::stop::last_words;
use crate::dist::env::{self, Found};
use crate::dist::{Loss, Place, Ranks};
use crate::error::Error;
use crate::observe::{Event, Sink};
use crate::stop;

/// Set for the processes that another rlvr starts.
const STARTED: &str = "RLVR_STARTED_RANKS";

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What a command is to do.
pub enum Role {
    /// Work, alone or as one of several.
    Work(Ranks),
    /// It has started the ranks of this host, and they have ended so.
    Started(u8),
}

/// Who this process is. `wanted`: ranks that it is to start on this host.
///
/// # Errors
/// A launcher's variables that cannot be; ranks wanted by both; ranks that cannot meet.
pub fn role(wanted: Option<usize>) -> Result<Role> {
    let found = env::find(variable)?;
    let ours = variable(STARTED).is_some();
    match (found, wanted.filter(|_| !ours)) {
        (Found::Rank(place), Some(wanted)) => {
            let problem = format!(
                "would start {wanted} ranks within rank {} of {}, which {} started",
                place.rank, place.size, place.launcher
            );
            Err(Error::input("--ranks", problem, "Leave it out, or start rlvr once a host").into())
        }
        (Found::Rank(place), None) => {
            if ours {
                end_with_parent();
            }
            let ranks = Ranks::join(place, leave)?;
            if let (true, Some(place), Some(engine)) = (ranks.is_first(), ranks.place(), ranks.engine()) {
                eprintln!(
                    "note: {} ranks, started by {}, over {}",
                    place.size,
                    place.launcher,
                    engine.name()
                );
            }
            Ok(Role::Work(ranks))
        }
        (Found::Alone(note), None) => {
            note.iter().for_each(|text| eprintln!("note: {text}"));
            Ok(Role::Work(Ranks::alone()))
        }
        (Found::Alone(_), Some(1)) => Ok(Role::Work(Ranks::alone())),
        (Found::Alone(_), Some(wanted)) => {
            let port = free_port()?;
            let of = |rank| Place {
                rank,
                size: wanted,
                local_rank: rank,
                local_size: wanted,
                address: "127.0.0.1".into(),
                port,
                // Another rlvr may have found the same port free.
                job: format!("rlvr {}", std::process::id()),
                launcher: "rlvr",
            };
            Ok(Role::Started(start((0..wanted).map(of))?))
        }
        (Found::Node { nodes: 1, .. }, None) => Ok(Role::Work(Ranks::alone())),
        (Found::Node { node, nodes, launcher, .. }, None) => {
            let problem =
                format!("this is node {node} of {nodes}, and nothing says how many ranks a node has");
            let fix = "Add --ranks N, a rank for each GPU of a node; on one node ask for one node";
            Err(Error::input(launcher, problem, fix).into())
        }
        (Found::Node { node, nodes, address, port, job, launcher }, Some(wanted)) => {
            let of = |local| Place {
                rank: node * wanted + local,
                size: nodes * wanted,
                local_rank: local,
                local_size: wanted,
                address: address.clone(),
                port,
                job: job.clone(),
                launcher,
            };
            Ok(Role::Started(start((0..wanted).map(of))?))
        }
    }
}

/// # Errors
/// This is one of several ranks, and the command knows only one.
pub fn refuse(command: &str) -> Result<()> {
    let (Found::Rank(Place { rank, size, launcher, .. }), None) = (env::find(variable)?, variable(STARTED))
    else {
        return Ok(());
    };
    let problem = format!("works in one process, and this is rank {rank} of {size} ({launcher})");
    Err(Error::input(format!("rlvr {command}"), problem, "Start it once, without the launcher").into())
}

/// A port of this host that nobody listens at.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| Error::Compute(error.into()))?;
    Ok(listener.local_addr().map_err(|error| Error::Compute(error.into()))?.port())
}

/// Starts this command again for each place, and waits for them.
fn start(places: impl Iterator<Item = Place>) -> Result<u8> {
    let own = std::env::current_exe().map_err(Error::io(Path::new("rlvr"), "find"))?;
    let mut children: Vec<(usize, Child)> = Vec::new();
    for place in places {
        let mut command = Command::new(&own);
        command.args(std::env::args_os().skip(1)).stdin(Stdio::piped()).env(STARTED, "1");
        for (name, value) in [
            ("RANK", place.rank.to_string()),
            ("WORLD_SIZE", place.size.to_string()),
            ("LOCAL_RANK", place.local_rank.to_string()),
            ("LOCAL_WORLD_SIZE", place.local_size.to_string()),
            ("MASTER_ADDR", place.address.clone()),
            ("MASTER_PORT", place.port.to_string()),
            ("TORCHELASTIC_RUN_ID", place.job.clone()),
        ] {
            command.env(name, value);
        }
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE");
        // A terminal's Ctrl-C comes to this process, which passes it on once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        if place.rank > 0 {
            command.stdout(Stdio::null());
        }
        let child = command.spawn().map_err(Error::io(&own, "start a rank of"))?;
        children.push((place.rank, child));
    }
    let mut codes = Vec::new();
    let mut told = false;
    while !children.is_empty() {
        let failed = codes.iter().any(|code| *code != 0);
        // One that fails before the ranks have met can tell nobody.
        if (stop::is_asked() || failed) && !told {
            told = true;
            // The end of its input is a rank's wish to stop.
            children.iter_mut().for_each(|(_, child)| drop(child.stdin.take()));
        }
        children.retain_mut(|(_, child)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                codes.push(code(status));
                false
            }
            Err(_) => false,
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    let failed = codes.iter().find(|code| ![0, stop::EXIT_CODE].contains(*code));
    Ok(failed.or(codes.iter().find(|code| **code != 0)).copied().unwrap_or(0))
}

/// Of one that was killed: it can be gone on with.
fn code(status: ExitStatus) -> u8 {
    status.code().map_or(stop::EXIT_CODE, |code| u8::try_from(code).unwrap_or(1))
}

/// A rank that rlvr started is asked to stop once its parent says so, or is gone.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut input = std::io::stdin();
        let mut byte = [0];
        while matches!(input.read(&mut byte), Ok(1..)) {}
        stop::ask();
    });
}

/// Another rank is gone: on the watch's thread, while the run's own may hang.
fn leave(loss: &Loss) -> ! {
    let mut out = std::io::stderr();
    let words = if loss.code == stop::EXIT_CODE { last_words() } else { None };
    let _ = writeln!(out, "\nerror: {}\n{}", loss.text.replace('\n', "\\n"), words.unwrap_or_default());
    stop::leave_with(loss.code)
}

/// How a rank ends: the others hear of what failed here.
///
/// # Errors
/// What `ended` is.
pub fn ended(ranks: &Ranks, ended: Result<()>) -> Result<()> {
    let Err(error) = &ended else { return ended };
    let (said, code) = match error.downcast_ref::<Error>() {
        Some(Error::Stopped | Error::Unrewarded { .. }) => {
            ranks.stops()?;
            // Launchers end all once one has ended, and rank 0 is still writing.
            ranks.gather(())?;
            return ended;
        }
        // Those that wait in a library, and not for a connection, do not know.
        Some(Error::RankLost { .. } | Error::Halted { .. }) => (error, stop::EXIT_CODE),
        Some(ours) if ours.is_full_disk() || ours.is_lost_device() => (error, stop::EXIT_CODE),
        Some(ours) => (error, if ours.is_input() { 2 } else { 1 }),
        None => (error, 1),
    };
    let all_have_it = matches!(error.downcast_ref(), Some(Error::Diverged { .. } | Error::Halted { .. }));
    if all_have_it && !ranks.is_first() {
        // Rank 0 puts the broken checkpoint aside, and then ends all.
        std::thread::sleep(Duration::from_secs(30));
    }
    ranks.end_all(&said.to_string(), code);
    ended
}

/// Tells the other ranks, and a rank's own log, where it is.
pub struct Whereabouts {
    ranks: Ranks,
    log: Option<File>,
}

impl Whereabouts {
    /// `dir`: where the log of another rank than 0 is kept.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn new(ranks: Ranks, dir: &Path) -> Result<Self> {
        let path = dir.join("log.txt");
        let open =
            || File::options().create(true).append(true).open(&path).map_err(Error::io(&path, "write"));
        let log = if ranks.is_first() { None } else { Some(open()?) };
        Ok(Self { ranks, log })
    }
}

impl Sink for Whereabouts {
    fn name(&self) -> &str {
        "the log of the rank"
    }

    fn emit(&mut self, event: &Event) -> crate::error::Result<()> {
        let (at, line) = match event {
            Event::StepStarted { stage, step } => (Some(format!("{stage} step {step}")), None),
            Event::Phase { what } => (Some(what.clone()), None),
            Event::Work(work) => (Some(work.what.clone()), None),
            Event::Step { stage, step, metrics } => {
                let of = |name| metrics.get(name).map_or("-".into(), |value| format!("{value:.4}"));
                (None, Some(format!("{stage} {step}: loss {}, {} s", of("loss"), of("step_time"))))
            }
            Event::Warning { text } | Event::Note { text } => (None, Some(text.clone())),
            _ => (None, None),
        };
        if let Some(at) = &at {
            self.ranks.at(at);
        }
        if let (Some(log), Some(line)) = (&mut self.log, at.or(line)) {
            writeln!(log, "{line}").map_err(Error::io(Path::new("log.txt"), "write"))?;
        }
        Ok(())
    }
}
