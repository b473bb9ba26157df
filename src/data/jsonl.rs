//! JSON lines: one object per line, every error with its line and column.

use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use super::dataset::{Row, RowId, kind};
use super::error::{Error, Result};

/// A longer line is hardly a text; the limit keeps a binary file from becoming one row.
pub(super) const MAX_LINE: usize = 64 << 20;

/// The rows of `bytes`; a byte order mark and carriage returns are taken off, blank lines left out but counted.
pub(super) fn rows(bytes: &[u8], name: &str) -> Result<Vec<Row>> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err(Error::Empty { file: name.to_owned() });
    }
    let file: Arc<str> = name.into();
    let lines: Vec<(usize, &[u8])> = bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim_ascii_end()))
        .filter(|(_, line)| !line.trim_ascii_start().is_empty())
        .collect();
    let Some((_, first)) = lines.first() else { return Err(Error::Blank { file: name.to_owned() }) };
    let is_list = first.trim_ascii_start().starts_with(b"[");
    // All results first, so that the error of the first bad line is the one that is shown.
    let rows: Vec<Result<Row>> = lines.par_iter().map(|(line, text)| row(text, &file, *line)).collect();
    let rows: Result<Vec<Row>> = rows.into_iter().collect();
    match rows {
        Err(Error::NotJson { .. } | Error::NotObject { .. }) if is_list => Err(Error::List { file: name.to_owned() }),
        rows => rows,
    }
}

fn row(line: &[u8], file: &Arc<str>, number: usize) -> Result<Row> {
    let id = || RowId { file: file.clone(), line: number };
    if line.len() > MAX_LINE {
        return Err(Error::LongLine { row: id(), bytes: line.len(), limit: MAX_LINE });
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        let valid = error.valid_up_to();
        let byte = line.get(valid).copied().unwrap_or_default();
        Error::NotUtf8 { row: id(), column: characters(line, valid) + 1, byte }
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(values)) => Ok(Row { values, id: id() }),
        Ok(other) => Err(Error::NotObject { row: id(), found: kind(&other), line: shown(text, 1) }),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            let column = characters(line, error.column().saturating_sub(1)) + 1;
            Err(Error::NotJson { row: id(), column, reason, line: shown(text, column) })
        }
    }
}

/// Characters of a line that a report may hold: what lies before the mistake, and a little more.
const SHOWN: usize = 4096;

/// The line up to a little behind `column`; nothing of it where that would be too much to show.
fn shown(line: &str, column: usize) -> String {
    if column > SHOWN { String::new() } else { line.chars().take(column + 80).collect() }
}

/// Characters in the first `bytes` bytes of a line.
fn characters(line: &[u8], bytes: usize) -> usize {
    line.iter().take(bytes).filter(|byte| **byte & 0xC0 != 0x80).count()
}
