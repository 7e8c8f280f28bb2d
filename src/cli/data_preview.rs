//! `rlvr data preview`: a row as the model sees it, with the tokens that SFT trains on marked.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::ColorChoice;

use super::hub;
use super::text::TextArgs;
use crate::data::preview::Preview;
use crate::task::Task;
use crate::text::EndOfTurnSource;

/// Show one row as the model sees it, with the part that SFT trains on marked.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: rlvr data preview train.jsonl --task riskcue-verdict --model smollm2-135m-instruct"
)]
pub struct Args {
    /// JSON Lines, a JSON list, CSV, TSV or parquet, or hf:org/name:split of the hub.
    file: PathBuf,
    /// A built-in task (riskcue, demo) or a task file.
    #[arg(long, default_value = "riskcue")]
    task: String,
    /// Model folder, short name or hub name, for its tokenizer and chat template.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// The row's line in the file, counted from 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    row: usize,
    /// Mark with colours or with brackets; auto: colours on a terminal, unless NO_COLOR is set.
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// What stands around tokens of one kind.
struct Marks {
    prompt: [&'static str; 2],
    answer: [&'static str; 2],
    end: [&'static str; 2],
}

const RESET: &str = "\x1b[0m";
const COLOURS: Marks =
    Marks { prompt: ["\x1b[2m", RESET], answer: ["\x1b[1;32m", RESET], end: ["\x1b[1;35m", RESET] };
const BRACKETS: Marks = Marks { prompt: ["", ""], answer: ["[[", "]]"], end: ["((", "))"] };

fn marks(choice: ColorChoice) -> &'static Marks {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => &COLOURS,
        ColorChoice::Auto if std::io::stdout().is_terminal() && !no_colour => &COLOURS,
        ColorChoice::Auto | ColorChoice::Never => &BRACKETS,
    }
}

pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let marks = marks(args.color);
    let task = Task::load(&args.task)?;
    let encoder = args.text.encoder(&args.model)?;
    let preview = Preview::read(&task, &encoder, &hub::rows(&args.file)?, args.row)?;
    let tokenizer = encoder.tokenizer();
    let shown = |ids: &[u32], [open, close]: [&str; 2]| {
        tokenizer.decode_whole(ids).map(|text| format!("{open}{}{close}", visible(&text)))
    };

    write!(out, "{}", shown(&preview.prompt, marks.prompt)?)?;
    let tokens = preview.prompt.len();
    let written = match preview.control_texts.as_slice() {
        [] => String::new(),
        texts => format!("; {} in the row's texts are text", texts.join(", ")),
    };
    let trained = match preview.trained(&task, &encoder) {
        Ok(Some(trained)) => trained,
        Ok(None) => {
            writeln!(out, "\n\nprompt   {tokens} tokens{written}\ntrained  nothing: the row has no target")?;
            return Ok(());
        }
        Err(error) => {
            writeln!(out)?;
            return Err(error.into());
        }
    };
    writeln!(out, "{}{}\n", shown(&trained.answer, marks.answer)?, shown(&trained.end, marks.end)?)?;
    writeln!(out, "prompt   {tokens} tokens{written}")?;
    let [answer_so, end_so] = [marks.answer, marks.end].map(|[open, close]| format!("{open}so{close}"));
    let (answer, end) = (trained.answer.len(), trained.end.len());
    writeln!(
        out,
        "trained  {} tokens: {answer} of the answer, marked {answer_so}, {end} of the end of the turn, marked {end_so}",
        answer + end
    )?;
    if encoder.end_of_turn().source == EndOfTurnSource::EosToken {
        writeln!(out, "         the chat template shows no end of an answer, so the eos token is used")?;
    }
    let stops = encoder.stop_tokens().ids().iter();
    let stops = stops.map(|id| format!("{} ({id})", tokenizer.token(*id).unwrap_or_else(|| "?".into())));
    writeln!(out, "stop     {}", stops.collect::<Vec<_>>().join(", "))?;
    let agreement = if trained.agrees { "the answer says so too" } else { "but the answer is not judged so" };
    writeln!(out, "label    {}, {agreement}", preview.sample.gold)?;
    Ok(())
}

/// Control characters are written out: a log may hold sequences that a terminal would obey.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::byte_tokenizer;

    const ROW: &str = r#"{"prompt": [{"role": "user", "content": "a\u001b[2J"}], "security_type": ["Safe"], "chosen": "ok"}"#;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn preview(more: &[&str]) -> (String, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
        let file = dir.path().join("rows.jsonl");
        std::fs::write(&file, ROW).unwrap();
        let words = ["preview", file.to_str().unwrap(), "--model", dir.path().to_str().unwrap()];
        let cli = <Cli as clap::Parser>::try_parse_from(words.iter().chain(more)).unwrap();
        let mut out = Vec::new();
        let result = run(&cli.args, &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn answer_and_end_are_marked_and_control_characters_disarmed() {
        let (text, result) = preview(&["--color", "never"]);
        result.unwrap();
        let shown = "<|im_start|>user\na\\u{1b}[2J<|im_end|>\n<|im_start|>assistant\n[[ok]]((<|im_end|>))\n";
        assert!(text.starts_with(shown), "{text}");
        // 3 special tokens, `user`, `assistant`, 3 line ends and 5 bytes of content; 2 bytes and the end token.
        assert!(text.contains("prompt   24 tokens\ntrained  3 tokens: 2 of the answer"), "{text}");
        let stop = "stop     <|endoftext|> (0), <|im_end|> (2)\nlabel    Safe, the answer says so too";
        assert!(text.contains(stop), "{text}");
        let (coloured, _) = preview(&["--color", "always"]);
        assert!(coloured.contains("\x1b[1;32mok\x1b[0m\x1b[1;35m<|im_end|>\x1b[0m"), "{coloured}");
    }

    #[test]
    fn an_absent_row_is_named() {
        let error = preview(&["--row", "2"]).1.unwrap_err();
        assert!(error.to_string().contains("rows.jsonl:2: there is no such line"), "{error}");
    }
}
