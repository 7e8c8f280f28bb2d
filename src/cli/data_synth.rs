//! `rlvr data synth`: write the synthetic logs as files.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::data::synthetic::{self, Spec, Split, StyleSet};
use crate::error::Error;

/// Write synthetic MCP logs in RiskCue's row form: DIR/train.jsonl and DIR/valid.jsonl.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr data synth --out data/riskcue")]
pub struct Args {
    /// Folder to write to; made if it is missing. Files of these names in it are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Rows of train.jsonl.
    #[arg(long, value_name = "N", default_value_t = 4000)]
    rows: usize,
    /// Rows of valid.jsonl, half of them Safe.
    #[arg(long, value_name = "N", default_value_t = 400)]
    valid_rows: usize,
    /// Share of Safe rows in train.jsonl. RiskCue's training set has 0.24.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    safe_share: f64,
    /// How valid.jsonl is written: as train.jsonl, or in the style kept for held-out logs.
    #[arg(long, value_enum, default_value_t = Style::HeldOut)]
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Style {
    Train,
    HeldOut,
}

pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    if !(0.0..=1.0).contains(&args.safe_share) {
        let problem = format!("{} is not a share", args.safe_share);
        return Err(Error::input("--safe-share", problem, "Give a number between 0 and 1").into());
    }
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out, "create the folder"))?;
    let train = Spec { safe_share: args.safe_share, ..Spec::new(args.seed, Split::Train, args.rows) };
    let valid = match args.style {
        Style::Train => {
            Spec { style: StyleSet::Train, ..Spec::new(args.seed, Split::Valid, args.valid_rows) }
        }
        Style::HeldOut => Spec::new(args.seed, Split::Test, args.valid_rows),
    };
    for (name, spec) in [("train.jsonl", train), ("valid.jsonl", valid)] {
        let path = args.out.join(name);
        synthetic::write(&path, &spec)?;
        writeln!(out, "{}: {} rows", path.display(), spec.rows)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn args(out: &Path) -> Args {
        Args { out: out.into(), seed: 1, rows: 10, valid_rows: 4, safe_share: 0.5, style: Style::HeldOut }
    }

    #[test]
    fn writes_the_rows_of_the_generator() {
        let dir = tempfile::tempdir().unwrap();
        let mut said = Vec::new();
        run(&args(&dir.path().join("a/b")), &mut said).unwrap();
        assert!(String::from_utf8(said).unwrap().contains("train.jsonl: 10 rows"));
        let valid = std::fs::read_to_string(dir.path().join("a/b/valid.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> =
            valid.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, synthetic::rows(&Spec::new(1, Split::Test, 4)));
        assert_eq!(lines[0]["metadata"]["style"], "mixed");
    }

    #[test]
    fn bad_input_names_the_flag_or_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let error = run(&Args { safe_share: 1.5, ..args(dir.path()) }, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("--safe-share: 1.5"), "{error}");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = run(&args(&file), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("cannot create the folder"), "{error}");
    }
}
