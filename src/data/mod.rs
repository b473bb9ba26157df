//! Rows of text to batches of tokens: every cut, dropped or repeated text is counted and reported.

mod batches;
mod dataset;
mod error;
mod jsonl;
mod packing;
mod report;
#[cfg(test)]
mod tests;
mod tokenize;
mod tokenized;

pub use batches::{BatchOptions, BatchReport, Batches, MicroBatch, Step};
pub use dataset::{Dataset, Row, RowId};
pub use error::{Error, Long, Result};
pub use report::Report;
pub use tokenize::{Overflow, TokenizeOptions};
pub use tokenized::{Example, TestSize, Tokenized};

/// Which numbers of a seed's generator serve which purpose; the low half holds the epoch.
mod stream {
    /// The order of texts in an epoch.
    pub(super) const EPOCH: u64 = 0x6570_6f63 << 32;
    /// The order of bins in an epoch.
    pub(super) const BINS: u64 = 0x6269_6e73 << 32;
    /// Which rows are held out.
    pub(super) const SPLIT: u64 = 0x7370_6c69 << 32;
    /// `Dataset::shuffle`.
    pub(super) const ROWS: u64 = 0x726f_7773 << 32;
}
