//! The rows of a data file.

mod columnar;
mod delimited;
mod format;
mod list;

use std::collections::VecDeque;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use self::columnar::Columnar;
use self::delimited::Delimited;
use self::format::{Format, Opened};
use self::list::List;
use super::surrogates;
use crate::error::{Error, Result};
use crate::hub;

/// Lines that are worked on at a time: enough for every core, few enough to keep in memory and to show how far it is.
pub(super) const CHUNK: usize = 64;

/// Where a row stands: what errors name.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of several files that are one source, the row's own.
    pub file: Arc<Path>,
    /// Of its line or, where rows are no lines, of the row; 1-based.
    pub line: usize,
}

/// A row.
pub(super) struct Line {
    /// [`Place::line`], counted on through the files of a source.
    pub number: usize,
    pub place: Place,
    content: Content,
}

enum Content {
    /// JSON.
    Text(Vec<u8>),
    Row(Value),
}

impl Line {
    fn text(line: usize, file: &Arc<Path>, bytes: Vec<u8>) -> Self {
        Self::of(line, file, Content::Text(bytes))
    }

    fn row(line: usize, file: &Arc<Path>, row: Value) -> Self {
        Self::of(line, file, Content::Row(row))
    }

    fn of(line: usize, file: &Arc<Path>, content: Content) -> Self {
        Self { number: line, place: Place { file: Arc::clone(file), line }, content }
    }

    /// # Errors
    /// `file:line`: not UTF-8, or not JSON.
    pub fn parse(&self) -> Result<Value> {
        let place = || format!("{}:{}", self.place.file.display(), self.place.line);
        let bytes = match &self.content {
            Content::Row(row) => return Ok(row.clone()),
            Content::Text(bytes) => bytes,
        };
        let text = std::str::from_utf8(bytes.trim_ascii_end()).map_err(|e| {
            let problem = format!("byte {} of the line is not UTF-8", e.valid_up_to() + 1);
            Error::input(place(), problem, "Save the file as UTF-8")
        })?;
        let whole = |text: &str| serde_json::from_str(text);
        // Looked for where the parser stumbles: nearly no line has any.
        let value = whole(text).or_else(|e| mended(text).map_or(Err(e), |text| whole(&text)));
        let value = value.map_err(|e| {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            let within = if e.line() > 1 { format!("line {} of the row, ", e.line()) } else { String::new() };
            let problem = format!("malformed JSON at {within}column {}: {what}", e.column());
            Error::input(place(), problem, "Write one JSON object a line")
        })?;
        Ok(value)
    }

    /// Whether [`Self::parse`] puts U+FFFD in the place of half a character.
    pub fn has_half_characters(&self) -> bool {
        let Content::Text(bytes) = &self.content else { return false };
        std::str::from_utf8(bytes).is_ok_and(|text| surrogates::replaced(text).is_some())
    }
}

/// What Python writes and JSON does not know, written as JSON: halves of characters and numbers that are none.
fn mended(text: &str) -> Option<String> {
    let halves = surrogates::replaced(text);
    without_nan(halves.as_deref().unwrap_or(text)).or(halves)
}

/// The text with `null` for the bare words that Python writes where a number is none, if it has any. A field that is read
/// must then hold something else.
fn without_nan(text: &str) -> Option<String> {
    let mut clean = String::with_capacity(text.len());
    let (mut rest, mut quoted, mut found) = (text, false, false);
    while let Some(next) = rest.chars().next() {
        let word =
            ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| !quoted && rest.starts_with(word));
        let taken = match (next, word) {
            (_, Some(word)) => {
                found = true;
                clean.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            ('\\', _) if quoted => next.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8),
            ('"', _) => {
                quoted = !quoted;
                1
            }
            (other, _) => other.len_utf8(),
        };
        clean.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    found.then_some(clean)
}

