//! Text from outside as a terminal may see it: labels, names of files and what a template says can hold anything.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with control characters and marks that turn the reading direction as JSON escapes them;
/// line ends and tabs stay. A password within an address is left out.
pub fn printable(text: &str) -> Cow<'_, str> {
    let text = without_passwords(text);
    if !text.contains(is_harmful) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_harmful(c) {
            // Writing to a String cannot fail.
            true => _ = write!(out, "\\u{:04x}", u32::from(c)),
            false => out.push(c),
        }
    }
    out.into()
}

fn is_harmful(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && !matches!(c, '\n' | '\t')) || turns
}

/// `https://name:password@host` as `https://***@host`.
fn without_passwords(text: &str) -> Cow<'_, str> {
    const SCHEME: &str = "://";
    if !text.contains(SCHEME) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(SCHEME) {
        let (before, after) = rest.split_at(at + SCHEME.len());
        out.push_str(before);
        let host = after.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(after.len());
        rest = match after[..host].rfind('@') {
            Some(end) => {
                out.push_str("***");
                &after[end..]
            }
            None => after,
        };
    }
    (out + rest).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_or_hides_a_password_is_written_out() {
        for (text, want) in [
            ("a\tb\nÜ 日本 \u{301}", "a\tb\nÜ 日本 \u{301}"),
            ("\x1b[2J\x07\r\x7f\u{9b}", "\\u001b[2J\\u0007\\u000d\\u007f\\u009b"),
            ("a\u{202e}b\u{2066}", "a\\u202eb\\u2066"),
            ("see https://a:b@c@hub.org/x and http://h/@", "see https://***@hub.org/x and http://h/@"),
            ("://", "://"),
        ] {
            assert_eq!(printable(text), want);
        }
        let json = serde_json::json!({"label\u{202e}": "\x1b\x7f"});
        let again: serde_json::Value = serde_json::from_str(&printable(&json.to_string())).unwrap();
        assert_eq!(again, json);
    }
}
