//! What is exported, and as what.

use candle_core::DType;

use super::probe::Probe;
use crate::formats::gguf::Quantisation;
use crate::formats::hf::Companions;
use crate::formats::hf::weights::SaveOptions;
use crate::model::decoder::Decoder;

/// What a model becomes.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// A folder in Hugging Face layout.
    Folder(SaveOptions),
    /// One GGUF file.
    Gguf(Quantisation),
    /// A folder in PEFT layout with the decoder's adapter alone.
    Adapter,
}

/// A model to export.
pub struct Source<'a> {
    /// f32 on the CPU; with an adapter beside the weights for [`Format::Adapter`] only.
    pub decoder: Decoder,
    /// The type every weight of `decoder` can be stored in without loss: that of its own files.
    pub stored: DType,
    pub companions: &'a Companions,
    /// `general.name` of a GGUF file; the model that an adapter belongs to, as PEFT looks it up.
    pub name: &'a str,
    pub probe: &'a Probe,
}
