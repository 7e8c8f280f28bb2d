//! `rlvr report`: runs as one HTML page that needs no network, and as Markdown.

mod answers;
mod charts;
mod histograms;
mod html;
mod markdown;
mod page_data;
mod rewards;
mod run;
mod sources;
mod svg;
mod tables;

pub use html::html;
pub use markdown::markdown;
pub use run::{Evaluation, Run};
