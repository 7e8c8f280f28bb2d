//! What a run is made of before its first step: task, tokens, rows, weights.

use std::path::Path;

use super::place::{self, Opened};
use super::prompts;
use crate::config::stages::CombineRewards;
use crate::config::{Config, Stage};
use crate::data::jsonl::{Dataset, EncodedRow, Limits, Source, Targets};
use crate::data::synthetic::{self, Spec, Split};
use crate::error::{Error, Result};
use crate::export::probe::Probe;
use crate::formats::hf::weights::SaveOptions;
use crate::formats::hf::{self, Companions, config_json, folder};
use crate::model::decoder::{Decoder, Placement};
use crate::observe::{Event, Sinks};
use crate::task::Task;
use crate::text::{Date, EncoderFiles, PromptEncoder, byte_tokenizer};

pub struct Materials {
    pub task: Task,
    pub encoder: PromptEncoder,
    pub sft_rows: Vec<EncodedRow>,
    pub grpo_rows: Vec<EncodedRow>,
    /// Rows with every answer there is, for enumeration.
    pub answer_rows: Vec<EncodedRow>,
    pub valid_rows: Vec<EncodedRow>,
    /// Files that travel with the final model: tokenizer, chat template, generation config.
    pub companions: Companions,
}

impl Materials {
    /// With the weights that the run starts from. `run` is where a model made from the seed keeps its tokenizer.
    pub fn prepare(config: &Config, run: &Path, sinks: &mut Sinks) -> Result<(Self, Decoder)> {
        let Opened { place, fell_back } = place::open_for(config)?;
        let task = Task::load(&config.task)?;
        let (grpo, enumerate) =
            (config.stages.contains(&Stage::Grpo), config.stages.contains(&Stage::Enumerate));
        if enumerate && !task.has_closed_answers() {
            let want =
                "\"grpo\" in its place, or a task file whose [answers] has a text for the negative label too";
            let why = format!("the answers of task `{}` are no closed set", task.name());
            return Err(Error::config("stages", "enumerate", want, why));
        }
        if grpo && config.grpo.combine_rewards == CombineRewards::NormalizeThenSum && task.rewards().len() < 2
        {
            let problem = format!("has no effect: task `{}` has a single reward", task.name());
            let fix = "Remove the key, or give the task [extra_rewards]";
            return Err(Error::input("grpo.combine_rewards", problem, fix));
        }
        let (materials, decoder) = match (&config.model.path, &config.model.random) {
            (Some(dir), _) => Self::from_folder(config, &place, task, dir, sinks),
            (None, Some(_)) => Self::from_seed(config, &place, task, &run.join("tokenizer"), sinks),
            (None, None) => config.model.validate().and(Err(Error::Compute("no model".into()))),
        }?;
        // Asked before the first evaluation, not after the warm-up.
        if grpo {
            prompts::order(&materials.grpo_rows, config.grpo.balance, "grpo.balance", config.seed)?;
        }
        if enumerate {
            prompts::order(
                &materials.answer_rows,
                config.enumerate.balance,
                "enumerate.balance",
                config.seed,
            )?;
        }
        if let Some(text) = fell_back {
            sinks.emit(&Event::Note { text });
        }
        Ok((materials, decoder))
    }

    fn from_folder(
        config: &Config,
        place: &Placement,
        task: Task,
        dir: &Path,
        sinks: &mut Sinks,
    ) -> Result<(Self, Decoder)> {
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
        // Rows before weights: a bad row should not cost the minutes that loading takes.
        let rows = Rows::load(config, &task, &encoder, sinks)?;
        let decoder = load_decoder(dir, config.model.max_positions, place)?;
        Ok((Self::assemble(task, encoder, rows, companions), decoder))
    }

