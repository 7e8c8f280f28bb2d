//! GGUF, llama.cpp's file: a model, its numbers and its tokenizer in one.

mod import;
mod mixture;
mod names;
mod pre_tokenizer;
mod read;
mod tensor_type;
mod token_type;
mod write;

pub use import::{ImportReport, import};
pub use mixture::Quantisation;
pub use names::gguf_name;
pub use read::GgufModel;
pub use write::write;
