//! Reward programs written for a test, and whether their processes are gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rlvr::data::told::Told;
use rlvr::error::Result;
use rlvr::reward::{Judges, Question, Said};
use rlvr::task::{LabelId, Task};

use super::runs::{label_task, text};

/// A folder with a task and `judge.py`.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

/// What every judge begins with: its process is noted in `pids`.
const PRELUDE: &str = "import json, os, subprocess, sys, time\n\
                       def note(pid):\n    with open('pids', 'a') as f: f.write(f'{pid}\\n')\n\
                       note(os.getpid())\n\
                       def say(asked, reward): print(json.dumps({'id': asked['id'], 'reward': reward}), flush=True)\n";

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The task with `keys` under `[extra_rewards.judge]`, which has the weight 2.
    pub fn task(&self, keys: &str) -> Task {
        let text_of = label_task("no", &["yes"]);
        std::fs::write(
            self.path("task.toml"),
            format!("{text_of}[extra_rewards.judge]\nweight = 2.0\n{keys}\n"),
        )
        .unwrap();
        Task::load(text(&self.path("task.toml"))).unwrap()
    }

    /// The task whose judge runs `body` after the prelude; `keys` beside the command.
    pub fn program(&self, body: &str, keys: &str) -> Task {
        std::fs::write(self.path("judge.py"), format!("{PRELUDE}{body}")).unwrap();
        let (command, comma) =
            ("command = [\"python3\", \"judge.py\"]", if keys.is_empty() { "" } else { ", " });
        self.task(&format!("program = {{ {command}{comma}{keys} }}"))
    }

    /// Processes that noted themselves or their children.
    pub fn pids(&self) -> Vec<String> {
        let noted = std::fs::read_to_string(self.path("pids")).unwrap_or_default();
        noted.lines().map(String::from).collect()
    }

    /// They get a while to be gone: a child of a killed process ends a moment after it.
    pub fn assert_all_gone(&self) {
        let begun = Instant::now();
        for pid in self.pids() {
            while is_alive(&pid) {
                assert!(begun.elapsed() < Duration::from_secs(20), "process {pid} was left behind");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A zombie is gone, and only waits for its parent to hear of it.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// A question about each of `texts`, rows.jsonl:1 on.
pub fn questions(task: &Task, texts: &[&str]) -> Vec<Question> {
    let about = |(at, text): (usize, &&str)| {
        let told = Told {
            place: format!("rows.jsonl:{}", at + 1),
            prompt: r#"[{"role": "user", "content": "?"}]"#.into(),
            row: format!("{{\"number\": {at}}}"),
        };
        Question::about(format!("1.{at}"), task, &told, LabelId::NEGATIVE, text)
    };
    texts.iter().enumerate().map(about).collect()
}

/// Asks about `texts` at once, and lets the processes end.
pub fn ask(task: &Task, texts: &[&str]) -> Result<(Vec<Said>, Vec<String>)> {
    let mut judges = Judges::open(task)?.expect("the task asks somebody");
    questions(task, texts).into_iter().for_each(|question| judges.ask(question));
    let (said, mut warnings) = judges.take()?;
    warnings.extend(judges.finish());
    Ok((said.into_iter().flatten().collect(), warnings))
}

/// What is said where nobody can say.
pub fn refused(task: &Task, texts: &[&str]) -> String {
    ask(task, texts).expect_err("it cannot answer").to_string()
}

pub fn values(said: &[Said]) -> Vec<f32> {
    said.iter().map(|said| said.value).collect()
}
