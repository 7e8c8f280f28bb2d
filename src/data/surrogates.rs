//! Halves of characters. JSON can escape what UTF-16 writes as two units, and tools that cut texts by units leave one of them;
//! no Unicode text can hold it.

/// `json` with U+FFFD for every half of a surrogate pair that stands alone, as Python reads it with `errors="replace"`; `None`
/// where there is none.
pub(super) fn replaced(json: &str) -> Option<String> {
    let mut out = String::new();
    let (mut kept, mut at) = (0, 0);
    let unit = |at: usize| {
        let hex = json.as_bytes().get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    while let Some(found) = json[at..].find('\\') {
        at += found;
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => {
                out.push_str(&json[kept..at]);
                out.push_str("\\ufffd");
                at += 6;
                kept = at;
            }
            Some(_) => at += 6,
            // Another escape: what it escapes is one character, a backslash perhaps.
            None => at += 1 + json[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    (!out.is_empty()).then(|| out + &json[kept..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_alone_is_replaced_and_a_pair_is_not() {
        for (json, want) in [
            (r#""a\ud83d b""#, Some("a\u{FFFD} b")),
            (r#""\ud83d\ude00""#, None),
            (r#""\ude00\ud83d""#, Some("\u{FFFD}\u{FFFD}")),
            (r#""\ud83d\ud83d\ude00""#, Some("\u{FFFD}\u{1F600}")),
            (r#""\\\\ud83d""#, None),
            (r#""\\\\\ud83d""#, Some("\\\\\u{FFFD}")),
            (r#""\u00e9 \uD83D""#, Some("\u{e9} \u{FFFD}")),
            (r#""é\udc00é""#, Some("é\u{FFFD}é")),
            (r#""\"#, None),
            ("\"\\u12", None),
        ] {
            let replaced = replaced(json);
            let text = replaced.as_deref().map(|json| serde_json::from_str::<String>(json).unwrap());
            assert_eq!(text.as_deref(), want, "{json}");
        }
    }
}
