//! Whether a run fits the memory and the disk that there are, asked before its weights are loaded.

use std::path::Path;

use candle_core::Device;

use super::rows::Rows;
use crate::config::Config;
use crate::data::jsonl::EncodedRow;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::observe::machine::{Host, disk_free};
use crate::ops::cuda;
use crate::plan::{Plan, Target, activations, advise, disk};

/// What there is for a run; `None` where the system does not say.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// Bytes of the device that computes.
    pub memory: Option<u64>,
    /// All of a GPU's memory.
    pub total: Option<u64>,
    /// What sets `memory`: "free", or a limit's file.
    pub by: String,
    /// Bytes of the host where another device computes.
    pub host: Option<u64>,
    /// Bytes at the run's directory, what it holds already included.
    pub disk: Option<u64>,
}

impl Room {
    /// Of this machine, for a run in `run`, of which `ranks` share the machine.
    pub fn here(device: &Device, run: &Path, ranks: usize) -> Result<Self> {
        let mut room = Self::whole(device, run)?;
        if ranks > 1 {
            // A device each; what the host has is for all.
            let shared = if device.is_cuda() { &mut room.host } else { &mut room.memory };
            *shared = shared.map(|bytes| bytes / ranks as u64);
            if !device.is_cuda() {
                room.by += &format!(" for each of {ranks} ranks");
            }
        }
        Ok(room)
    }

    fn whole(device: &Device, run: &Path) -> Result<Self> {
        let disk = disk_free(run).map(|free| free + held(run));
        if device.is_cuda() {
            let card = cuda::describe(device)?;
            let (memory, total) = (Some(card.memory_free), Some(card.memory_total));
            let host = Host::ask().memory_free;
            return Ok(Self { memory, total, by: format!("free on {}", card.name), host, disk });
        }
        let host = Host::ask();
        let limit = host.memory_limit.filter(|limit| Some(limit.room) == host.memory_free);
        let by = limit.map_or("free here".into(), |limit| format!("free below {}", limit.file.display()));
        Ok(Self { memory: host.memory_free, total: None, by, host: None, disk })
    }

    /// # Errors
    /// The memory or the disk is less than the run can take: with the sum, and the keys that make it smaller.
    pub fn check(&self, model: &ModelConfig, config: &Config, target: Target, rows: &Rows) -> Result<()> {
        self.check_memory(model, &as_long_as(config, rows), target)?;
        self.check_disk(model, config, target)
    }

    /// What there is to say where a checkpoint cannot be copied, to be written in the background.
    pub fn lacks_copy(
        &self,
        model: &ModelConfig,
        config: &Config,
        target: Target,
        rows: &Rows,
    ) -> Option<String> {
        let copy = disk::copied(model, config, target);
        let (room, taken) = match target.cuda {
            true => (self.host?, 0),
            false => {
                let mut config = as_long_as(config, rows);
                activations::settle(&mut config, model, target, self.total);
                (self.memory?, Plan::new(model, &config, target).peak())
            }
        };
        (copy > 0 && taken + copy > room).then(|| {
            format!(
                "checkpoints are written in the foreground: a copy takes {} GiB, and of {} GiB of host memory the run takes {} \
                 (checkpoint.background)",
                gib(copy),
                gib(room),
                gib(taken)
            )
        })
    }

    fn check_memory(&self, model: &ModelConfig, config: &Config, target: Target) -> Result<()> {
        let Some(memory) = self.memory else { return Ok(()) };
        let mut config = config.clone();
        activations::settle(&mut config, model, target, self.total);
        let plan = Plan::new(model, &config, target);
        if plan.peak() <= memory {
            return Ok(());
        }
        let phases: Vec<String> =
            plan.phases.iter().map(|phase| format!("{} {}", phase.name, gib(phase.bytes()))).collect();
        let problem = format!(
            "the run takes {} GiB at its peak, and {} are {} ({})",
            gib(plan.peak()),
            gib(memory),
            self.by,
            phases.join(", ")
        );
        let changes = advise(model, &config, target, memory);
        let enough = changes.last().is_some_and(|last| last.peak <= memory);
        let settings: Vec<&str> = changes.iter().flat_map(|change| change.setting.split(' ')).collect();
        // A key that is lowered step by step ends at its last value.
        let key = |setting: &str| setting.split('=').next().unwrap_or_default().to_string();
        let last = |i: &usize| settings[i + 1..].iter().all(|later| key(later) != key(settings[*i]));
        let settings: Vec<String> =
            (0..settings.len()).filter(last).map(|i| format!("--set {}", settings[i])).collect();
        let fix = match (enough, changes.last()) {
            (true, _) => format!("It fits with {}", settings.join(" ")),
            (false, last) => {
                let but = last.map_or(String::new(), |last| {
                    format!("{} makes it {} GiB; beside that ", settings.join(" "), gib(last.peak))
                });
                format!(
                    "{but}train an adapter (lora.rank), lower data.max_prompt_tokens or *.max_completion_tokens, or choose a \
                     smaller model"
                )
            }
        };
        let more = "`rlvr plan` has the whole table; --allow-over-budget tries it all the same";
        Err(Error::input("memory", problem, format!("{fix}. {more}")))
    }

    fn check_disk(&self, model: &ModelConfig, config: &Config, target: Target) -> Result<()> {
        let Some(room) = self.disk else { return Ok(()) };
        let items = disk::needed(model, config, target);
        let needed: u64 = items.iter().map(|item| item.bytes).sum();
        if needed <= room {
            return Ok(());
        }
        let items: Vec<String> =
            items.iter().map(|item| format!("{} {}", item.what, gib(item.bytes))).collect();
        let problem =
            format!("the run writes {} GiB, and there are {} ({})", gib(needed), gib(room), items.join(", "));
        let fix = "Free some space, name another run.root, or lower checkpoint.keep_last; --allow-over-budget tries it all the same";
        Err(Error::input(format!("disk of {}", config.run.root.display()), problem, fix))
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / (1u64 << 30) as f64)
}

