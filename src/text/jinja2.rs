//! Where minijinja differs from Jinja2 and templates of real models notice: what a list looks like when printed,
//! methods of texts, and a few tests and filters. `tests/golden/templates/idioms.txt` is held against Jinja2.
//!
//! Still different: `%` between texts, tuples (they are lists), `wordcount`, `str.center` and `str.swapcase`. All but
//! tuples are refused with an error.

use std::fmt::Write;

use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::template_limits::{elements, format_widths, nesting, width};

/// Makes `env` behave like transformers' Jinja2 environment.
pub(super) fn configure(env: &mut Environment) {
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            out.write_str(&repr(value)?).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    env.set_unknown_method_callback(method);
    env.add_filter("string", |value: &Value| match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => repr(value),
        _ => Ok(value.to_string()),
    });
    for name in ["length", "count"] {
        env.add_filter(name, length);
    }
    env.add_filter("trim", |text: &Value, chars: Option<&str>| strip(&text.to_string(), chars, Side::Both));
    env.add_test("iterable", |v: &Value| !v.is_none() && (v.as_str().is_some() || v.try_iter().is_ok()));
    env.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    env.add_test("number", |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
}

/// An undefined value has no elements.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value
        .len()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{} has no length", value.kind())))
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Left,
    Right,
    Both,
}

/// `str.strip`. Python's white space has four control characters more than Unicode's.
fn strip(text: &str, chars: Option<&str>, side: Side) -> String {
    let dropped = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => c.is_whitespace() || ('\x1c'..='\x1f').contains(&c),
    };
    let text = if side == Side::Right { text } else { text.trim_start_matches(dropped) };
    if side == Side::Left { text.into() } else { text.trim_end_matches(dropped).into() }
}

/// Methods that minijinja-contrib lacks or has otherwise; it does the rest.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let side = match name {
                "lstrip" => Side::Left,
                "rstrip" => Side::Right,
                _ => Side::Both,
            };
            Value::from(strip(text, chars, side))
        }
        // Nothing is no digit, no letter and not upper case.
        "isdigit" | "isnumeric" | "isalpha" | "isalnum" | "isspace" | "isupper" | "islower"
            if text.is_empty() =>
        {
            let () = from_args(args)?;
            Value::from(false)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            Value::from_serialize([before, if before == text { "" } else { separator }, after])
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            Value::from_serialize([before, if after == text { "" } else { separator }, after])
        }
        "rsplit" if !args.is_empty() => {
            let (separator, most): (&str, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            Value::from_serialize(parts)
        }
        // Nothing stands before every character, and at the end.
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(if part.is_empty() { text.chars().count() + 1 } else { text.matches(part).count() })
        }
        "format" => {
            format_widths(std::slice::from_ref(value))?;
            return unknown_method_callback(state, value, name, args);
        }
        "join" => {
            elements(args)?;
            return unknown_method_callback(state, value, name, args);
        }
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let at = text.find(part).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "index: the text does not hold this part")
            })?;
            Value::from(text[..at].chars().count())
        }
        "ljust" | "rjust" => {
            let (columns, fill): (usize, Option<char>) = from_args(args)?;
            let missing = width(columns)?.saturating_sub(text.chars().count());
            let fill: String = std::iter::repeat_n(fill.unwrap_or(' '), missing).collect();
            Value::from(if name == "ljust" { text.to_string() + &fill } else { fill + text })
        }
        "zfill" => {
            let (columns,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let missing = width(columns)?.saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        _ => return unknown_method_callback(state, value, name, args),
    })
}

/// `repr` of Python.
fn repr(value: &Value) -> Result<String, Error> {
    nesting(value)?;
    Ok(written(value))
}

fn written(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => repr_text(text),
        (ValueKind::Seq | ValueKind::Iterable, _) => {
            format!("[{}]", list(value.try_iter().into_iter().flatten().map(|v| written(&v)).collect()))
        }
        (ValueKind::Map, _) => {
            let items = value.try_iter().into_iter().flatten().map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", written(&key), written(&item))
            });
            format!("{{{}}}", list(items.collect()))
        }
        (ValueKind::Undefined, _) => "Undefined".into(),
        _ => value.to_string(),
    }
}

fn repr_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            // Writing to a String cannot fail.
            c if c.is_control() && u32::from(c) < 0x100 => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}
