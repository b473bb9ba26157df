//! Rows to examples: encode, end with a trained token, and decide what happens to texts that are too long.

use rayon::prelude::*;
use serde_json::Value;

use super::dataset::{Dataset, Row, kind};
use super::error::{Error, Long, Result};
use super::tokenized::{Counts, Example, Tokenized};
use crate::tokenizer::Tokenizer;

/// Rows tokenised between two looks at `progress`.
const CHUNK: usize = 4096;
/// Over-long texts an error names.
const NAMED: usize = 3;
/// The shortest `max_length`: a begin, a token and an end, with one to spare for `split`.
const SHORTEST: usize = 4;

/// What happens to a text of more than `max_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// An error that names the texts.
    #[default]
    Error,
    /// The text is cut; what is cut off is not trained, nor is an end the text does not reach.
    Truncate,
    /// The row is left out.
    Drop,
    /// The text becomes several examples of about equal length; the last one carries the end.
    Split,
}

/// How rows become tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// The field that holds the text.
    pub text: String,
    /// In tokens, with begin and end.
    pub max_length: Option<usize>,
    pub overflow: Overflow,
    /// Whether each text ends with the model's end-of-sequence token, as a target.
    pub add_eos: bool,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        Self { text: "text".to_owned(), max_length: None, overflow: Overflow::Error, add_eos: true }
    }
}

impl Dataset {
    /// Every row's text as tokens, in order, on all cores.
    pub fn tokenize(&self, tokenizer: &Tokenizer, options: &TokenizeOptions) -> Result<Tokenized> {
        self.tokenize_with(tokenizer, options, &mut |_| true)
    }

    /// As `tokenize`; `progress` gets the number of rows done now and then and stops the work by returning false.
    pub fn tokenize_with(
        &self,
        tokenizer: &Tokenizer,
        options: &TokenizeOptions,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Tokenized> {
        if self.is_empty() {
            return Err(Error::NoRows { why: " to tokenise" });
        }
        if let Some(got) = options.max_length.filter(|length| *length < SHORTEST) {
            return Err(Error::MaxLength { got, wanted: SHORTEST });
        }
        let eos = match (options.add_eos, tokenizer.eos()) {
            (false, _) => None,
            (true, None) => return Err(Error::NoEos),
            (true, Some(eos)) => Some(eos.id),
        };
        let worker = Worker { tokenizer, options, eos };
        let mut collected = Collected::default();
        for (index, rows) in self.rows().chunks(CHUNK).enumerate() {
            let made: Vec<Result<Made>> = rows.par_iter().map(|row| worker.row(row)).collect();
            for result in made {
                collected.add(result?);
            }
            let done = index * CHUNK + rows.len();
            if !progress(done) {
                return Err(Error::Cancelled { rows: done });
            }
        }
        let limit = options.max_length.unwrap_or(usize::MAX);
        if collected.long > 0 {
            return Err(Error::TooLong { limit, count: collected.long, first: collected.first });
        }
        if collected.examples.is_empty() {
            return Err(Error::AllDropped { limit, count: collected.counts.dropped });
        }
        let eos = eos.and_then(|_| tokenizer.eos().map(|eos| eos.text.clone()));
        Ok(Tokenized::new(collected.examples, collected.counts, eos))
    }
}

/// What one row becomes.
enum Made {
    Whole(Example, usize),
    Cut { example: Example, tokens: usize, unknown: usize },
    Split(Vec<Example>, usize),
    Dropped,
    Long(Long),
}

#[derive(Default)]
struct Collected {
    examples: Vec<Example>,
    counts: Counts,
    long: usize,
    first: Vec<Long>,
}

impl Collected {
    fn add(&mut self, made: Made) {
        match made {
            Made::Whole(example, unknown) => {
                self.counts.unknown += unknown;
                self.examples.push(example);
            }
            Made::Cut { example, tokens, unknown } => {
                self.counts.cut += 1;
                self.counts.cut_tokens += tokens;
                self.counts.unknown += unknown;
                self.examples.push(example);
            }
            Made::Split(examples, unknown) => {
                self.counts.split += 1;
                self.counts.unknown += unknown;
                self.examples.extend(examples);
            }
            Made::Dropped => self.counts.dropped += 1,
            Made::Long(long) => {
                self.long += 1;
                if self.first.len() < NAMED {
                    self.first.push(long);
                }
            }
        }
    }
}

struct Worker<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a TokenizeOptions,
    eos: Option<u32>,
}