/// The row in line `line`, counted from 1 and on through the files of a source, and its place.
///
/// # Errors
/// The file cannot be read, has no such line, or the line is blank or no JSON.
pub fn row_at(path: &Path, line: usize) -> Result<(Place, Value)> {
    let mut lines = Lines::open(path)?;
    loop {
        let chunk = lines.next_chunk(CHUNK)?;
        if let Some(found) = chunk.iter().find(|l| l.number == line) {
            return Ok((found.place.clone(), found.parse()?));
        }
        if chunk.is_empty() || chunk.iter().any(|l| l.number > line) {
            let problem = if line == 0 || line > lines.number() {
                "there is no such line"
            } else {
                "the line is blank"
            };
            let fix = "Lines count from 1; choose one that holds a row";
            return Err(Error::input(format!("{}:{line}", path.display()), problem, fix));
        }
    }
}

/// The number of the last row or line of a data file or of a data set's, as [`Line::number`] counts.
///
/// # Errors
/// As [`Lines::open`].
pub(super) fn last_number(path: &Path) -> Result<usize> {
    let of = |file: PathBuf| counted(&file.into()).map(|(rows, header)| rows + header);
    hub::data_files(path)?.into_iter().map(of).sum()
}

fn count_lines(file: &Arc<Path>) -> Result<usize> {
    Ok(counted(file)?.0)
}

/// Rows, and lines of a header before them.
fn counted(file: &Arc<Path>) -> Result<(usize, usize)> {
    let path: &Path = file;
    let mut opened = format::open(path)?;
    if opened.format == Format::Parquet {
        return Ok((columnar::count(path)?, 0));
    }
    if opened.format == Format::JsonList {
        let mut list = List::new(file, opened.text);
        while list.next_line()?.is_some() {}
        return Ok((list.number(), 0));
    }
    let (mut count, mut last) = (0, b'\n');
    loop {
        let bytes = opened.text.fill_buf().map_err(format::unreadable(path))?;
        let Some(end) = bytes.last() else { break };
        last = *end;
        count += bytes.iter().filter(|byte| **byte == b'\n').count();
        let read = bytes.len();
        opened.text.consume(read);
    }
    let header = usize::from(matches!(opened.format, Format::Delimited(_)));
    Ok(((count + usize::from(last != b'\n')).saturating_sub(header), header))
}

/// Where rows come from, one after the other.
trait Source {
    /// The next row, none at the end.
    fn next_line(&mut self) -> Result<Option<Line>>;

    /// The number of the latest row or line.
    fn number(&self) -> usize;
}

/// Rows of a data file with their numbers: JSON Lines, a JSON list, CSV or TSV, each also packed with gzip or zstd; parquet. Which of
/// them it is, its first bytes tell. Rows count from 1 in lists and parquet; elsewhere a row has the number of its line.
/// The files of a data set of the hub follow each other.
pub(super) struct Lines {
    source: Box<dyn Source>,
    /// Those after the source's.
    files: VecDeque<Arc<Path>>,
    /// Lines of the files before it.
    before: usize,
}

impl Lines {
    /// # Errors
    /// The file cannot be read, or is of another kind, which is named; as [`hub::data_files`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(hub::data_files(path)?.into_iter().map(Arc::from).collect())
    }

    fn of(mut files: VecDeque<Arc<Path>>) -> Result<Self> {
        let first = files.pop_front().unwrap_or_else(|| Path::new("").into());
        Ok(Self { source: source(&first)?, files, before: 0 })
    }

    /// The number of the latest row or line.
    fn number(&self) -> usize {
        self.before + self.source.number()
    }

    fn next_line(&mut self) -> Result<Option<Line>> {
        loop {
            if let Some(mut line) = self.source.next_line()? {
                line.number += self.before;
                return Ok(Some(line));
            }
            let Some(next) = self.files.pop_front() else { return Ok(None) };
            self.before += self.source.number();
            self.source = source(&next)?;
        }
    }

    /// [`Self::open`], and about how many rows there are: blank lines count, and a CSV's line breaks within cells.
    ///
    /// # Errors
    /// As [`Self::open`]; the file is a pipe or a device, which cannot be read twice.
    pub fn open_counted(path: &Path) -> Result<(Self, usize)> {
        if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let problem = "is a pipe or a device, and is read more than once";
            return Err(Error::input(path.display(), problem, "Write the rows to a file first"));
        }
        let files: VecDeque<Arc<Path>> = hub::data_files(path)?.into_iter().map(Arc::from).collect();
        let counts = files.iter().map(count_lines).collect::<Result<Vec<_>>>()?;
        Ok((Self::of(files)?, counts.into_iter().sum()))
    }

    /// At most `count` rows; none at the end of the file.
    pub fn next_chunk(&mut self, count: usize) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let Some(line) = self.next_line()? else { break };
            lines.push(line);
        }
        Ok(lines)
    }
}