/// The config with prompts and answers no longer than those that there are: completions take their whole budget.
fn as_long_as(config: &Config, rows: &Rows) -> Config {
    let mut config = config.clone();
    let longest = |rows: &[EncodedRow], of: fn(&EncodedRow) -> usize| rows.iter().map(of).max();
    let all = [&rows.sft, &rows.grpo, &rows.answers, &rows.valid];
    let prompt = all.iter().filter_map(|rows| longest(rows, |row| row.prompt.token_ids.len())).max();
    let target = longest(&rows.sft, |row| row.target.as_ref().map_or(0, Vec::len));
    let packs_answers = config.packs_answers();
    let data = &mut config.data;
    data.max_prompt_tokens = prompt.unwrap_or(data.max_prompt_tokens).min(data.max_prompt_tokens);
    // Enumerated answers are others than the rows'.
    if !packs_answers {
        data.max_target_tokens = target.unwrap_or(data.max_target_tokens).min(data.max_target_tokens);
    }
    config
}

/// Bytes of a folder's files, each counted once however many names it has.
fn held(folder: &Path) -> u64 {
    let (mut folders, mut seen) = (vec![folder.to_path_buf()], std::collections::HashSet::new());
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            } else if seen.insert(identity(&found, &entry.path())) {
                bytes += found.len();
            }
        }
    }
    bytes
}

#[cfg(unix)]
fn identity(found: &std::fs::Metadata, _: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata, path: &Path) -> std::path::PathBuf {
    path.to_path_buf()
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::plan::shapes;
    use crate::task::LabelId;
    use crate::types::Prompt;

    const CUDA: Target = Target { cuda: true, dtype: DType::BF16, answers: 0 };
    const GIB: u64 = 1 << 30;

    fn rows(prompt: usize, target: usize) -> Rows {
        let row = EncodedRow {
            line: 1,
            source: None,
            prompt: Prompt { token_ids: vec![1; prompt] },
            gold: LabelId(0),
            target: Some(vec![1; target]),
            attack_succeeded: None,
            evidence: None,
            answers: Vec::new(),
            control_texts: Vec::new(),
            told: None,
            judge: None,
        };
        let valid_name = String::new();
        Rows {
            sft: vec![row.clone()],
            grpo: vec![row.clone()],
            answers: Vec::new(),
            valid: vec![row],
            valid_name,
        }
    }

    fn check(room: Room, settings: &[&str], prompt: usize) -> std::result::Result<(), String> {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        let config = Config::load("riskcue-llama3.1-8b", &settings).unwrap();
        let model = shapes::find("llama-3.1-8b").unwrap();
        let refused = room.check(&model, &config, CUDA, &rows(prompt, 100));
        refused.map_err(|error| {
            assert!(error.is_input());
            error.to_string()
        })
    }

    fn memory(gib: u64) -> Room {
        Room {
            memory: Some(gib * GIB),
            total: Some(80 * GIB),
            by: "free on a card".into(),
            ..Room::default()
        }
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_sum_and_the_settings_that_make_it_fit() {
        assert_eq!(check(memory(79), &[], 7000), Ok(()));
        let keep = ["pack.activations=\"keep\"", "grpo.optim.moments=f32"];
        let error = check(memory(60), &keep, 7000).unwrap_err();
        assert!(error.contains("60.00 are free on a card (load 15.05, sft update"), "{error}");
        let fits = error.split("It fits with ").nth(1).unwrap_or_else(|| panic!("{error}"));
        assert!(
            fits.contains("--set grpo.optim.moments=int8") && fits.contains("--allow-over-budget"),
            "{error}"
        );
        let error = check(memory(20), &keep, 7000).unwrap_err();
        assert!(error.contains("beside that train an adapter"), "{error}");
        assert_eq!(check(Room::default(), &keep, 7000), Ok(()), "what is not known refuses nothing");
    }

    #[test]
    fn rows_that_are_shorter_than_they_may_be_take_less() {
        let settings = [
            "pack.activations=\"recompute\"",
            "pack.max_reused_tokens=0",
            "pack.max_tokens_per_pack=2048",
            "pack.max_rollout_tokens=4096",
            "grpo.max_completion_tokens=32",
        ];
        let error = check(memory(47), &settings, 7000).unwrap_err();
        assert!(error.contains("47.00 are free"), "{error}");
        assert_eq!(check(memory(47), &settings, 200), Ok(()));
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_the_sum_and_the_keys() {
        let disk = |gib: u64| Room { disk: Some(gib * GIB), ..Room::default() };
        assert_eq!(check(disk(200), &[], 100), Ok(()));
        let error = check(disk(60), &[], 100).unwrap_err();
        assert!(error.contains("3 checkpoints (checkpoint.keep_last + 1) 90.45"), "{error}");
        assert!(error.starts_with("disk of runs: the run writes 120.36 GiB, and there are 60.00"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_a_run_holds_is_counted_once_however_many_names_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("checkpoints/step-1");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("weights"), [0; 1000]).unwrap();
        std::fs::hard_link(deep.join("weights"), dir.path().join("best")).unwrap();
        std::fs::write(dir.path().join("metrics.jsonl"), [0; 10]).unwrap();
        assert_eq!(held(dir.path()), 1010);
        assert_eq!(held(&dir.path().join("absent")), 0);
    }
}
