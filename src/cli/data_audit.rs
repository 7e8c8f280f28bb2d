//! `rlvr data audit`: what the reward pays to who does not do the task.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use super::hub;
use crate::error::Error;
use crate::eval::audit::{Audit, Strategy, audit_files};
use crate::eval::audit_rewards::{RewardAudit, audit_rewards};
use crate::eval::bounds::{Heights, WANTED, heights};
use crate::eval::parts::Part;
use crate::reward;
use crate::task::Task;

/// Score strategies that never read a log under the task's reward and both rules, before training.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr data audit train.jsonl --task riskcue-verdict")]
pub struct Args {
    /// Rows with their labels, as for training.
    data: PathBuf,
    /// A built-in task (riskcue, riskcue-verdict, demo, ...) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    /// Recorded answers to compare with, as for `rlvr eval`; also a file of a run's samples/: its last step, or with FILE@STEP that one.
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Rows on which rewards that look at the text or ask somebody are computed, each with some twenty answers.
    #[arg(long, value_name = "N", default_value_t = 16)]
    reward_rows: usize,
    /// Start the programs, and send rows to the addresses, that the task's rewards name.
    #[arg(long)]
    allow_programs: bool,
    /// Show which bounds of [grounded] the rows' own answers pass, and which answers that are none pass with them.
    #[arg(long, conflicts_with = "predictions")]
    grounded: bool,
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let task = Task::load(&args.task)?;
    reward::permitted(&task, args.allow_programs)?;
    let data = hub::rows(&args.data)?;
    if args.grounded {
        let found = heights(&task, &data)?;
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&found).map_err(|e| Error::Compute(e.into()))?)?;
            return Ok(());
        }
        return Ok(found.iter().try_for_each(|bound| write_heights(bound, out))?);
    }
    let found = audit_files(&task, &data, args.predictions.as_deref())?;
    let rewards = audit_rewards(&task, &data, args.reward_rows)?;
    if args.json {
        let found = Whole { found, rewards };
        writeln!(out, "{}", serde_json::to_string_pretty(&found).map_err(|e| Error::Compute(e.into()))?)?;
        return Ok(());
    }
    write_audit(&found, out)?;
    if let Some(rewards) = &rewards {
        write_rewards(rewards, out)?;
    }
    Ok(())
}

#[derive(serde::Serialize)]
struct Whole {
    #[serde(flatten)]
    found: Audit,
    #[serde(skip_serializing_if = "Option::is_none")]
    rewards: Option<RewardAudit>,
}

