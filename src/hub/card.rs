//! The YAML at the head of a README.

use saphyr_parser::{Event, Parser};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Deeper is no card.
const DEEPEST: usize = 64;

/// What stands between the first two lines of `---`, every scalar as a text. None of a README without.
///
/// # Errors
/// No YAML, or lists in lists without end.
pub(super) fn front_matter(readme: &str) -> Result<Option<Value>> {
    let Some(rest) = readme.trim_start_matches('\u{FEFF}').strip_prefix("---") else { return Ok(None) };
    let Some(end) = rest.find("\n---") else { return Ok(None) };
    let wrong = |problem: String| {
        let fix = "Name a file of it, hf:ORG/NAME:FILE, or tell the repository's owner";
        Error::input("README.md of the data set", format!("its front matter {problem}"), fix)
    };
    // Lists and maps that are not closed yet, each with the key it waits to fill in.
    let mut open: Vec<(Value, Option<String>)> = vec![(Value::Array(Vec::new()), None)];
    for event in Parser::new_from_str(&rest[..=end]) {
        let (event, _) = event.map_err(|e| wrong(format!("is not valid YAML ({e})")))?;
        let value = match event {
            Event::Scalar(text, ..) => Value::String(text.into_owned()),
            Event::Alias(_) => Value::Null,
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() == DEEPEST {
                    return Err(wrong("is nested too deeply".into()));
                }
                let is_map = matches!(event, Event::MappingStart(..));
                open.push((if is_map { Map::new().into() } else { Value::Array(Vec::new()) }, None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some((value, _)) => value,
                None => continue,
            },
            _ => continue,
        };
        match open.last_mut() {
            Some((Value::Array(list), _)) => list.push(value),
            Some((Value::Object(map), key)) => match key.take() {
                Some(key) => drop(map.insert(key, value)),
                None => *key = Some(value.as_str().unwrap_or_default().into()),
            },
            _ => {}
        }
    }
    match open.swap_remove(0).0 {
        Value::Array(documents) => Ok(documents.into_iter().next()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_head_of_a_readme_is_read() {
        let text =
            "\u{FEFF}---\na: &x [1, {b: c}]\n\"d e\":\n- f: >-\n    g\n    h\n- *x\n---\n\n# Title\n---\n";
        let want = json!({"a": ["1", {"b": "c"}], "d e": [{"f": "g h"}, null]});
        assert_eq!(front_matter(text).unwrap(), Some(want));
        for none in ["", "# Title", "---\nno end"] {
            assert_eq!(front_matter(none).unwrap(), None);
        }
        let deep = format!("---\na: {}\n---\n", "[".repeat(500));
        for wrong in ["---\na: [1\nb: 2\n---\n", "---\na: \"\n---\n", &deep] {
            let error = front_matter(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("README.md of the data set: its front matter is ne")
                    || error.contains("YAML"),
                "{error}"
            );
        }
    }
}
