//! What can be wrong with data, always with the file and the line.

use super::dataset::RowId;
use crate::{io, tokenizer};

/// A text that is longer than allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Long {
    pub row: RowId,
    pub tokens: usize,
}

/// Why rows could not be read, tokenised, split or batched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `line` is the text of the row, to show.
    #[error("{row}, column {column}: not JSON: {reason}")]
    NotJson { row: RowId, column: usize, reason: String, line: String },
    #[error("{row} holds {found}, not an object")]
    NotObject { row: RowId, found: &'static str, line: String },
    #[error(
        "`{file}` is one JSON list, not JSON lines; put one object on each line, for example with \
         `jq -c '.[]' {file} > lines.jsonl`"
    )]
    List { file: String },
    #[error("{row} is not UTF-8 text: byte {byte:#04x} in column {column}; save the file as UTF-8")]
    NotUtf8 { row: RowId, column: usize, byte: u8 },
    #[error("{row} has {bytes} bytes, more than the {limit} read in one line; split the row")]
    LongLine { row: RowId, bytes: usize, limit: usize },
    #[error("`{file}` is empty; it must hold at least one row")]
    Empty { file: String },
    #[error("`{file}` holds only blank lines; it must hold at least one row")]
    Blank { file: String },
    #[error("there are no rows{}", .why)]
    NoRows { why: &'static str },
    #[error("{row} has no field `{field}`{}; it has: {}", did_you_mean(.nearest), listed(.present))]
    MissingField { row: RowId, field: String, nearest: Option<String>, present: Vec<String> },
    #[error("{row}: field `{field}` holds {found}, not text")]
    NotText { row: RowId, field: String, found: &'static str },
    #[error("{row}: field `{field}` is empty, so there is nothing to learn from it; remove the row")]
    EmptyText { row: RowId, field: String },
    #[error("{row} becomes {tokens} token(s), none of which is a target; remove the row or make the text longer")]
    NoTargets { row: RowId, tokens: usize },
    #[error("the model names no end-of-sequence token to train; say `add_eos: false` to train without one")]
    NoEos,
    #[error("`max_length` is {got}, wanted at least {wanted}")]
    MaxLength { got: usize, wanted: usize },
    #[error(
        "{count} {} longer than `max_length` ({limit} tokens): {}; raise `max_length`, or choose what happens with \
         `overflow: \"truncate\"`, `\"drop\"` or `\"split\"`", plural(.count, "text is", "texts are"), shown(.first, .count)
    )]
    TooLong { limit: usize, count: usize, first: Vec<Long> },
    #[error("all {count} texts are longer than `max_length` ({limit} tokens) and were dropped; raise `max_length`")]
    AllDropped { limit: usize, count: usize },
    #[error(
        "{count} {} longer than a bin of `max_tokens` ({limit}): {}; raise `max_tokens`, a packed text is never cut",
        plural(.count, "text is", "texts are"), shown(.first, .count)
    )]
    TooLongToPack { limit: usize, count: usize, first: Vec<Long> },
    #[error("`test_size` is {got}, which would hold out {held_out} of {rows} rows; both parts need at least one row")]
    TestSize { got: String, held_out: usize, rows: usize },
    #[error("`test_size` is {got}, wanted a share above 0 and below 1, or a whole number of rows")]
    TestShare { got: f64 },
    #[error("`{option}` is {got}, wanted {wanted}")]
    Batch { option: &'static str, got: String, wanted: &'static str },
    #[error("{row}: {source}")]
    Tokenizer { row: RowId, source: tokenizer::Error },
    #[error("stopped after {rows} rows")]
    Cancelled { rows: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What to do about it, where the message does not say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotJson { .. } | Self::NotObject { .. } => {
                Some("each line must hold one whole object, such as {\"text\": \"Fry them in butter.\"}")
            }
            _ => None,
        }
    }

    /// The row, the column (1-based, in characters) and the text of a line that is wrong in itself.
    pub fn line(&self) -> Option<(&RowId, usize, &str)> {
        match self {
            Self::NotJson { row, column, line, .. } => Some((row, *column, line)),
            Self::NotObject { row, line, .. } => Some((row, 1, line)),
            _ => None,
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

fn plural(count: &usize, one: &'static str, many: &'static str) -> &'static str {
    if *count == 1 { one } else { many }
}

fn shown(first: &[Long], count: &usize) -> String {
    let mut text = first.iter().map(|long| format!("{} ({})", long.row, long.tokens)).collect::<Vec<_>>().join(", ");
    if *count > first.len() {
        text.push_str(&format!(" and {} more", count - first.len()));
    }
    text
}
