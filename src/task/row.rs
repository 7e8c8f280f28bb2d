//! Where things are in a JSON row: paths such as `security_type[-1]`, and texts with `{path}` holes.

use serde_json::Value;

/// A place in a row: keys joined by dots, `[n]` for the n-th element of a list, `[-1]` for its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowPath {
    text: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(i64),
}

impl RowPath {
    /// Errors say what is wrong with `text`; the caller knows the file and the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("`{text}` is not a path: {why}");
        let mut steps = Vec::new();
        for part in text.split('.') {
            let (key, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
            if key.is_empty() || key.contains(']') {
                return Err(bad("a key is missing"));
            }
            steps.push(Step::Key(key.to_string()));
            let Some(indices) = indices.strip_prefix('[') else { continue };
            let indices = indices.strip_suffix(']').ok_or_else(|| bad("`]` is missing"))?;
            for index in indices.split("][") {
                let index = index.parse().map_err(|_| bad("an index has to be a whole number"))?;
                steps.push(Step::Index(index));
            }
        }
        Ok(Self { text: text.to_string(), steps })
    }

    /// None where the row has nothing at this place, or null.
    pub fn get<'a>(&self, row: &'a Value) -> Option<&'a Value> {
        let found = self.steps.iter().try_fold(row, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => {
                let list = value.as_array()?;
                let from_start =
                    if *index < 0 { index.checked_add_unsigned(list.len() as u64)? } else { *index };
                list.get(usize::try_from(from_start).ok()?)
            }
        })?;
        (!found.is_null()).then_some(found)
    }

    /// The key of the row that it begins with.
    pub fn root(&self) -> &str {
        match self.steps.first() {
            Some(Step::Key(key)) => key,
            _ => "",
        }
    }

    /// Whether this is the content of the last of the messages at `list`.
    pub fn ends(&self, list: &Self) -> bool {
        let last = [Step::Index(-1), Step::Key("content".into())];
        self.steps.strip_prefix(&list.steps[..]).is_some_and(|rest| rest == last)
    }

    /// The list that a path ending with `[-1]` takes the last element of.
    pub fn list<'a>(&self, row: &'a Value) -> Option<&'a [Value]> {
        let (last, steps) = self.steps.split_last()?;
        let list = Self { text: String::new(), steps: steps.to_vec() };
        if *last == Step::Index(-1) { list.get(row)?.as_array().map(Vec::as_slice) } else { None }
    }
}

impl std::fmt::Display for RowPath {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A label as answers write it, and its name in words where the task gives one.
#[derive(Clone, Copy, Debug)]
pub(super) struct LabelText<'a> {
    pub label: &'a str,
    pub name: Option<&'a str>,
}

/// A text with holes: `{path}` is the row's value there, `{{` and `}}` are braces.
#[derive(Clone, Debug)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Hole(RowPath),
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut literal) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let tail = &rest[at..];
            if tail.starts_with("{{") || tail.starts_with("}}") {
                literal.push_str(&tail[..1]);
                rest = &tail[2..];
            } else if let Some((path, after)) = tail.strip_prefix('{').and_then(|t| t.split_once('}')) {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
                pieces.push(Piece::Hole(RowPath::parse(path)?));
                rest = after;
            } else {
                return Err("a brace is not closed; write {{ or }} for a brace in the text".into());
            }
        }
        pieces.push(Piece::Text(literal + rest));
        Ok(Self(pieces))
    }

    pub fn holes(&self) -> impl Iterator<Item = &RowPath> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Hole(path) => Some(path),
            Piece::Text(_) => None,
        })
    }

    /// `{label}` and `{name}` are the label's where one is given that has them, every other hole the row's value: a
    /// string as it is, anything else as JSON. Errs with the path that the row lacks.
    pub fn render(&self, row: &Value, label: Option<LabelText>) -> Result<String, &RowPath> {
        let mut out = String::new();
        for piece in &self.0 {
            let path = match piece {
                Piece::Text(text) => {
                    out.push_str(text);
                    continue;
                }
                Piece::Hole(path) => path,
            };
            let of_label = label.and_then(|label| match path.text.as_str() {
                "label" => Some(label.label),
                "name" => label.name,
                _ => None,
            });
            match (of_label, path.get(row)) {
                (Some(text), _) => out.push_str(text),
                (None, Some(Value::String(text))) => out.push_str(text),
                (None, Some(other)) => out.push_str(&other.to_string()),
                (None, None) => return Err(path),
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_walks_keys_and_indices() {
        let row = json!({"a": {"b": [[1, 2], [3, 4]]}, "n": null});
        let get = |path: &str| RowPath::parse(path).unwrap().get(&row).cloned();
        assert_eq!(get("a.b[0][1]"), Some(json!(2)));
        assert_eq!(get("a.b[-1][-2]"), Some(json!(3)));
        for absent in ["a.c", "a.b[2]", "a.b[-3]", "a[0]", "n", "a.b.c", "a.b[-9223372036854775808]"] {
            assert_eq!(get(absent), None, "{absent}");
        }
    }

    #[test]
    fn bad_paths_say_why() {
        for (path, why) in [
            ("", "a key is missing"),
            ("a..b", "a key is missing"),
            ("[0]", "a key is missing"),
            ("a[0", "`]` is missing"),
            ("a[x]", "whole number"),
            ("a[]", "whole number"),
        ] {
            let error = RowPath::parse(path).unwrap_err();
            assert!(error.contains(why), "{path}: {error}");
        }
    }

    #[test]
    fn a_template_fills_its_holes() {
        let row = json!({"name": "Ann", "n": {"x": [1, 2]}});
        let template = Template::parse("{name}: {{{label}}} {n.x} }}").unwrap();
        assert_eq!(
            template.render(&row, Some(LabelText { label: "S1", name: None })).unwrap(),
            "Ann: {S1} [1,2] }"
        );
        assert_eq!(template.render(&row, None).unwrap_err().to_string(), "label");
        let named = Template::parse("{label}. {name}").unwrap();
        let label = LabelText { label: "B", name: Some("Overlap") };
        assert_eq!(named.render(&row, Some(label)).unwrap(), "B. Overlap");
        assert_eq!(template.holes().map(|p| p.to_string()).collect::<Vec<_>>(), ["name", "label", "n.x"]);
        for bad in ["{name", "name}", "{}", "{a..b}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