impl Worker<'_> {
    fn row(&self, row: &Row) -> Result<Made> {
        let text = self.text(row)?;
        let plain = self.tokenizer.encode_plain(text);
        let plain = plain.map_err(|source| Error::Tokenizer { row: row.id.clone(), source })?;
        if plain.is_empty() {
            return Err(Error::EmptyText { row: row.id.clone(), field: self.options.text.clone() });
        }
        let unknown = match self.tokenizer.unknown_id() {
            Some(unknown) => plain.iter().filter(|id| **id == unknown).count(),
            None => 0,
        };
        let prefix = self.tokenizer.prefix();
        let length = prefix.len() + plain.len() + usize::from(self.eos.is_some());
        let limit = self.options.max_length.unwrap_or(usize::MAX);
        if length <= limit {
            return Ok(Made::Whole(self.example(row, &plain, true)?, unknown));
        }
        let room = limit.saturating_sub(prefix.len()).max(1);
        match self.options.overflow {
            Overflow::Error => Ok(Made::Long(Long { row: row.id.clone(), tokens: length })),
            Overflow::Drop => Ok(Made::Dropped),
            Overflow::Truncate => {
                let kept = plain.get(..room).unwrap_or(&plain);
                // A text that fits but for its end keeps all its tokens and goes without the end.
                let tokens = length - prefix.len() - kept.len();
                Ok(Made::Cut { example: self.example(row, kept, false)?, tokens, unknown })
            }
            Overflow::Split => {
                let body = plain.len() + usize::from(self.eos.is_some());
                let parts = body.div_ceil(room);
                let mut examples = Vec::with_capacity(parts);
                for part in 0..parts {
                    let (start, end) = (part * body / parts, (part + 1) * body / parts);
                    let ids = plain.get(start..end.min(plain.len())).unwrap_or_default();
                    examples.push(self.example(row, ids, part + 1 == parts)?);
                }
                Ok(Made::Split(examples, unknown))
            }
        }
    }

    fn text<'r>(&self, row: &'r Row) -> Result<&'r str> {
        let field = &self.options.text;
        match row.values.get(field) {
            Some(Value::String(text)) if text.is_empty() => {
                Err(Error::EmptyText { row: row.id.clone(), field: field.clone() })
            }
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(Error::NotText { row: row.id.clone(), field: field.clone(), found: kind(other) }),
            None => {
                let present: Vec<String> = row.values.keys().cloned().collect();
                let near = present.iter().map(|name| (strsim::damerau_levenshtein(name, field), name));
                let nearest = near.filter(|(distance, _)| *distance <= 2).min().map(|(_, name)| name.clone());
                Err(Error::MissingField { row: row.id.clone(), field: field.clone(), nearest, present })
            }
        }
    }

    /// Begin, `ids` and, if the text ends here, its end; every token but the first is a target.
    fn example(&self, row: &Row, ids: &[u32], is_end: bool) -> Result<Example> {
        let prefix = self.tokenizer.prefix();
        let eos = self.eos.filter(|_| is_end);
        let mut all = Vec::with_capacity(prefix.len() + ids.len() + 1);
        all.extend_from_slice(prefix);
        all.extend_from_slice(ids);
        all.extend(eos);
        if all.len() < 2 {
            return Err(Error::NoTargets { row: row.id.clone(), tokens: all.len() });
        }
        Ok(Example::new(all, row.id.clone(), eos.is_some()))
    }
}
