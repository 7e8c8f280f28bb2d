//! `rlvr import`: a GGUF file becomes a model directory in Hugging Face layout.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::machine;
use crate::config::model::DtypeKind;
use crate::formats::gguf::import;
use crate::formats::tiktoken;
use crate::hub::{CHECKPOINTS, short_name, target};

/// Convert a GGUF file into a model directory that the other commands load, or Llama 3's tokenizer.model into a
/// directory for model.tokenizer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr import SmolLM2-135M-Instruct-F16.gguf smollm2-135m-instruct")]
pub struct Args {
    /// The file to read: GGUF of Llama architecture, or tokenizer.model of Llama 3.
    #[arg(value_name = "FILE")]
    pub gguf: PathBuf,
    /// The directory to write; absent or empty. A name without a / is one in checkpoints/. Default: checkpoints/ and the
    /// file's name.
    pub out_dir: Option<PathBuf>,
    /// How the dequantised weights are stored.
    #[arg(long, value_parser = machine::dtype(&[DtypeKind::Bf16, DtypeKind::F32]), default_value = "bf16")]
    pub dtype: DtypeKind,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let named = args.out_dir.clone().unwrap_or_else(|| Path::new(CHECKPOINTS).join(short_name(&args.gguf)));
    let out = target(&named);
    if tiktoken::is_rank_file(&beginning(&args.gguf)) {
        let ids = tiktoken::import(&args.gguf, &out)?;
        println!("read     {} (tiktoken ranks)", args.gguf.display());
        println!(
            "wrote    {} (tokenizer.json, {ids} ids; a chat template of ours in Llama 3.1's form)",
            out.display()
        );
        return Ok(());
    }
    let start = Instant::now();
    let report = import(&args.gguf, &out, args.dtype.on(false))?;
    let kinds = report.stored_as.iter().map(|(kind, count)| format!("{count} {kind}"));
    println!("read     {} ({})", args.gguf.display(), kinds.collect::<Vec<_>>().join(", "));
    println!(
        "model    llama, {} layers, {:.1} M parameters, {} tokens, context {}{}",
        report.config.num_hidden_layers,
        report.parameters as f64 / 1e6,
        report.vocab,
        report.config.max_position_embeddings,
        if report.config.tie_word_embeddings { ", tied head" } else { "" },
    );
    println!(
        "wrote    {} ({} tensors, {:.1} MB, {:.1} s)",
        out.display(),
        report.tensors,
        report.written_bytes as f64 / 1e6,
        start.elapsed().as_secs_f64(),
    );
    for note in &report.notes {
        println!("note     {note}");
    }
    Ok(())
}

/// The first bytes of a file; none where it cannot be read, which the import says better.
fn beginning(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // A read that fails leaves what came before it.
        let _ = file.take(64).read_to_end(&mut bytes);
    }
    bytes
}
