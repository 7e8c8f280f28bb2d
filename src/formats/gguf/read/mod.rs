//! A model as a GGUF file, or several, hold it: its numbers, its tokenizer, and its tensors one at a time.

mod config;
mod container;
mod parts;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;

use super::names::{ROPE_TABLE, gguf_name, hf_rows};
use crate::error::Result;
use crate::model::config::ModelConfig;
use config::{config, family};
use container::Gguf;
use parts::open_whole;
use tokenizer::{TokenizerFiles, tokenizer_files};

const AGAIN: &str = "Convert the model again";
const OTHER_MODEL: &str = "Import a model without it";

/// A GGUF file with the other parts of its model, if there are any, that has been checked: everything but the tensors' data is read.
pub struct GgufModel {
    pub config: ModelConfig,
    pub(super) tokenizer: TokenizerFiles,
    /// Tensors by how the file stores them, such as `Q4_1`.
    pub stored_as: BTreeMap<String, usize>,
    file: Gguf,
}

impl GgufModel {
    /// `gguf` is the file, or any one of several that hold the model together.
    ///
    /// # Errors
    /// A file is missing or damaged, or holds what rlvr does not compute; the metadata key or tensor is named.
    pub fn open(gguf: &Path) -> Result<Self> {
        let file = open_whole(gguf)?;
        let family = family(&file)?;
        let tokenizer = tokenizer_files(&file, family.model_type())?;
        let config = config(&file, family, &tokenizer.ids)?;
        if tokenizer.vocab > config.vocab_size {
            let problem = format!("{} rows for {} tokens", config.vocab_size, tokenizer.vocab);
            return Err(file.wrong("token_embd.weight", problem, AGAIN));
        }
        let stored_as = check_tensors(&file, &config)?;
        Ok(Self { config, tokenizer, stored_as, file })
    }

    /// One parameter by its Hugging Face name, in f32 on the CPU, rows in Hugging Face's order.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        hf_rows(&self.config, name, self.file.dequantise(&gguf_name(name))?)
    }
}

/// Names, shapes and storage types, all before anything is written. Returns how many tensors have which type.
fn check_tensors(file: &Gguf, config: &ModelConfig) -> Result<BTreeMap<String, usize>> {
    let mut stored_as = BTreeMap::new();
    let mut wanted = BTreeSet::from([ROPE_TABLE.to_string()]);
    for (name, shape) in config.parameter_names() {
        let name = gguf_name(&name);
        let (Some(found), Some((kind, readable))) = (file.shape(&name), file.kind(&name)) else {
            return Err(file.wrong(&name, "missing", AGAIN));
        };
        if found != shape {
            return Err(file.wrong(
                &name,
                format!("shape {found:?}, but the metadata want {shape:?}"),
                AGAIN,
            ));
        }
        if !readable {
            let fix =
                "Import a file with F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K tensors";
            return Err(file.wrong(&name, format!("stored as {kind}, which is not supported"), fix));
        }
        *stored_as.entry(kind).or_default() += 1;
        wanted.insert(name);
    }
    match file.tensor_names().find(|name| !wanted.contains(*name)) {
        Some(extra) => {
            Err(file.wrong(extra, "not a tensor of the architecture as rlvr knows it", OTHER_MODEL))
        }
        None => Ok(stored_as),
    }
}
