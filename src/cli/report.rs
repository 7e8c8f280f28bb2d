//! `rlvr report`: runs as an HTML page and as Markdown.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::report::{Run, html, markdown};
use crate::run::replace_file;

/// Write one HTML page, and Markdown, about runs: results, curves, labels, answers, cost, config.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr report runs/demo-001")]
pub struct Args {
    /// Folders of runs; several are drawn over each other. A run that is still going, or was killed, is shown as far
    /// as it came.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The page. Default: report.html in the run's folder, or here for several runs. The Markdown lies beside it, with
    /// the ending .md.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let runs = args.runs.iter().map(|folder| Run::read(folder)).collect::<crate::error::Result<Vec<_>>>()?;
    let page = match (&args.out, args.runs.as_slice()) {
        (Some(path), _) => path.clone(),
        (None, [only]) => only.join("report.html"),
        (None, _) => Path::new("report.html").into(),
    };
    let text = page.with_extension("md");
    replace_file(&page, html(&runs)?.as_bytes())?;
    replace_file(&text, markdown(&runs).as_bytes())?;
    for run in &runs {
        for note in &run.notes {
            eprintln!("{}: {note}", run.name);
        }
    }
    println!("{}\n{}", page.display(), text.display());
    Ok(())
}
