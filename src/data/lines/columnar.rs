//! Rows of parquet files.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{Line, Source};
use crate::error::{Error, Result};

pub(super) struct Columnar {
    rows: RowIter<'static>,
    file: Arc<Path>,
    row: usize,
}

impl Columnar {
    /// # Errors
    /// The file is no parquet, or is packed in a way that is not read.
    pub fn new(path: &Arc<Path>) -> Result<Self> {
        let rows = guarded(path, 0, || Ok(reader(path)?.into_iter()))?;
        Ok(Self { rows, file: Arc::clone(path), row: 0 })
    }
}

/// Rows of the file, by its footer.
pub(super) fn count(path: &Path) -> Result<usize> {
    guarded(path, 0, || Ok(reader(path)?.metadata().file_metadata().num_rows().max(0) as usize))
}

fn reader(path: &Path) -> std::result::Result<SerializedFileReader<File>, ParquetError> {
    SerializedFileReader::new(File::open(path)?)
}

/// The reader's errors and its panics, which damaged files can raise, as errors of the file.
fn guarded<T>(
    path: &Path,
    row: usize,
    read: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> Result<T> {
    let place = if row == 0 { path.display().to_string() } else { format!("{}:{row}", path.display()) };
    let damaged = "Copy or download the file again, or write it anew, packed with snappy, gzip or zstd";
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::input(place, format!("read as parquet: {error}"), damaged)),
        Err(_) => Err(Error::input(place, "read as parquet: the file is damaged", damaged)),
    }
}

impl Source for Columnar {
    fn next_line(&mut self) -> Result<Option<Line>> {
        let rows = &mut self.rows;
        let row = guarded(&self.file, self.row + 1, || rows.next().transpose())?;
        let Some(row) = row else { return Ok(None) };
        self.row += 1;
        Ok(Some(Line::row(self.row, &self.file, object(&row))))
    }

    fn number(&self) -> usize {
        self.row
    }
}

fn object(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect())
}

/// Bytes that are no text are nothing: a row that needs them is refused by the task.
fn value(field: &Field) -> Value {
    match field {
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, of)| (text(&value(key)), value(of)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        other => other.to_json_value(),
    }
}

fn text(key: &Value) -> String {
    key.as_str().map_or_else(|| key.to_string(), str::to_string)
}
