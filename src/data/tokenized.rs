//! Examples: token ids with their targets, split into parts and counted.

use std::collections::HashSet;
use std::sync::Arc;

use super::dataset::RowId;
use super::error::{Error, Result};
use super::report::Report;
use super::stream;
use crate::philox::Philox;

/// One text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// What each token must predict: the next one; -100 (nothing) for the last.
    pub targets: Vec<i32>,
    pub row: RowId,
    /// Whether the last token is the end-of-sequence token, which makes it a target.
    pub ends: bool,
}

/// The target of a token that predicts nothing.
pub(super) const NO_TARGET: i32 = -100;

impl Example {
    /// An example that trains every token but the first.
    pub(super) fn new(ids: Vec<u32>, row: RowId, ends: bool) -> Self {
        // Ids are table indices far below 2^31: the tokenizer refuses larger ones.
        let targets = ids.iter().skip(1).map(|id| *id as i32).chain([NO_TARGET]).collect();
        Self { ids, targets, row, ends }
    }

    pub fn target_tokens(&self) -> usize {
        self.targets.iter().filter(|target| **target != NO_TARGET).count()
    }
}

/// What happened to texts on the way to examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub cut: usize,
    pub cut_tokens: usize,
    pub dropped: usize,
    pub split: usize,
    pub unknown: usize,
}

/// How many rows to hold out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TestSize {
    /// A share of the rows, rounded to the nearest number, at least one.
    Share(f64),
    Rows(usize),
}

/// Tokenised texts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokenized {
    examples: Arc<Vec<Example>>,
    counts: Counts,
    /// The end-of-sequence token that was added.
    eos: Option<Arc<str>>,
    /// After a split, in the held-out part: rows whose tokens are those of a training row.
    copies: Option<usize>,
}

impl Tokenized {
    pub(super) fn new(examples: Vec<Example>, counts: Counts, eos: Option<String>) -> Self {
        Self { examples: Arc::new(examples), counts, eos: eos.map(Arc::from), copies: None }
    }

    pub fn len(&self) -> usize {
        self.examples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&Example> {
        self.examples.get(index)
    }

    pub fn examples(&self) -> &Arc<Vec<Example>> {
        &self.examples
    }

    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }

    pub fn target_tokens(&self) -> usize {
        self.examples.iter().map(Example::target_tokens).sum()
    }

    /// What is in here, and what was done to it.
    pub fn report(&self) -> Report {
        Report::new(&self.examples, self.counts, self.eos.as_deref(), self.copies)
    }

    /// The first `count` examples, or all of them.
    pub fn take(&self, count: usize) -> Self {
        self.part(self.examples.iter().take(count).cloned().collect(), None)
    }

    /// A training and a held-out part, both in the old order. Which rows are held out depends on `seed` and the number
    /// of rows alone; the examples of one row stay together.
    pub fn split(&self, size: TestSize, seed: u64) -> Result<(Self, Self)> {
        let rows: Vec<&[Example]> = self.examples.chunk_by(|a, b| a.row == b.row).collect();
        let held_out = size.rows(rows.len())?;
        let mut is_test = vec![false; rows.len()];
        for index in Philox::new(seed, stream::SPLIT).permutation(rows.len()).into_iter().take(held_out) {
            if let Some(flag) = is_test.get_mut(index) {
                *flag = true;
            }
        }
        let side =
            |wanted: bool| rows.iter().zip(&is_test).filter(move |(_, test)| **test == wanted).map(|(row, _)| *row);
        let trained: HashSet<Vec<&[u32]>> = side(false).map(key).collect();
        let copies = side(true).filter(|row| trained.contains(&key(row))).count();
        let gather = |wanted: bool| side(wanted).flatten().cloned().collect();
        Ok((self.part(gather(false), None), self.part(gather(true), Some(copies))))
    }

    /// Examples of this; what was cut or dropped before belongs to the whole.
    fn part(&self, examples: Vec<Example>, copies: Option<usize>) -> Self {
        Self { examples: Arc::new(examples), counts: Counts::default(), eos: self.eos.clone(), copies }
    }
}

/// The tokens of a row, over all its examples.
pub(super) fn key(row: &[Example]) -> Vec<&[u32]> {
    row.iter().map(|example| example.ids.as_slice()).collect()
}

impl TestSize {
    /// The rows this holds out of `rows`.
    fn rows(self, rows: usize) -> Result<usize> {
        let (held_out, got) = match self {
            Self::Rows(count) => (count, count.to_string()),
            Self::Share(share) => {
                if !share.is_finite() || share <= 0.0 || share >= 1.0 {
                    return Err(Error::TestShare { got: share });
                }
                (((rows as f64 * share).round() as usize).max(1), share.to_string())
            }
        };
        if held_out == 0 || held_out >= rows {
            return Err(Error::TestSize { got, held_out, rows });
        }
        Ok(held_out)
    }
}
