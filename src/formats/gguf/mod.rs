//! GGUF, llama.cpp's file: a model, its numbers and its tokenizer in one.

mod mixture;
pub mod read;
pub mod write;

pub use mixture::Quantisation;
pub use read::{GgufModel, ROPE_TABLE, gguf_name, gguf_rows, import};
pub use write::write;
