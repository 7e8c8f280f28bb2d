//! Text to token ids and back: the tokenizer, the chat template, and what ends an answer.

mod bound;
pub mod byte_tokenizer;
pub mod chat_template;
mod control;
mod encoder;
mod foreign;
mod guarded;
mod jinja2;
mod namespaces;
mod pretrained;
mod python;
mod stop;
mod template_limits;
pub mod tokenizer;
pub mod watched;
mod written;

pub use chat_template::{ChatTemplate, Date};
pub use encoder::{EncoderFiles, PromptEncoder};
pub use pretrained::{SpecialTokens, chat_template_text};
pub use stop::{EndOfTurn, EndOfTurnSource, StopTokens};
pub use tokenizer::Tokenizer;