    fn from_seed(
        config: &Config,
        place: &Placement,
        task: Task,
        dir: &Path,
        sinks: &mut Sinks,
    ) -> Result<(Self, Decoder)> {
        let (Some(shape), Some(data)) = (&config.model.random, &config.data.synthetic) else {
            return Err(Error::Compute("a random model without synthetic logs".into()));
        };
        let spec =
            Spec { safe_share: data.sft_safe_share, ..Spec::new(config.seed, Split::Train, data.sft_rows) };
        let corpus = synthetic::rows(&spec);
        let texts: Vec<&str> = corpus
            .iter()
            .flat_map(|row| {
                let messages = row["prompt"].as_array().into_iter().flatten();
                messages.filter_map(|m| m["content"].as_str()).chain(row["chosen"].as_str())
            })
            .collect();
        let tokenizer = byte_tokenizer::build(texts.into_iter(), &synthetic::phrases(), shape.vocab_size)
            .map_err(|error| match error {
                Error::Config { got, want, why, .. } => {
                    Error::config("model.random.vocab_size", got, want, why)
                }
                other => other,
            })?;
        std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the tokenizer folder"))?;
        byte_tokenizer::save_pretrained(&tokenizer, dir)?;
        let encoder = PromptEncoder::load(&EncoderFiles::of(dir))?;
        let json = serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.attention_heads,
            "num_key_value_heads": shape.key_value_heads, "vocab_size": tokenizer.get_vocab_size(true),
            "rms_norm_eps": 1e-5, "rope_theta": shape.rope_theta, "tie_word_embeddings": true,
            "max_position_embeddings": config.model.max_positions,
            "eos_token_id": encoder.stop_tokens().ids(),
        });
        let model = config_json::from_json(&json, "model.random")?;
        let decoder = Decoder::random_on(place, model, config.seed, config.model.max_positions)?;
        let companions = Companions { tokenizer_dir: dir.into(), chat_template: None, model_dir: dir.into() };
        let rows = Rows::load(config, &task, &encoder, sinks)?;
        Ok((Self::assemble(task, encoder, rows, companions), decoder))
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

    /// Holds the log-probs of what was saved as `target` against those in memory, on a held-out prompt.
    ///
    /// # Errors
    /// A difference above `bound`, in nats.
    pub fn compare(&self, decoder: &Decoder, saved: &Decoder, bound: f32, target: &Path) -> Result<()> {
        let ids = self.valid_rows.first().map_or(&[][..], |row| &row.prompt.token_ids);
        let probe =
            Probe { made_from: "a held-out row".into(), token_ids: ids[..ids.len().min(256)].to_vec() };
        let (want, got) = (probe.logprobs(decoder)?, probe.logprobs(saved)?);
        let differences = || want.iter().zip(&got).map(|(a, b)| (a - b).abs());
        // Not by the worst alone: a NaN is below any maximum.
        if differences().all(|difference| difference <= bound) {
            return Ok(());
        }
        let worst = differences().fold(0f32, f32::max);
        let problem = format!("its log-probs differ by {worst:.1e}, and {bound:.1e} is the bound");
        Err(Error::Unfaithful { path: target.to_path_buf(), problem })
    }

    fn assemble(task: Task, encoder: PromptEncoder, rows: Rows, companions: Companions) -> Self {
        let Rows { sft: sft_rows, grpo: grpo_rows, answers: answer_rows, valid: valid_rows } = rows;
        Self { task, encoder, sft_rows, grpo_rows, answer_rows, valid_rows, companions }
    }
}

/// Weights of a folder in HF layout, brought to `place`.
pub fn load_decoder(dir: &Path, max_positions: usize, place: &Placement) -> Result<Decoder> {
    hf::load_decoder(dir, max_positions, place)
}

struct Rows {
    sft: Vec<EncodedRow>,
    grpo: Vec<EncodedRow>,
    answers: Vec<EncodedRow>,
    valid: Vec<EncodedRow>,
}

impl Rows {
    /// Only what the stages use is encoded.
    fn load(config: &Config, task: &Task, encoder: &PromptEncoder, sinks: &mut Sinks) -> Result<Self> {
        let data = &config.data;
        let source = |max_rows, targets| Source {
            task,
            encoder,
            limits: Limits {
                max_prompt_tokens: data.max_prompt_tokens,
                max_target_tokens: data.max_target_tokens,
                max_rows,
                targets,
            },
        };
        let [sft, grpo, answers] =
            [Stage::Sft, Stage::Grpo, Stage::Enumerate].map(|stage| config.stages.contains(&stage));
        let mut keep = |what: &str, dataset: Dataset| {
            for (reason, count) in &dataset.dropped {
                sinks.warn(format!("{what}: dropped {count} rows: {reason}"));
            }
            dataset.rows
        };
        if let Some(synthetic_data) = &data.synthetic {
            let name = Path::new("synthetic logs");
            let encode = |spec: Spec, targets| source(0, targets).encode(name, &synthetic::rows(&spec));
            let spec = Spec::new(config.seed, Split::Train, synthetic_data.sft_rows);
            let for_sft = Spec { safe_share: synthetic_data.sft_safe_share, ..spec };
            // A twin pair starts at an even index; GRPO's prompts begin after the warm-up's.
            let first = synthetic_data.sft_rows.next_multiple_of(2);
            let for_grpo = Spec { first, rows: synthetic_data.grpo_rows, ..spec };
            let valid = Spec::new(config.seed, Split::Test, synthetic_data.valid_rows);
            return Ok(Self {
                sft: if sft { keep("sft", encode(for_sft, Targets::Required)?) } else { Vec::new() },
                grpo: if grpo { keep("grpo", encode(for_grpo, Targets::Ignored)?) } else { Vec::new() },
                answers: match answers {
                    true => keep("enumerate", encode(for_grpo, Targets::Answers)?),
                    false => Vec::new(),
                },
                valid: keep("valid", encode(valid, Targets::Ignored)?),
            });
        }
        let (Some(train), Some(valid)) = (&data.train, &data.valid) else {
            return data.validate().and(Err(Error::Compute("no data".into())));
        };
        let valid = keep("data.valid", source(data.max_valid_rows, Targets::Ignored).load(valid)?);
        let mut load = |targets| -> Result<Vec<EncodedRow>> {
            Ok(keep("data.train", source(data.max_train_rows, targets).load(train)?))
        };
        let sft = if sft { load(Targets::Required)? } else { Vec::new() };
        let grpo = match grpo {
            true if !sft.is_empty() => sft.clone(),
            true => load(Targets::Ignored)?,
            false => Vec::new(),
        };
        let answers = if answers { load(Targets::Answers)? } else { Vec::new() };
        Ok(Self { sft, grpo, answers, valid })
    }
}
