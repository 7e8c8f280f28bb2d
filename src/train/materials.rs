//! What a run is made of before its first step: task, tokens, rows, weights.

use std::path::{Path, PathBuf};

use super::corpus;
use super::place::{self, Opened, merged_bound};
use super::room::Room;
use super::rows::{Rows, prompt_order};
use crate::config::model::RandomModelConfig;
use crate::config::stages::CombineRewards;
use crate::config::{Config, Stage};
use crate::data::jsonl::EncodedRow;
use crate::disk::named_when_done;
use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::export::probe::logprobs;
use crate::formats::hf::weights::SaveOptions;
use crate::formats::hf::{self, Companions, config_json, folder};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::observe::{Event, PromptRecord, SampleKind, Sinks};
use crate::plan::Target;
use crate::reward::{self, Question};
use crate::task::Task;
use crate::text::{Date, EncoderFiles, PromptEncoder, byte_tokenizer};

pub struct Materials {
    pub task: Task,
    pub encoder: PromptEncoder,
    pub rows: Rows,
    /// Files that travel with the final model: tokenizer, chat template, generation config.
    pub companions: Companions,
    /// Why a checkpoint cannot be written in the background, where it could not.
    pub lacks_copy: Option<String>,
}

/// What a run may do although it was not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    /// Start although memory or disk are less than it can take.
    pub over_budget: bool,
    /// Start the programs and ask the addresses that the task's rewards name.
    pub programs: bool,
}

/// Where the weights of a run come from.
pub enum Start {
    Folder(PathBuf),
    /// Drawn from the seed.
    Seed(Box<ModelConfig>),
}

impl Start {
    /// The shape of the model.
    pub fn model(&self) -> Result<ModelConfig> {
        match self {
            Self::Folder(dir) => config_json::load(dir),
            Self::Seed(model) => Ok((**model).clone()),
        }
    }
}

impl Materials {
    /// With the weights that the run starts from. `run` is where a model made from the seed keeps its tokenizer, of the rank's own.
    ///
    /// # Errors
    /// Those of [`Self::gather`]; memory or disk that the run can exceed, unless it may; programs of the task's rewards, unless it may
    /// start them, or that do not answer.
    pub fn prepare(
        config: &Config,
        run: &Path,
        may: Permits,
        ranks: &Ranks,
        sinks: &mut Sinks,
    ) -> Result<(Self, Decoder)> {
        let samples = config.stages.contains(&Stage::Grpo);
        if samples {
            reward::permitted(&Task::load(&config.task)?, may.programs)?;
        }
        sinks.emit(&Event::phase("opening the device"));
        let Opened { mut place, fell_back } =
            place::open_for(config, ranks.place().map_or(0, |place| place.local_rank))?;
        let exchange = ranks.use_device(&place.device)?;
        // Rows before weights: a bad row should not cost the minutes that loading takes.
        let (mut materials, start) = Self::gather(config, config, run, sinks)?;
        let positions = config.model.max_positions;
        let answers = if config.packs_answers() { materials.task.labels().len() } else { 0 };
        let target = Target { cuda: place.device.is_cuda(), dtype: place.dtype, answers };
        let (room, model) = (
            Room::here(&place.device, run, ranks.place().map_or(1, |place| place.local_size))?,
            start.model()?,
        );
        materials.lacks_copy = room.lacks_copy(&model, config, target, &materials.rows);
        match room.check(&model, config, target, &materials.rows) {
            Err(error) if may.over_budget => sinks.warn(error.to_string()),
            checked => checked?,
        }
        place.missing = materials.encoder.tokenizer().missing_ids();
        sinks.emit(&Event::phase("loading weights"));
        let decoder = match start {
            Start::Folder(dir) => hf::load_decoder(&dir, positions, &place)?,
            Start::Seed(model) => Decoder::random_on(&place, *model, config.seed, positions)?,
        };
        let said = if samples { materials.probe_rewards()? } else { Vec::new() };
        for text in fell_back.into_iter().chain(exchange).chain(materials.encoder.note()).chain(said) {
            sinks.emit(&Event::Note { text });
        }
        Ok((materials, decoder))
    }

