//! `rlvr data convert`: transcripts of MCP become messages, once for all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::hub;
use crate::data::lines::Place;
use crate::data::raw;
use crate::error::Error;
use crate::task::{Converted, Task};

/// Turn transcripts of MCP into messages in OpenAI's form, and show what became what.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: rlvr data convert capture.jsonl -o rows.jsonl\n         rlvr data convert traces.jsonl --task mine.toml -o rows.jsonl"
)]
pub struct Args {
    /// Captures of a server on stdio, a JSON-RPC message a line, each of which is one conversation. With --task: data files
    /// whose rows have a transcript at input.mcp.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A task file with input.mcp.
    #[arg(long)]
    task: Option<String>,
    /// JSONL to write.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Conversations to show; all are written.
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,
}

pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let task = args.task.as_deref().map(Task::load).transpose()?;
    if let Some(file) = args.files.iter().find(|file| same(file, &args.out)) {
        let problem = "is to be read and to be written";
        return Err(Error::input(file.display(), problem, "Give another name with --out").into());
    }
    let mut made = Vec::new();
    for file in &args.files {
        match &task {
            Some(task) => {
                let file = &hub::rows(file)?;
                for (Place { file, line }, row) in raw::rows(file, usize::MAX)? {
                    made.push((format!("{}:{line}", file.display()), task.converted(&row, &file, line)?));
                }
            }
            None => made.push((file.display().to_string(), capture(file)?)),
        }
    }
    let failed = |e| Error::io(&args.out, "write the rows")(e);
    let mut rows = BufWriter::new(File::create(&args.out).map_err(failed)?);
    for (_, converted) in &made {
        writeln!(rows, "{}", converted.row).map_err(failed)?;
    }
    rows.flush().map_err(failed)?;
    for (place, converted) in made.iter().take(args.show) {
        show(place, converted, out)?;
    }
    writeln!(out, "{} conversations in {}", made.len(), args.out.display())?;
    writeln!(
        out,
        "read them with input.messages = \"messages\" and input.tools = \"tools\" in the task file"
    )?;
    Ok(())
}

fn same(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

fn capture(file: &Path) -> Result<Converted> {
    let bytes = std::fs::read(file).map_err(Error::io(file, "read"))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::input(file.display(), "is not UTF-8", "Save the capture as UTF-8"))?;
    Ok(Converted::of_capture(text.trim_start_matches('\u{FEFF}'), file)?)
}

/// A diff: what was there, a JSON-RPC message a line, and what is there now, a message a line.
fn show(place: &str, converted: &Converted, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "--- {place}")?;
    match &converted.before {
        Value::String(text) => {
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                // As JSON again: a line may hold what a terminal obeys.
                let line: Value = serde_json::from_str(line).unwrap_or_default();
                writeln!(out, "- {line}")?;
            }
        }
        other => {
            for message in other.as_array().into_iter().flatten() {
                writeln!(out, "- {message}")?;
            }
        }
    }
    for message in converted.row["messages"].as_array().into_iter().flatten() {
        writeln!(out, "+ {message}")?;
    }
    for tool in converted.row["tools"].as_array().into_iter().flatten() {
        writeln!(out, "+ tool {tool}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn convert(dir: &Path, words: &[&str]) -> (String, Result<()>) {
        let at = |word: &&str| match word.ends_with(".jsonl") || word.ends_with(".toml") {
            true => dir.join(word).display().to_string(),
            false => (*word).to_string(),
        };
        let words: Vec<String> = words.iter().map(at).collect();
        let cli = <Cli as clap::Parser>::try_parse_from(std::iter::once("convert".to_string()).chain(words))
            .unwrap();
        let mut out = Vec::new();
        let result = run(&cli.args, &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    const CALL: &str =
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"f","arguments":{"a":1}}}"#;
    const RESULT: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"ok"}]}}"#;

    #[test]
    fn a_capture_becomes_a_row_and_the_diff_says_how() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("capture.jsonl"), format!("{CALL}\r\n{RESULT}\n")).unwrap();
        let (text, result) = convert(dir.path(), &["capture.jsonl", "-o", "rows.jsonl"]);
        result.unwrap();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        let want = [
            format!("- {CALL}"),
            format!("- {RESULT}"),
            r#"+ {"role":"assistant","content":null,"tool_calls":[{"id":"call-1","type":"function","function":{"name":"f","arguments":{"a":1}}}]}"#.into(),
            r#"+ {"role":"tool","content":[{"type":"text","text":"ok"}],"tool_call_id":"call-1","name":"f"}"#.into(),
        ];
        assert_eq!(lines[..4], want, "{text}");
        let rows = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        let row: Value = serde_json::from_str(&rows).unwrap();
        assert_eq!(row["messages"][1]["tool_call_id"], "call-1");
        let error = convert(dir.path(), &["rows.jsonl", "-o", "rows.jsonl"]).1.unwrap_err().to_string();
        assert!(error.contains("is to be read and to be written"), "{error}");
        let error = convert(dir.path(), &["rows.jsonl", "-o", "again.jsonl"]).1.unwrap_err().to_string();
        assert!(
            error.contains("rows.jsonl, line 1: is no JSON-RPC message")
                && !dir.path().join("again.jsonl").exists()
        );
    }

    #[test]
    fn rows_keep_their_other_keys() {
        let dir = tempfile::tempdir().unwrap();
        let row = format!("{{\"label\": \"no\", \"trace\": [{CALL}, {RESULT}]}}\n");
        std::fs::write(dir.path().join("traces.jsonl"), row).unwrap();
        let task = "name = \"t\"\n[input]\nmcp = \"trace\"\n[gold]\npath = \"label\"\n[labels]\nnegative = \"no\"\n\
            positive = [\"yes\"]\n[[verdict]]\ndefault = \"@malformed\"\n";
        std::fs::write(dir.path().join("t.toml"), task).unwrap();
        convert(dir.path(), &["traces.jsonl", "--task", "t.toml", "-o", "rows.jsonl", "--show", "0"])
            .1
            .unwrap();
        let row: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap()).unwrap();
        assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), ["label", "messages"]);
        let error = convert(dir.path(), &["traces.jsonl", "--task", "demo", "-o", "x.jsonl"])
            .1
            .unwrap_err()
            .to_string();
        assert!(error.contains("task `demo`: has no input.mcp to convert"), "{error}");
    }
}
