//! Where a session speaks to: the command line, a notebook, a test.

use std::io;
use std::sync::{Mutex, PoisonError};

/// How far some work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being done: "training", "loading".
    pub what: &'a str,
    pub done: u64,
    /// Nothing: the end is not known.
    pub total: Option<u64>,
    /// What else to say: "loss 2.71   2 310 tokens/s".
    pub detail: &'a str,
}

/// The outside of a session.
pub trait Terminal: Send + Sync {
    /// Results: what the recipe prints. An error means that nobody reads any more.
    fn print(&self, text: &str) -> io::Result<()>;
    /// A remark that is not a result.
    fn note(&self, text: &str);
    /// May be called as often as one likes; the terminal decides what to show.
    fn progress(&self, progress: Progress<'_>);
    /// The work that `progress` told of is over.
    fn progress_end(&self) {}
    /// Columns that a page of results has.
    fn width(&self) -> usize {
        PAGE
    }
}

/// Columns of a page that goes to a file, a pipe or a test.
pub const PAGE: usize = 100;

/// Keeps what is printed, for those who embed a session.
#[derive(Debug, Default)]
pub struct Collected {
    printed: Mutex<Vec<String>>,
    notes: Mutex<Vec<String>>,
}

impl Collected {
    pub fn new() -> Self {
        Self::default()
    }

    /// What was printed so far, one entry a `print`.
    pub fn printed(&self) -> Vec<String> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The remarks so far.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Terminal for Collected {
    fn print(&self, text: &str) -> io::Result<()> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_string());
        Ok(())
    }

    fn note(&self, text: &str) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_string());
    }

    fn progress(&self, _: Progress<'_>) {}
}
