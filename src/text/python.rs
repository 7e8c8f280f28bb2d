//! What chat templates expect of Python: `json.dumps` behind `tojson`, and `strftime`.

use std::io::{self, Write};

use jiff::civil;
use jiff::fmt::strtime;
use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::template_limits::{nesting, width};

/// The `tojson` filter of transformers: `json.dumps(value, ensure_ascii=False, ...)`. Unlike Jinja's own, it
/// does not escape HTML. Arguments: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(super) fn tojson(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let indent = indent.map(width).transpose()?;
    let ascii: Option<bool> = args.get("ensure_ascii")?;
    let sort: Option<bool> = args.get("sort_keys")?;
    let (item, key) = match args.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are a pair, (item, key)".into())),
    };
    args.assert_all_used()?;
    nesting(value)?;

    let fault = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}"));
    let mut value = serde_json::to_value(value).map_err(fault)?;
    if sort == Some(true) {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    let layout = Layout { item, key, indent, depth: 0, is_empty: true };
    value.serialize(&mut Serializer::with_formatter(&mut out, layout)).map_err(fault)?;
    let text = String::from_utf8(out).map_err(|e| invalid(e.to_string()))?;
    Ok(if ascii == Some(true) { escape_non_ascii(&text) } else { text })
}

fn invalid(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// Outside of strings JSON is ASCII, so every other character may be escaped where it stands.
fn escape_non_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c < '\x7f' {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// The layout of Python's `json.dumps`.
struct Layout {
    item: String,
    key: String,
    /// Spaces a level; none keeps all on one line.
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost list or object has no element yet.
    is_empty: bool,
}

impl Layout {
    fn begin<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        out.write_all(bracket)
    }

    fn end<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(out)?;
        }
        self.is_empty = false;
        out.write_all(bracket)
    }

    fn element<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.new_line(out)
    }

    fn new_line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(width) => {
                out.write_all(b"\n")?;
                (0..self.depth).try_for_each(|_| write!(out, "{:1$}", "", width))
            }
            None => Ok(()),
        }
    }
}

impl Formatter for Layout {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.element(out, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.element(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
}

/// The day that `strftime_now` gives to a template, at 00:00. Fixed, because a prompt that changes with the
/// clock is another prompt tomorrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(civil::Date);

impl Default for Date {
    /// 26 July 2024, which the templates of Llama 3.1 and 3.2 write themselves where they are given no clock.
    fn default() -> Self {
        Self(civil::date(2024, 7, 26))
    }
}

/// Codes that jiff and Python's `strftime` in the C locale write alike.
const CODES: &str = "aAbBCdDeFghHIjmMnpRStTuUVwWyY%";

impl Date {
    /// `None` where there is no such day from the year 1000 to 9999.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let known = |n: u8| i8::try_from(n).ok();
        let year = i16::try_from(year).ok().filter(|year| *year >= 1000)?;
        civil::Date::new(year, known(month)?, known(day)?).ok().map(Self)
    }

    /// Python's `strftime` in the C locale.
    ///
    /// # Errors
    /// A code that is not known here.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let mut chars = format.chars();
        while chars.find(|c| *c == '%').is_some() {
            // `%-d` is `%d` without its leading zero, in glibc.
            let code = match chars.next() {
                Some('-') => chars.next(),
                code => code,
            };
            if !code.is_some_and(|code| CODES.contains(code)) {
                let code = code.map_or(String::new(), String::from);
                return Err(invalid(format!("strftime_now: `%{code}` is not known")));
            }
        }
        let midnight = self.0.to_datetime(civil::Time::midnight());
        strtime::format(format, midnight).map_err(|e| invalid(format!("strftime_now: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(expression: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        env.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap()
    }

    #[test]
    fn tojson_writes_what_json_dumps_writes() {
        // Each right side is the output of CPython's json.dumps(value, ensure_ascii=False, ...).
        for (expression, want) in [
            (r#"[1, true, none, "é<'&\n"] | tojson"#, r#"[1, true, null, "é<'&\n"]"#),
            (r#"{"a": {"b": []}} | tojson"#, r#"{"a": {"b": []}}"#),
            (r#"{"a": [1, {}]} | tojson(indent=2)"#, "{\n  \"a\": [\n    1,\n    {}\n  ]\n}"),
            (r#"[1, [2]] | tojson(separators=(",", ":"))"#, "[1,[2]]"),
            (r#"{"b": 1, "a": 2} | tojson(sort_keys=true)"#, r#"{"a": 2, "b": 1}"#),
            (r#""é😀" | tojson(ensure_ascii=true)"#, r#""\u00e9\ud83d\ude00""#),
            ("[[], [[1]]] | tojson(indent=1)", "[\n [],\n [\n  [\n   1\n  ]\n ]\n]"),
        ] {
            assert_eq!(rendered(expression), want, "{expression}");
        }
    }

    #[test]
    fn a_date_formats_like_strftime() {
        let date = Date::default();
        assert_eq!(
            date.format("%d %b %Y, %A %B %-m %y %j %H:%M:%S %%").unwrap(),
            "26 Jul 2024, Friday July 7 24 208 00:00:00 %"
        );
        let new_year = Date::new(2000, 1, 1).unwrap();
        assert_eq!(new_year.format("%a %e|%-d|%F|%I %p").unwrap(), "Sat  1|1|2000-01-01|12 AM");
        assert_eq!(Date::new(2024, 12, 31).unwrap().format("%j %a").unwrap(), "366 Tue");
        assert!(date.format("%Q").unwrap_err().to_string().contains("`%Q` is not known"));
        assert!(date.format("50%").is_err());
    }

    #[test]
    fn only_days_of_the_calendar_are_dates() {
        assert!(Date::new(2024, 2, 29).is_some() && Date::new(2000, 2, 29).is_some());
        for (year, month, day) in
            [(2023, 2, 29), (1900, 2, 29), (2024, 4, 31), (2024, 13, 1), (2024, 0, 1), (24, 1, 1)]
        {
            assert_eq!(Date::new(year, month, day), None);
        }
    }
}