fn source(file: &Arc<Path>) -> Result<Box<dyn Source>> {
    let Opened { format, text } = format::open(file)?;
    Ok(match format {
        Format::JsonLines => Box::new(JsonLines { text, file: Arc::clone(file), number: 0 }),
        Format::JsonList => Box::new(List::new(file, text)),
        Format::Delimited(delimiter) => Box::new(Delimited::new(file, text, delimiter)?),
        Format::Parquet => Box::new(Columnar::new(file)?),
    })
}

/// Lines that are not blank.
struct JsonLines {
    text: Box<dyn BufRead>,
    file: Arc<Path>,
    number: usize,
}

impl Source for JsonLines {
    fn next_line(&mut self) -> Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let read = self.text.read_until(b'\n', &mut bytes).map_err(format::unreadable(&self.file))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Line::text(self.number, &self.file, bytes)));
            }
        }
    }

    fn number(&self) -> usize {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n\n{\"a\": 3}\n").unwrap();
        assert_eq!(row_at(&path, 1).unwrap().1["a"], 1);
        assert_eq!(row_at(&path, 3).unwrap().1["a"], 3);
        let error = |line| row_at(&path, line).unwrap_err().to_string();
        assert!(error(2).contains("rows.jsonl:2: the line is blank"));
        for absent in [0, 4, 9] {
            assert!(error(absent).contains("there is no such line"), "{absent}");
        }
    }

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data-files").join(name)
    }

    fn rows(path: &Path) -> Result<Vec<Value>> {
        let rows = Lines::open(path)?.next_chunk(usize::MAX)?;
        rows.iter().map(Line::parse).collect()
    }

    #[test]
    fn the_same_rows_in_every_kind_of_file() {
        let want = rows(&golden("rows.jsonl")).unwrap();
        assert_eq!(want.len(), 3);
        let whole = ["rows.jsonl.gz", "rows.jsonl.zst", "datasets.parquet"].into_iter();
        let packings = ["none", "snappy", "gzip", "zstd"].map(|name| format!("pyarrow-{name}.parquet"));
        for name in whole.map(String::from).chain(packings) {
            assert_eq!(rows(&golden(&name)).unwrap(), want, "{name}");
            assert_eq!(count_lines(&golden(&name).into()).unwrap(), 3, "{name}");
        }
        let two = |row: &Value| serde_json::json!({"text": row["text"], "label": row["label"]});
        let want: Vec<Value> = want.iter().map(two).collect();
        for name in ["pandas.csv", "pandas.tsv", "semicolons.csv", "pandas-list.json", "pandas-pretty.json"] {
            assert_eq!(rows(&golden(name)).unwrap(), want, "{name}");
        }
        let with_index = rows(&golden("index.csv")).unwrap();
        assert_eq!(with_index.iter().map(two).collect::<Vec<_>>(), want);
        assert_eq!(with_index[2][""], "2");
        let lines = Lines::open(&golden("pandas.csv")).unwrap().next_chunk(9).unwrap();
        assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [2, 3, 5]);
    }

    #[test]
    fn columns_that_no_json_has_are_read_or_nothing() {
        let row = &rows(&golden("odd.parquet")).unwrap()[0];
        let want =
            serde_json::json!({"text": "a", "blob": null, "utf8": "text", "nan": null, "map": {"k": 1}});
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&row[key], value, "{key}");
        }
        assert!(row["when"].as_str().unwrap().starts_with("2026-11-28 01:02:03"), "{row}");
        assert!(row["day"].as_str().unwrap().starts_with("2026-11-28"), "{row}");
    }

    #[test]
    fn rows_count_on_through_the_files_of_a_source() {
        let dir = tempfile::tempdir().unwrap();
        let [first, empty, last] = ["a.jsonl", "b.jsonl", "c.jsonl"].map(|name| dir.path().join(name));
        std::fs::write(&first, "{\"a\": 1}\n\n{\"a\": 2}\n\n").unwrap();
        std::fs::write(&empty, "").unwrap();
        std::fs::write(&last, "{\"a\": 3}\nno\n").unwrap();
        let files = [first, empty, golden("rows.jsonl.gz"), last].map(Arc::from);
        let mut lines = Lines::of(files.into()).unwrap();
        let rows = lines.next_chunk(99).unwrap();
        assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), [1, 3, 5, 6, 7, 8, 9]);
        assert_eq!(rows.iter().map(|row| row.place.line).collect::<Vec<_>>(), [1, 3, 1, 2, 3, 1, 2]);
        assert_eq!(rows[5].parse().unwrap()["a"], 3);
        let error = rows[6].parse().unwrap_err().to_string();
        assert!(error.contains("c.jsonl:2: malformed JSON") && lines.number() == 9, "{error}");
    }

    #[test]
    fn broken_files_are_named_by_row_and_cause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let parquet = std::fs::read(golden("pyarrow-snappy.parquet")).unwrap();
        let mut worn = parquet.clone();
        worn[4..400].fill(0xA5);
        let packed = std::fs::read(golden("rows.jsonl.gz")).unwrap();
        let cases: [(&[u8], &str); 17] = [
            (b"[{\"a\": 1} {\"a\": 2}]", "rows:2: neither a comma nor"),
            (b"[{\"a\": 1},]", "rows:2: a comma with no row after it"),
            (b"[{\"a\": 1}, {\"a\": ", "rows:2: the list ends within a row"),
            (b"[{\"a\": 1}", "rows:2: the list has no end"),
            (b"[{\"a\": 1}]\n{}", "rows:2: more follows the end of the list"),
            (
                b"[{\"a\": 1},\n{\"a\":\n x}]",
                "rows:2: malformed JSON at line 2 of the row, column 2: expected value",
            ),
            (b"[{\"a\": \"]}\\\"{\"}, 7, q]", "rows:3: malformed JSON at column 1: expected value"),
            (b"a,b\n1,2\n3\n", "rows:3: read as CSV: 1 cells, where the header names 2"),
            (b"a,b\n1,2\n\"3,4\n5,6\n", "rows:3: read as CSV: 1 cells"),
            (b"a,b\n1,2\n3,\"4\n5,6\n", "rows:3: a quoted cell has no closing quote"),
            (b"a,a\n1,2\n", "rows:1: read as CSV: two columns are called `a`"),
            (b"a,\n1,2\n", "rows:1: read as CSV: column 2 has no name"),
            (b"a,b\n1,\xff\n", "rows:2: cell 2 is not UTF-8"),
            (b"PAR1 and no more", "rows: read as parquet: "),
            (&parquet[..parquet.len() - 9], "rows: read as parquet: "),
            (&worn, "read as parquet: "),
            (&packed[..packed.len() / 2], "rows: is packed and does not unpack: "),
        ];
        for (bytes, want) in cases {
            std::fs::write(&path, bytes).unwrap();
            let error = rows(&path).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(want), "{error} instead of {want}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_gone_once_read_is_not_counted_first() {
        let error = Lines::open_counted(Path::new("/dev/null")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("/dev/null: is a pipe or a device, and is read more than once"), "{error}");
        assert!(Lines::open(Path::new("/dev/null")).unwrap().next_chunk(1).unwrap().is_empty());
    }

    #[test]
    fn python_numbers_that_are_none_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let row = r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \\\" NaN ü", "d": -1}"#;
        std::fs::write(&path, row).unwrap();
        let want = serde_json::json!({"a": null, "b": [null, null], "c": "NaN \\\" NaN ü", "d": -1});
        assert_eq!(rows(&path).unwrap(), [want]);
        std::fs::write(&path, r#"{"a": NaNa}"#).unwrap();
        assert!(rows(&path).unwrap_err().to_string().contains("malformed JSON at column"));
    }

    #[test]
    fn lines_are_counted_with_and_without_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        for (text, want) in [("", 0), ("{}", 1), ("{}\n", 1), ("{}\n\n{}", 3)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(count_lines(&path.as_path().into()).unwrap(), want, "{text:?}");
        }
    }
}
