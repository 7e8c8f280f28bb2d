//! `rlvr data split`: a file of rows in parts that share nothing.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use super::hub;
use crate::data::near::NEAR;
use crate::data::overlap::{self, Read};
use crate::data::predictions::field_text;
use crate::data::split::{Item, Parts, split};
use crate::disk::create_aside;
use crate::error::Error;
use crate::task::Task;

/// Divide a file into DIR/train.jsonl, valid.jsonl and test.jsonl: rows of one group, equal rows and nearly equal ones stay
/// together, and every part has its share of every label.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: rlvr data split logs.parquet --task demo --out data --group-by metadata.server"
)]
pub struct Args {
    /// JSON Lines, a JSON list, CSV, TSV or parquet, or hf:org/name:split of the hub.
    file: PathBuf,
    /// A built-in task (riskcue, demo) or a task file: it says what a row's text and label are.
    #[arg(long)]
    task: String,
    /// Folder to write to; made if it is missing. It must have no files of these names.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Rows with the same value of this field stay together, as in metadata.server. A row without it is a group of its own.
    #[arg(long, value_name = "FIELD")]
    group_by: Option<String>,
    /// Share of valid.jsonl.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    valid: f64,
    /// Share of test.jsonl; 0 writes none.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    test: f64,
    /// Rows stay together from this share of equal word triples on; digits, case and what most rows share do not
    /// count. 1: only rows that say exactly the same.
    #[arg(long, value_name = "SHARE", default_value_t = NEAR)]
    near: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Args {
    fn shares(&self) -> Result<Vec<(&'static str, f64)>> {
        for (flag, share) in [("--valid", self.valid), ("--test", self.test)] {
            if !(0.0..1.0).contains(&share) {
                let problem = format!("{share} is not a share");
                return Err(Error::input(flag, problem, "Give a number from 0 to below 1").into());
            }
        }
        let train = 1.0 - self.valid - self.test;
        if train <= 0.0 {
            let fix = "Let --valid and --test leave something";
            return Err(Error::input("--valid, --test", "nothing is left for train.jsonl", fix).into());
        }
        if !(0.0 < self.near && self.near <= 1.0) {
            let problem = format!("{} is no similarity", self.near);
            return Err(Error::input("--near", problem, "Give a number above 0 up to 1").into());
        }
        let all = [("train.jsonl", train), ("valid.jsonl", self.valid), ("test.jsonl", self.test)];
        Ok(all.into_iter().filter(|(_, share)| *share > 0.0).collect())
    }

    /// The value of --group-by of every row, and how many rows have none.
    fn groups(&self, rows: &[Read]) -> (Option<Vec<String>>, usize) {
        let Some(field) = &self.group_by else { return (None, 0) };
        let mut without = 0;
        let groups = rows.iter().map(|row| match field_text(&row.row, field) {
            Some(group) => format!("= {group}"),
            None => {
                without += 1;
                format!("row {}", row.line)
            }
        });
        (Some(groups.collect()), without)
    }
}

pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let shares = args.shares()?;
    let task = Task::load(&args.task)?;
    for (name, _) in &shares {
        let path = args.out.join(name);
        if path.exists() {
            let fix = "Choose another folder, or move the file away";
            return Err(Error::input(path.display(), "exists already", fix).into());
        }
    }
    let rows = overlap::read(&task, &hub::rows(&args.file)?)?;
    let (groups, without) = args.groups(&rows);
    if without == rows.len() && args.group_by.is_some() {
        let fix = "Name a field of the rows, as in metadata.server";
        return Err(Error::input("--group-by", "no row has this field", fix).into());
    }
    let parts_of: Vec<f64> = shares.iter().map(|(_, share)| *share).collect();
    let items: Vec<Item> = rows
        .iter()
        .enumerate()
        .map(|(at, row)| Item {
            input: row.fingerprint,
            label: &row.gold,
            group: groups.as_ref().map(|groups| groups[at].as_str()),
            words: (args.near < 1.0).then_some(&row.shingles),
        })
        .collect();
    let parts = split(&items, args.near, &parts_of, args.seed);
    if let Some(empty) = parts.parts.iter().position(Vec::is_empty) {
        return Err(
            Error::input(args.file.display(), empty_part(shares[empty].0, &parts), advice(args)).into()
        );
    }
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out, "create the folder"))?;
    let mut asides = Vec::new();
    for ((name, _), part) in shares.iter().zip(&parts.parts) {
        let path = args.out.join(name);
        let mut text = String::new();
        part.iter().for_each(|at| text.extend([rows[*at].row.to_string(), "\n".into()]));
        let (aside, mut file) = create_aside(&path).map_err(Error::io(&path, "write"))?;
        file.write_all(text.as_bytes()).map_err(Error::io(&aside, "write"))?;
        asides.push(aside);
    }
    // Named together, so that one that was killed is not in the way of the next.
    for (((name, _), part), aside) in shares.iter().zip(&parts.parts).zip(asides) {
        let path = args.out.join(name);
        std::fs::rename(aside, &path).map_err(Error::io(&path, "write"))?;
        writeln!(out, "{}: {} rows: {}", path.display(), part.len(), labels(&task, &rows, part))?;
    }
    writeln!(
        out,
        "{} of {} rows are bound to others by a group or by what they say; the largest set has {}",
        parts.bound,
        rows.len(),
        parts.largest_group
    )?;
    if without > 0 {
        writeln!(out, "warning: {without} rows have no `{}`", args.group_by.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

fn empty_part(name: &str, parts: &Parts) -> String {
    format!("nothing falls to {name}: {} sets of rows, the largest of {}", parts.groups, parts.largest_group)
}

fn advice(args: &Args) -> &'static str {
    match &args.group_by {
        Some(_) => "Take a field with more values, give more rows, or a higher --near",
        None => "Give more rows, or a higher --near",
    }
}

fn labels(task: &Task, rows: &[Read], part: &[usize]) -> String {
    let mut text = String::new();
    for label in task.labels() {
        let count = part.iter().filter(|at| rows[**at].gold == *label).count();
        if count > 0 {
            let _ = write!(text, "{}{label} {count}", if text.is_empty() { "" } else { ", " });
        }
    }
    text
}