    /// All but the weights. `rows` is the config that says which rows are read.
    pub fn gather(config: &Config, rows: &Config, run: &Path, sinks: &mut Sinks) -> Result<(Self, Start)> {
        let task = Task::load(&config.task)?;
        let (grpo, enumerate) =
            (config.stages.contains(&Stage::Grpo), config.stages.contains(&Stage::Enumerate));
        if enumerate && !task.is_by_outcome() {
            let why = format!(
                "a reward of task `{}` is no table of outcomes, which is all that enumerate computes",
                task.name()
            );
            return Err(Error::config("stages", "enumerate", "\"grpo\" in its place", why));
        }
        if enumerate && !task.has_closed_answers() {
            let want =
                "\"grpo\" in its place, or a task file whose [answers] has a text for the negative label too";
            let why = format!("the answers of task `{}` are no closed set", task.name());
            return Err(Error::config("stages", "enumerate", want, why));
        }
        let distills = config.stages.contains(&Stage::Sft) && config.sft.distill.is_some();
        if distills && !task.has_closed_answers() {
            let problem = format!(
                "the answers of task `{}` are no closed set, over which a judge has probabilities",
                task.name()
            );
            let fix = "Remove the section, or give a task file whose [answers] has a text for the negative label too";
            return Err(Error::input("[sft.distill]", problem, fix));
        }
        if grpo && config.grpo.combine_rewards == CombineRewards::NormalizeThenSum && task.rewards().len() < 2
        {
            let problem = format!("has no effect: task `{}` has a single reward", task.name());
            let fix = "Remove the key, or give the task [extra_rewards]";
            return Err(Error::input("grpo.combine_rewards", problem, fix));
        }
        check_choice(config, &task)?;
        let (encoder, companions, start) = match (&config.model.path, &config.model.random) {
            (Some(dir), _) => Self::from_folder(config, dir),
            (None, Some(shape)) => Self::from_seed(config, shape, &task, &run.join("tokenizer")),
            (None, None) => config.model.validate().and(Err(Error::Compute("no model".into()))),
        }?;
        let whole = rows.data == config.data;
        let rows = Rows::load(rows, &task, &encoder, sinks)?;
        if whole && config.data.synthetic.is_none() {
            rows.remarks(&task).into_iter().for_each(|text| sinks.warn(text));
        }
        if whole {
            rows.reward_remarks(&task).into_iter().for_each(|text| sinks.warn(text));
        }
        // Asked before the first evaluation, not after the warm-up.
        if grpo {
            prompt_order(&rows.grpo, config, config.grpo.balance, "grpo.balance")?;
        }
        if enumerate {
            prompt_order(&rows.answers, config, config.enumerate.balance, "enumerate.balance")?;
        }
        Ok((Self { task, encoder, rows, companions, lacks_copy: None }, start))
    }

    /// Asks everybody who rewards completions about the first row, its target or silence: what they say. Their processes end again.
    ///
    /// # Errors
    /// Somebody cannot answer.
    pub fn probe_rewards(&self) -> Result<Vec<String>> {
        let Some(row) = self.rows.grpo.first() else { return Ok(Vec::new()) };
        let Some(told) = &row.told else { return Ok(Vec::new()) };
        let text = row.target.as_ref().map(|ids| self.encoder.decode_completion(ids)).transpose()?;
        let text = text.unwrap_or_default();
        reward::probe(&self.task, Question::about("probe".into(), &self.task, told, row.gold, &text))
    }

    /// What the evaluations ask.
    pub fn held_out_prompts(&self) -> Result<Event> {
        let record = |row: &EncodedRow| {
            let prompt = self.encoder.tokenizer().decode_whole(&row.prompt.token_ids)?;
            Ok(PromptRecord { line: row.line, prompt })
        };
        let prompts = self.rows.valid.iter().map(record).collect::<Result<_>>()?;
        Ok(Event::Prompts { kind: SampleKind::Evaluation, prompts })
    }

    fn from_folder(config: &Config, dir: &Path) -> Result<(PromptEncoder, Companions, Start)> {
        if !dir.is_dir() {
            let problem = if dir.exists() { "is a file, not a folder" } else { "no such folder" };
            let fix =
                "Name a model folder (config.json, safetensors, tokenizer.json) or a hub name, org/name";
            return Err(Error::input(format!("model.path = {}", dir.display()), problem, fix));
        }
        let companions = Companions {
            tokenizer_dir: config.model.tokenizer.clone().unwrap_or_else(|| dir.into()),
            chat_template: config.model.chat_template.clone(),
            model_dir: dir.into(),
        };
        let encoder = PromptEncoder::load(&EncoderFiles {
            model_dir: dir,
            tokenizer_dir: config.model.tokenizer.as_deref(),
            chat_template: config.model.chat_template.as_deref(),
            date: Date::default(),
            template_args: Some(&config.model.template_args),
        })?;
        Ok((encoder, companions, Start::Folder(dir.into())))
    }

