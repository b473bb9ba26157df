//! The folder of a run: what was run, with what, what it printed, what it measured.
//!
//! ```text
//! outputs/meatballs-20261123-064512/        outputs/latest -> it
//!   recipe.rhai  imports/…                  exact copies
//!   config.json                             every parameter with its value and its origin
//!   run.json                                argv, version, device, status, exit code, times
//!   log.jsonl                               one event a line; what the recipe prints, too
//!   metrics.jsonl                           one row a step, in Hugging Face's names
//!   interrupted/                            an adapter that was trained and not saved when the run ended too soon
//! ```

mod disk;
mod folder;
mod journal;
mod record;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use folder::Folder;
pub use journal::Journal;
pub use record::{Record, Status};

/// A run's folder could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make the output folder `{}`: {source}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("cannot write `{}`: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    File(#[from] crate::io::Error),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Create { .. } => "choose another place with `--out DIR`; nothing has been trained",
            Self::Write { .. } | Self::File(_) => "is the disk full, or the folder gone?",
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