fn write_rewards(found: &RewardAudit, out: &mut impl Write) -> std::io::Result<()> {
    let RewardAudit { rows, rewards, strategies, warnings } = found;
    writeln!(out, "\nall rewards, on the first {rows} rows")?;
    let width = strategies.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    let columns = || rewards.iter().map(|name| name.chars().count().max(7));
    write!(out, "{:<width$}   reward", "")?;
    rewards.iter().zip(columns()).try_for_each(|(name, width)| write!(out, "  {name:>width$}"))?;
    writeln!(out)?;
    for paid in strategies {
        write!(out, "{:<width$}  {:>7.3}", paid.name, paid.reward)?;
        for (part, width) in paid.parts.iter().zip(columns()) {
            let text = part.map_or("-".into(), |value| format!("{value:.3}"));
            write!(out, "  {text:>width$}")?;
        }
        writeln!(out)?;
    }
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

fn write_heights(found: &Heights, out: &mut impl Write) -> std::io::Result<()> {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    writeln!(out, "grounded.{}, {} benign rows: share that passes by it alone", found.key, found.rows)?;
    writeln!(out, "{:>5}  {:>8}  {:>20}  {:>16}", "at", "target", "another row's target", "question copied")?;
    for height in &found.heights {
        let (targets, others) = (percent(height.targets), percent(height.others));
        writeln!(out, "{:>5.2}  {targets:>8}  {others:>20}  {:>16}", height.at, percent(height.questions))?;
    }
    let wanted = 100.0 * WANTED;
    match found.highest {
        Some(at) => {
            writeln!(out, "{at} is the greatest of these by which {wanted:.0}% of the targets pass\n")
        }
        None => writeln!(out, "by none of these {wanted:.0}% of the targets pass\n"),
    }
}

/// By outcome, to a perfect model and to the strategies that win it; of recorded answers by label.
fn write_parts(parts: &[Part], out: &mut impl Write) -> std::io::Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let width = parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0).max(10);
    write!(out, "\n{:<width$}  weight", "reward of")?;
    first.by_outcome.keys().try_for_each(|outcome| write!(out, "  {outcome}"))?;
    writeln!(out, "  perfect")?;
    for part in parts {
        write!(out, "{:<width$}  {:>6.3}", part.name, part.weight)?;
        for (outcome, value) in &part.by_outcome {
            write!(out, "  {value:>wide$.3}", wide = outcome.len())?;
        }
        writeln!(out, "  {:>7.3}", part.perfect)?;
    }
    for part in parts {
        let earner = |earner: &crate::eval::parts::Earner| format!("{} {:.3}", earner.name, earner.mean);
        write!(out, "{:<width$}  best constant: {}", part.name, earner(&part.constant))?;
        writeln!(
            out,
            "{}",
            part.hollow.as_ref().map_or(String::new(), |h| format!("; best hollow: {}", earner(h)))
        )?;
    }
    if !first.recorded.is_empty() {
        writeln!(out, "\nrecorded answers, mean by gold label")?;
        let wide = first.recorded.keys().map(|label| label.chars().count()).max().unwrap_or(0);
        write!(out, "{:<wide$}", "")?;
        parts.iter().try_for_each(|part| write!(out, "  {:>8}", part.name))?;
        for label in first.recorded.keys() {
            write!(out, "\n{label:<wide$}")?;
            for part in parts {
                let value = part.recorded.get(label).copied().unwrap_or_default();
                write!(out, "  {value:>at$.3}", at = part.name.chars().count().max(8))?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_audit(found: &Audit, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "task {}, {} rows\n", found.task, found.rows)?;
    let all = || found.constant.iter().chain(&found.without_answers).chain(&found.recorded);
    let width = all().map(|s| s.name.chars().count()).max().unwrap_or(0);
    // A task without [paper] has one rule.
    let of_paper = |text: String| if all().any(|s| s.report.has_paper) { text } else { String::new() };
    let head = |out: &mut dyn Write, name: &str| {
        let paper = of_paper("  paper's".into());
        writeln!(out, "{name:<width$}  reward  strict{paper}  exact  recall    FPR  answered")
    };
    let line = |out: &mut dyn Write, s: &Strategy| {
        let cell = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.3}"));
        let (strict, paper) = (&s.report.strict, &s.report.paper);
        writeln!(
            out,
            "{:<width$}  {:>6.3}  {:>6}{}  {:>5}  {:>6}  {:>5}  {:>8}",
            s.name,
            s.reward,
            cell(strict.accuracy),
            of_paper(format!("  {:>7}", cell(paper.accuracy))),
            cell(s.report.exact_label_accuracy),
            cell(strict.recall),
            cell(strict.false_positive_rate),
            cell(s.report.benign_answered)
        )
    };
    head(out, "the same for every log")?;
    found.constant.iter().try_for_each(|s| line(out, s))?;
    writeln!(out, "\nrisky logs flagged rightly, and on every benign one")?;
    found.without_answers.iter().try_for_each(|s| line(out, s))?;
    if let Some(recorded) = &found.recorded {
        writeln!(out)?;
        found.note.iter().try_for_each(|text| writeln!(out, "{text}"))?;
        line(out, recorded)?;
    }
    write_parts(&found.parts, out)?;
    writeln!(out)?;
    for warning in &found.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if found.warnings.is_empty() {
        writeln!(out, "no hole found")?;
    }
    Ok(())
}
