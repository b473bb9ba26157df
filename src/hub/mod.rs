//! From what a recipe calls a model to files on this machine. Nothing here opens a socket.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::io;
use crate::weights::{self, Checkpoint};

/// The model that is part of the program.
pub const TINY_MISTRAL: &str = "builtin:tiny-mistral";

/// Why a model could not be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Weights(#[from] weights::Error),
    #[error("this build has no built-in model; give a folder or a .gguf file")]
    NoBuiltin,
    #[error("there is no built-in model `{id}`; there is `builtin:tiny-mistral`")]
    Builtin { id: String },
    #[error("`{id}` is neither a folder, a .gguf file, a hub id (`org/name`) nor `builtin:tiny-mistral`")]
    Id { id: String },
    #[error(
        "`{id}` is not on this machine (looked for the folder `{folder}` and in the Hugging Face cache `{cache}`); \
         downloading is not there yet: fetch it with `hf download {id}`, or give the folder that has it"
    )]
    NotHere { id: String, folder: PathBuf, cache: PathBuf },
    #[error("`{id}` is not a folder on this machine, and this build has no hub support; give the folder that has it")]
    NoHub { id: String },
    #[error("`{id}` is in the cache `{cache}` without its `{missing}`; fetch it again with `hf download {id}`")]
    Incomplete { id: String, cache: PathBuf, missing: &'static str },
}

pub type Result<T> = std::result::Result<T, Error>;

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder or a `.gguf` file.
    Path(PathBuf),
    /// A snapshot in the Hugging Face cache.
    Cached { id: String, revision: String, folder: PathBuf },
    /// A model inside the program, by its full id.
    Builtin(&'static str),
}

/// The files of the built-in models.
#[derive(rust_embed::RustEmbed)]
#[folder = "stdlib/base/"]
#[allow_missing = true]
struct Base;

/// A file that is part of the program.
fn embedded(name: &str) -> Result<&'static [u8]> {
    match Base::get(name).ok_or(Error::NoBuiltin)?.data {
        Cow::Borrowed(bytes) => Ok(bytes),
        Cow::Owned(bytes) => Ok(bytes.leak()), // never with `debug-embed`: files are always inside the program
    }
}

impl Source {
    /// The model's checkpoint, named after how it was found.
    pub fn open(&self) -> Result<Checkpoint> {
        match self {
            Self::Path(path) => Ok(Checkpoint::open(path)?),
            Self::Cached { id, folder, .. } => Ok(Checkpoint::open(folder)?.named(id)),
            Self::Builtin(id) => {
                let config =
                    std::str::from_utf8(embedded("tiny-mistral/config.json")?).map_err(|_| Error::NoBuiltin)?;
                let weights = embedded("tiny-mistral/model.safetensors")?;
                let tokenizer = embedded("tiny-mistral/tokenizer.json")?;
                Ok(Checkpoint::from_named_bytes(id, config, weights, tokenizer)?)
            }
        }
    }
}

/// Where the model `id` is: `auto` (the built-in one), `builtin:…`, a folder or `.gguf` relative to `folder`, or a hub
/// id that is in this machine's Hugging Face cache.
pub fn resolve(id: &str, folder: &Path) -> Result<Source> {
    resolve_in(id, folder, &cache_folder(|name| std::env::var_os(name).map(PathBuf::from)))
}

fn resolve_in(id: &str, folder: &Path, cache: &Path) -> Result<Source> {
    let unknown = || Error::Id { id: id.into() };
    match id {
        "" => return Err(unknown()),
        "auto" | TINY_MISTRAL => return Ok(Source::Builtin(TINY_MISTRAL)),
        id if id.starts_with("builtin:") => return Err(Error::Builtin { id: id.into() }),
        _ => {}
    }
    let path = folder.join(id);
    if io::exists(&path) {
        return Ok(Source::Path(path));
    }
    if !is_hub_id(id) {
        // A path that is not there: the error says what is near it.
        let looks_like_path = id.contains(['/', '\\']) || id.ends_with(".gguf") || id.starts_with('.');
        return if looks_like_path {
            Err(io::len(&path).map_or_else(Error::Io, |_| unknown()))
        } else {
            Err(unknown())
        };
    }
    if cfg!(feature = "hub") { cached(id, &path, cache) } else { Err(Error::NoHub { id: id.into() }) }
}

/// `org/name` in the characters the hub allows.
fn is_hub_id(id: &str) -> bool {
    let is_part = |part: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(is_allowed)
    };
    matches!(id.split_once('/'), Some((org, name)) if is_part(org) && is_part(name) && !name.ends_with(".gguf"))
}

/// The snapshot `refs/main` names, or the only one there is.
fn cached(id: &str, tried: &Path, cache: &Path) -> Result<Source> {
    let not_here = || Error::NotHere { id: id.into(), folder: tried.into(), cache: cache.into() };
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    if !io::is_folder(&repository) {
        return Err(not_here());
    }
    let snapshots = repository.join("snapshots");
    let named = io::read_text(&repository.join("refs").join("main"), 4096).ok();
    let named = named.as_deref().map(str::trim).filter(|revision| is_revision(revision));
    let revision = match named {
        Some(revision) if io::is_folder(&snapshots.join(revision)) => revision.to_string(),
        _ => match io::list(&snapshots).unwrap_or_default().as_slice() {
            [only] => only.clone(),
            _ => return Err(not_here()),
        },
    };
    let folder = snapshots.join(&revision);
    let incomplete = |missing| Error::Incomplete { id: id.into(), cache: cache.into(), missing };
    if !io::is_file(&folder.join("config.json")) {
        return Err(incomplete("config.json"));
    }
    let has_weights =
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| io::is_file(&folder.join(name)));
    if !has_weights {
        return Err(incomplete("model.safetensors"));
    }
    Ok(Source::Cached { id: id.into(), revision, folder })
}

/// A commit hash: a revision never reaches outside its folder.
fn is_revision(revision: &str) -> bool {
    !revision.is_empty() && revision.chars().all(|c| c.is_ascii_alphanumeric())
}

/// The folder Hugging Face's own tools use: `HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
/// `~/.cache/huggingface/hub`.
fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    if let Some(folder) = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")) {
        return folder;
    }
    if let Some(home) = set("HF_HOME") {
        return home.join("hub");
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".cache")));
    cache.unwrap_or_default().join("huggingface").join("hub")
}

#[cfg(test)]
mod tests;