    fn from_seed(
        config: &Config,
        shape: &RandomModelConfig,
        task: &Task,
        dir: &Path,
    ) -> Result<(PromptEncoder, Companions, Start)> {
        // A run that goes on has its tokenizer, whatever its rows or its seed are now.
        if !dir.join("tokenizer.json").exists() {
            let (texts, phrases) = corpus::of(config, task)?;
            let texts = texts.iter().map(String::as_str);
            let tokenizer =
                byte_tokenizer::build(texts, &phrases, shape.vocab_size).map_err(|error| match error {
                    Error::Config { got, want, why, .. } => {
                        Error::config("model.random.vocab_size", got, want, why)
                    }
                    other => other,
                })?;
            std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the tokenizer folder"))?;
            byte_tokenizer::save_pretrained(&tokenizer, dir)?;
        }
        let encoder = PromptEncoder::load(&EncoderFiles::of(dir))?;
        let vocab = encoder.tokenizer().vocab_size();
        let model = random_model(shape, vocab, encoder.stop_tokens().ids(), config.model.max_positions)?;
        let companions = Companions { tokenizer_dir: dir.into(), chat_template: None, model_dir: dir.into() };
        Ok((encoder, companions, Start::Seed(Box::new(model))))
    }

    /// A model folder with all that travels with it; an adapter of `decoder` is merged.
    pub fn write_model(&self, decoder: &Decoder, dir: &Path) -> Result<()> {
        folder::write(dir, decoder, &self.companions, SaveOptions::new(decoder.dtype()))?;
        if let Some(text) = self.encoder.template().text_with_arguments() {
            let template = dir.join("chat_template.jinja");
            std::fs::write(&template, text).map_err(Error::io(&template, "write the chat template"))?;
        }
        Ok(())
    }

    /// Writes the model folder aside, loads it back, compares log-probs, and only then gives it its name. `more` adds to
    /// the folder.
    pub fn save_model(
        &self,
        decoder: &Decoder,
        target: &Path,
        more: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        named_when_done(target, |aside: &Path| {
            self.write_model(decoder, aside)?;
            let again = hf::load_decoder(aside, decoder.max_positions(), &decoder.place())?;
            // An adapter is merged into the folder's weights, which rounds other sums.
            let bound = if decoder.adapter().is_some() { merged_bound(decoder) } else { 0.0 };
            self.compare(decoder, &again, bound, target)?;
            more(aside)
        })
    }

    /// Log-probs of a held-out prompt's tokens.
    pub fn probe(&self, decoder: &Decoder) -> Result<Vec<f32>> {
        let ids = self.rows.valid.first().map_or(&[][..], |row| &row.prompt.token_ids);
        logprobs(decoder, &ids[..ids.len().min(256)], 1)
    }

    /// Holds the log-probs of what was saved as `target` against those in memory, on a held-out prompt.
    ///
    /// # Errors
    /// A difference above `bound`, in nats.
    pub fn compare(&self, decoder: &Decoder, saved: &Decoder, bound: f32, target: &Path) -> Result<()> {
        Self::same(&self.probe(decoder)?, &self.probe(saved)?, bound, target)
    }

    /// # Errors
    /// As [`Self::compare`], of two probes.
    pub fn same(want: &[f32], got: &[f32], bound: f32, target: &Path) -> Result<()> {
        let differences = || want.iter().zip(got).map(|(a, b)| (a - b).abs());
        // Not by the worst alone: a NaN is below any maximum.
        if differences().all(|difference| difference <= bound) {
            return Ok(());
        }
        let worst = differences().fold(0f32, f32::max);
        let problem = format!("its log-probs differ by {worst:.1e}, and {bound:.1e} is the bound");
        Err(Error::Unfaithful { path: target.to_path_buf(), problem })
    }
}

/// The model that `[model.random]` describes.
pub fn random_model(
    shape: &RandomModelConfig,
    vocab_size: usize,
    stop_tokens: &[u32],
    max_positions: usize,
) -> Result<ModelConfig> {
    let json = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.attention_heads,
        "num_key_value_heads": shape.key_value_heads, "vocab_size": vocab_size,
        "rms_norm_eps": 1e-5, "rope_theta": shape.rope_theta, "tie_word_embeddings": true,
        "max_position_embeddings": max_positions,
        "eos_token_id": stop_tokens,
    });
    config_json::from_json(&json, "model.random")
}

/// Refuses a score by which no model can be chosen, because no evaluation of the task has it.
fn check_choice(config: &Config, task: &Task) -> Result<()> {
    let key = &config.eval.keep_best;
    let name = key.strip_prefix("verdict/").unwrap_or_default();
    let unknown = name.split_once('/').filter(|(_, label)| !task.labels().iter().any(|known| known == label));
    if unknown.is_some() {
        let want = format!("with one of the labels {}", task.labels().join(", "));
        let why = format!("task `{}` has no other", task.name());
        return Err(Error::config("eval.keep_best", key, want, why));
    }
    if name.contains("_paper") && !task.has_paper() {
        let why = format!("task `{}` says nothing of a paper's rule", task.name());
        return Err(Error::config("eval.keep_best", key, "a score of the strict rule", why));
    }
    let dropping = name.ends_with("_parsed") || name == "dropped_rate";
    if dropping && !task.drops_answers() {
        let why = format!("task `{}` drops no answers", task.name());
        return Err(Error::config("eval.keep_best", key, "a score over all answers", why));
    }
    Ok(())
}
