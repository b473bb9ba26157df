//! Rows as they were read: an object each, with the place it came from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::Result;
use super::{jsonl, stream};
use crate::io;
use crate::philox::Philox;

/// Where a row comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowId {
    pub file: Arc<str>,
    /// 1-based.
    pub line: usize,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` line {}", self.file, self.line)
    }
}

/// One row: named values and where they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub values: Map<String, Value>,
    pub id: RowId,
}

/// Rows in order; cheap to clone, take from and shuffle.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    rows: Vec<Arc<Row>>,
}

impl Dataset {
    /// The rows of a JSON lines file: one object on each line, blank lines left out.
    pub fn from_json(path: &Path) -> Result<Self> {
        let bytes = io::read(path)?;
        Self::from_json_bytes(&bytes, &path.display().to_string())
    }

    /// As `from_json`, for content that is in memory; `name` stands for the file in errors.
    pub fn from_json_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        Ok(Self { rows: jsonl::rows(bytes, name)?.into_iter().map(Arc::new).collect() })
    }

    /// One row with the field `text` for each text; errors count them as lines of `texts`.
    pub fn from_texts(texts: Vec<String>) -> Self {
        let values = |text| Map::from_iter([("text".to_owned(), Value::String(text))]);
        Self::from_rows(texts.into_iter().map(values).collect(), "texts")
    }

    /// Rows made in memory; `name` stands for the file in errors.
    pub fn from_rows(rows: Vec<Map<String, Value>>, name: &str) -> Self {
        let file: Arc<str> = name.into();
        let row = |(index, values)| Arc::new(Row { values, id: RowId { file: file.clone(), line: index + 1 } });
        Self { rows: rows.into_iter().enumerate().map(row).collect() }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&Row> {
        self.rows.get(index).map(Arc::as_ref)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().map(Arc::as_ref)
    }

    pub(super) fn rows(&self) -> &[Arc<Row>] {
        &self.rows
    }

    /// The first `count` rows, or all of them.
    pub fn take(&self, count: usize) -> Self {
        Self { rows: self.rows.iter().take(count).cloned().collect() }
    }

    /// The rows in an order that is a pure function of `seed` and their number.
    pub fn shuffle(&self, seed: u64) -> Self {
        let order = Philox::new(seed, stream::ROWS).permutation(self.rows.len());
        Self { rows: order.into_iter().filter_map(|index| self.rows.get(index).cloned()).collect() }
    }

    /// The rows for which `keep` is true; its first error ends the filtering.
    pub fn filter<E>(
        &self,
        mut keep: impl FnMut(&Row) -> std::result::Result<bool, E>,
    ) -> std::result::Result<Self, E> {
        let mut rows = Vec::new();
        for row in &self.rows {
            if keep(row)? {
                rows.push(row.clone());
            }
        }
        Ok(Self { rows })
    }

    /// The rows with new values, each still known by its old place; the first error of `change` ends the mapping.
    pub fn map<E>(
        &self,
        mut change: impl FnMut(&Row) -> std::result::Result<Map<String, Value>, E>,
    ) -> std::result::Result<Self, E> {
        let mut rows = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            rows.push(Arc::new(Row { values: change(row)?, id: row.id.clone() }));
        }
        Ok(Self { rows })
    }
}

/// What kind of value this is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
