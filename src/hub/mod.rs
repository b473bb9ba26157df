//! From what a recipe calls a model to files on this machine: a folder, a file, the Hugging Face cache, or the hub, whose
//! files go to that cache. Only `fetch` opens a socket.

mod auto;
mod cache;
mod error;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod http;
mod places;
#[cfg(feature = "hub")]
mod transfer;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::io;
use crate::weights::Checkpoint;

pub use auto::{Choice, FOUR_BIT, ROOM_FOUR_BIT, Room, SIXTEEN_BIT, Situation, Why, choose};
pub use error::{Error, Result};
pub use places::{Places, Token};

use cache::Repository;

/// The model that is part of the program.
pub const TINY_MISTRAL: &str = "builtin:tiny-mistral";

/// The revision that is meant where none is named.
const MAIN: &str = "main";

/// Hears what happens while a model is fetched.
pub trait Listener {
    /// A remark: what is fetched, how large it is, where to; what is waited for.
    fn note(&self, text: &str);
    /// How far it is; may be called often.
    fn progress(&self, done: u64, total: u64, detail: &str);
    /// The work that `progress` told of is over.
    fn progress_end(&self);
}

/// A listener that keeps it all to itself.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Listener for Silent {
    fn note(&self, _: &str) {}
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn progress_end(&self) {}
}

/// How to reach models that are not a path.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    pub places: &'a Places,
    pub listener: &'a dyn Listener,
    /// Set to stop a transfer; what has come is kept.
    pub cancel: &'a AtomicBool,
    /// The pause before a first new try; each later one is twice as long.
    pub pause: Duration,
}

impl<'a> Access<'a> {
    pub fn new(places: &'a Places, listener: &'a dyn Listener, cancel: &'a AtomicBool) -> Self {
        Self { places, listener, cancel, pause: Duration::from_secs(1) }
    }

    /// Ends with an error once somebody has asked to stop.
    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder or a `.gguf` file.
    Path(PathBuf),
    /// A snapshot in the Hugging Face cache, or one of its `.gguf` files.
    Cached { id: String, revision: String, path: PathBuf },
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
            Self::Cached { id, path, .. } => Ok(Checkpoint::open(path)?.named(id)),
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

/// Where the model `id` is: `builtin:…` (`auto` is the built-in one), a folder or `.gguf` relative to `folder`, or a hub
/// id, whose files are fetched where the cache lacks them.
pub fn resolve(id: &str, folder: &Path, access: &Access<'_>) -> Result<Source> {
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
    match Wanted::parse(id, folder) {
        Some(wanted) => find(&wanted, &path, access),
        None => {
            // A path that is not there: the error says what is near it.
            let looks_like_path = id.contains(['/', '\\']) || id.ends_with(".gguf") || id.starts_with('.');
            if looks_like_path { Err(io::len(&path).map_or_else(Error::Io, |_| unknown())) } else { Err(unknown()) }
        }
    }
}

/// What `auto` is where `room` computes, and a line that says what was taken and why.
pub fn resolve_auto(room: Room, load_in_4bit: bool, access: &Access<'_>) -> Result<(Source, String)> {
    let has = |id| matches!(cached(&Wanted::model(id), access.places), Found::Whole(_));
    let situation = Situation {
        room,
        load_in_4bit,
        has_four_bit: has(FOUR_BIT),
        has_sixteen_bit: has(SIXTEEN_BIT),
        offline: access.places.offline,
        can_fetch: cfg!(feature = "hub"),
    };
    let other = "`--set base_model=…` takes another: a folder, a .gguf file or a hub id";
    let builtin = |why: &str| {
        let told = format!("`auto` took {TINY_MISTRAL}, a part of this program, because {why}; {other}");
        (Source::Builtin(TINY_MISTRAL), told)
    };
    match choose(&situation) {
        Choice::Builtin(why) => Ok(builtin(&why.told())),
        Choice::Cached(id) => {
            let source = find(&Wanted::model(id), Path::new(id), access)?;
            Ok((source, format!("`auto` took {id} from the Hugging Face cache; {other}")))
        }
        Choice::Fetch(id) => match find(&Wanted::model(id), Path::new(id), access) {
            Ok(source) => Ok((source, format!("`auto` took {id}; {other}"))),
            Err(error @ Error::Network { .. }) => Ok(builtin(&error.to_string())),
            Err(error) => Err(error),
        },
    }
}

/// What a hub id names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// `owner/name`
    id: String,
    revision: String,
    /// One GGUF file of it instead of a model in safetensors.
    file: Option<String>,
}

/// What the cache has of a model.
enum Found {
    Whole(Source),
    /// The snapshot there is, if any, lacks this file.
    Lacking(Option<String>),
}

impl Wanted {
    fn model(id: &str) -> Self {
        Self { id: id.to_owned(), revision: MAIN.to_owned(), file: None }
    }

    /// `owner/name`, or `owner/name/file.gguf` where `owner` is no folder in `folder`.
    fn parse(id: &str, folder: &Path) -> Option<Self> {
        let parts: Vec<&str> = id.split('/').collect();
        let are_names = parts.iter().all(|part| cache::is_name(part));
        match parts.as_slice() {
            [_, name] if are_names && !name.ends_with(".gguf") => Some(Self::model(id)),
            [owner, name, file @ ..] if are_names && id.ends_with(".gguf") && !file.is_empty() => {
                let is_here = io::exists(&folder.join(owner));
                (!is_here).then(|| Self { file: Some(file.join("/")), ..Self::model(&format!("{owner}/{name}")) })
            }
            _ => None,
        }
    }
}

/// The model in the cache, fetched where it is not whole there.
fn find(wanted: &Wanted, tried: &Path, access: &Access<'_>) -> Result<Source> {
    let missing = match cached(wanted, access.places) {
        Found::Whole(source) => return Ok(source),
        Found::Lacking(missing) => missing,
    };
    if let Some(variable) = access.places.offline {
        let (id, cache) = (wanted.id.clone(), access.places.cache.clone());
        return Err(Error::Offline { id, variable, folder: tried.into(), cache, missing });
    }
    #[cfg(feature = "hub")]
    {
        fetch::fetch(wanted, access)
    }
    #[cfg(not(feature = "hub"))]
    {
        access.check()?;
        Err(Error::NoHub { id: wanted.id.clone() })
    }
}

fn cached(wanted: &Wanted, places: &Places) -> Found {
    let Some(snapshot) = Repository::new(&places.cache, &wanted.id).snapshot(&wanted.revision) else {
        return Found::Lacking(None);
    };
    let source = |path| Source::Cached { id: wanted.id.clone(), revision: snapshot.commit.clone(), path };
    match &wanted.file {
        Some(file) => match snapshot.folder.join(file) {
            path if io::is_file(&path) => Found::Whole(source(path)),
            _ => Found::Lacking(Some(file.clone())),
        },
        None => match cache::lacking(&snapshot.folder) {
            None => Found::Whole(source(snapshot.folder.clone())),
            Some(missing) => Found::Lacking(Some(missing)),
        },
    }
}

/// What there is of the hub on this machine, for `unslothify doctor`.
#[derive(Clone, Debug)]
pub struct Findings {
    pub places: Places,
    pub can_fetch: bool,
}

/// Looks at the environment and tells what it says.
pub fn findings() -> Findings {
    Findings { places: Places::from_environment(), can_fetch: cfg!(feature = "hub") }
}

#[cfg(test)]
mod tests;
