//! What chat templates expect of Python: `json.dumps` behind `tojson`, and `strftime`.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// The `tojson` filter of transformers: `json.dumps(value, ensure_ascii=False, ...)`. Unlike Jinja's own, it
/// does not escape HTML. Arguments: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(super) fn tojson(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let ascii: Option<bool> = args.get("ensure_ascii")?;
    let sort: Option<bool> = args.get("sort_keys")?;
    let (item, key) = match args.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are a pair, (item, key)".into())),
    };
    args.assert_all_used()?;

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
            Some(width) => write!(out, "\n{:1$}", "", width * self.depth),
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
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Default for Date {
    /// 26 July 2024, which the templates of Llama 3.1 and 3.2 write themselves where they are given no clock.
    fn default() -> Self {
        Self { year: 2024, month: 7, day: 26 }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// `None` where there is no such day from the year 1000 to 9999.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let days = match month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let known = (1000..=9999).contains(&year) && (1..=days).contains(&day);
        known.then_some(Self { year, month, day })
    }

    /// 0 is Sunday. Sakamoto's method.
    fn weekday(self) -> usize {
        let shift = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][usize::from(self.month) - 1];
        let year = usize::from(self.year) - usize::from(self.month < 3);
        (year + year / 4 - year / 100 + year / 400 + shift + usize::from(self.day)) % 7
    }

    fn day_of_year(self) -> usize {
        let before =
            (1..self.month).map(|month| (28..=31).rev().find(|&d| Self::new(self.year, month, d).is_some()));
        before.flatten().map(usize::from).sum::<usize>() + usize::from(self.day)
    }

    /// Python's `strftime` in the C locale.
    ///
    /// # Errors
    /// A code that is not known here.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            // `%-d` is `%d` without its leading zero, in glibc.
            let (code, bare) = match chars.next() {
                Some('-') => (chars.next(), true),
                code => (code, false),
            };
            let text = code.and_then(|code| self.field(code)).ok_or_else(|| {
                invalid(format!("strftime_now: `%{}` is not known", code.map_or("".into(), String::from)))
            })?;
            let kept = if bare { text.trim_start_matches(['0', ' ']) } else { &text };
            out.push_str(if kept.is_empty() { "0" } else { kept });
        }
        Ok(out)
    }

    fn field(self, code: char) -> Option<String> {
        let month = MONTHS[usize::from(self.month) - 1];
        let weekday = WEEKDAYS[self.weekday()];
        Some(match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year()),
            'B' => month.into(),
            'b' | 'h' => month[..3].into(),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            'H' | 'M' | 'S' => "00".into(),
            'I' => "12".into(),
            'p' => "AM".into(),
            'F' => self.to_string(),
            'T' => "00:00:00".into(),
            '%' => "%".into(),
            _ => return None,
        })
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}-{:02}-{:02}", self.year, self.month, self.day)
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
