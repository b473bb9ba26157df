//! Why an adapter could not be saved or does not fit.

use std::path::PathBuf;

/// What went wrong between a model and an adapter folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Weights(#[from] crate::weights::Error),
    #[error(transparent)]
    Io(#[from] crate::io::Error),
    #[error("what was written to `{}` reads back differently at `{tensor}`: the disk may be failing", dir.display())]
    ReadsBackDifferently { dir: PathBuf, tensor: String },
    #[error(
        "the adapter in `{}` does not fit this model: {}",
        dir.display(),
        misfit(unknown, missing)
    )]
    Names { dir: PathBuf, unknown: Vec<String>, missing: Vec<String> },
    #[error(
        "`{tensor}` in the adapter in `{}` is {} x {}, this model needs {} x {}: the adapter was made for another \
         base{}",
        dir.display(), got[0], got[1], wanted[0], wanted[1], base.as_ref().map_or(String::new(), |b| format!(", `{b}`"))
    )]
    Shape { dir: PathBuf, tensor: String, got: [usize; 2], wanted: [usize; 2], base: Option<String> },
    #[error("the adapter in `{}` has a `{key}`, which is not supported yet: its modules must share one rank and alpha", dir.display())]
    Uneven { dir: PathBuf, key: &'static str },
    #[error("the adapter in `{}` holds a value that is not a finite number, in `{tensor}`", dir.display())]
    NotFinite { dir: PathBuf, tensor: String },
}

const SHOWN: usize = 4;

fn misfit(unknown: &[String], missing: &[String]) -> String {
    let list = |names: &[String]| {
        let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
    };
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("the model has no place for {}", list(unknown)));
    }
    if !missing.is_empty() {
        parts.push(format!("its config asks for {}, which the file lacks", list(missing)));
    }
    parts.join("; ")
}

pub type Result<T> = std::result::Result<T, Error>;
