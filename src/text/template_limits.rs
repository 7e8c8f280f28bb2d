//! What a chat template may use. Templates are programs that come with a model: they get instructions, widths and
//! output for any conversation, and none to spare. Memory and time as a whole are bounded in `watched.rs`.

use std::io::{self, Write};
use std::sync::{Arc, LazyLock};

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use regex::Regex;

use super::namespaces;

/// Bytes of a template's text; the longest published ones have some 30 thousand.
pub(super) const MOST_TEXT: usize = 1 << 20;
/// Instructions of one rendering; a message takes some hundred.
pub(super) const MOST_INSTRUCTIONS: u64 = 2_000_000;
/// Bytes of one rendering.
const MOST_OUTPUT: usize = 64 << 20;
/// Columns that something is padded, indented or cut into.
const MOST_WIDTH: usize = 10_000;
/// Elements of a list that a filter takes.
const MOST_ELEMENTS: usize = 1_000_000;
/// Lists within lists that are printed.
const MOST_NESTED: usize = 200;

/// Filters of minijinja that walk a list, or take a width.
const FILTERS: [&str; 24] = [
    "batch",
    "chain",
    "dictsort",
    "first",
    "format",
    "groupby",
    "indent",
    "items",
    "join",
    "last",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
    "zip",
];

/// Bounds the filters of `env`, which call those of `plain`, and its instructions.
pub(super) fn configure(env: &mut Environment, plain: Environment<'static>) {
    env.set_fuel(Some(MOST_INSTRUCTIONS));
    let plain = Arc::new(plain);
    for name in FILTERS {
        let plain = Arc::clone(&plain);
        env.add_filter(name, move |_: &State, args: Rest<Value>| {
            elements(&args)?;
            match name {
                "batch" | "slice" | "indent" => args.iter().skip(1).try_for_each(width_of)?,
                "format" => format_widths(&args)?,
                _ => {}
            }
            plain.empty_state().apply_filter(name, &args)
        });
    }
}

/// Refuses lists that are too long to be walked.
pub(super) fn elements(values: &[Value]) -> Result<(), Error> {
    let long = |value: &&Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
            && value.len().is_some_and(|n| n > MOST_ELEMENTS)
    };
    match values.iter().find(long) {
        None => Ok(()),
        Some(_) => Err(refusal(format!("a list of more than {MOST_ELEMENTS} elements"))),
    }
}

/// `width`, unless it is one that no conversation needs.
pub(super) fn width(width: usize) -> Result<usize, Error> {
    match width <= MOST_WIDTH {
        true => Ok(width),
        false => Err(refusal(format!("a width of {width}, more than {MOST_WIDTH}"))),
    }
}

fn width_of(value: &Value) -> Result<(), Error> {
    match value.as_usize() {
        Some(n) => width(n).map(drop),
        // Keyword arguments.
        None if value.kind() == ValueKind::Map => {
            value.try_iter()?.try_for_each(|key| width_of(&value.get_item(&key)?))
        }
        None => Ok(()),
    }
}

/// Refuses wide fields of `%` and `str.format`: those written, and those taken from an argument.
pub(super) fn format_widths(args: &[Value]) -> Result<(), Error> {
    // A constant that a test compiles.
    static WIDE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"%[^%a-zA-Z]*?(\d{5,}|\*)|\{[^{}]*?\d{5,}|\{[^{}]*\{").ok());
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    match WIDE.as_ref().is_some_and(|wide| wide.is_match(text)) {
        true => Err(refusal(format!(
            "a format with a width of more than {MOST_WIDTH}, or with one of its arguments"
        ))),
        false => Ok(()),
    }
}

/// Refuses values that are nested too deeply to be written out, and lists too long.
pub(super) fn nesting(value: &Value) -> Result<(), Error> {
    fn walk(value: &Value, left: usize) -> Result<(), Error> {
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(());
        }
        if left == 0 {
            return Err(refusal(format!("lists within lists, more than {MOST_NESTED} deep")));
        }
        elements(std::slice::from_ref(value))?;
        let is_map = value.kind() == ValueKind::Map;
        value.try_iter()?.try_for_each(|item| match is_map {
            true => walk(&value.get_item(&item)?, left - 1),
            false => walk(&item, left - 1),
        })
    }
    walk(value, MOST_NESTED)
}

fn refusal(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("asks for {what}"))
}

/// Output that ends at [`MOST_OUTPUT`].
#[derive(Default)]
pub(super) struct Output(pub Vec<u8>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_OUTPUT {
            return Err(io::Error::other(format!("writes more than {} MiB", MOST_OUTPUT >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses what no limit at run time catches: a text without end, and [namespaces] that could come to hold themselves.
/// Gives the line and what stands there.
pub(super) fn check_text(text: &str) -> Result<(), (usize, String)> {
    if text.len() > MOST_TEXT {
        return Err((1, format!("{} bytes, more than {MOST_TEXT}", text.len())));
    }
    namespaces::check(text)
}
