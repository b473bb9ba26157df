//! The cache on disk, in the layout that all of Hugging Face's tools share:
//!
//! ```text
//! models--owner--name/refs/main                     the commit that `main` was when it was fetched
//!                     snapshots/COMMIT/config.json  -> ../../blobs/ETAG
//!                     blobs/ETAG                    whole and verified
//!                     blobs/ETAG.incomplete         the beginning of one
//! .locks/models--owner--name/ETAG.lock              held while it is fetched
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Error, Result};
use crate::io;

/// The list of shards is no larger than this.
const LARGEST_INDEX: u64 = 64 << 20;

/// The one file of weights, or the list of its shards.
pub(super) const WHOLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The folder of one repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

/// A revision's files in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub commit: String,
    pub folder: PathBuf,
}

impl Repository {
    pub fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The snapshot that `revision` names: by its commit, by what a branch was when it was fetched, or, for `main`, the
    /// only one there is.
    pub fn snapshot(&self, revision: &str) -> Option<Snapshot> {
        let snapshots = self.folder.join("snapshots");
        let at = |commit: &str| {
            let folder = snapshots.join(commit);
            (is_name(commit) && io::is_folder(&folder)).then(|| Snapshot { commit: commit.to_owned(), folder })
        };
        let named = is_branch(revision).then(|| io::read_text(&self.folder.join("refs").join(revision), 4096).ok());
        let named = named.flatten().and_then(|commit| at(commit.trim()));
        named.or_else(|| at(revision)).or_else(|| match io::list(&snapshots).unwrap_or_default().as_slice() {
            [only] if revision == "main" => at(only),
            _ => None,
        })
    }

    /// Writes that `revision` is `commit` now.
    pub fn set_revision(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || !is_branch(revision) {
            return Ok(());
        }
        let refs = self.folder.join("refs");
        io::create_folder(&refs)?;
        Ok(io::write_atomic(&refs.join(revision), commit.as_bytes())?)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub fn part(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// The place of a file of a snapshot.
    pub fn file(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(name)
    }

    /// Lets `name` of the snapshot `commit` be the blob `etag`.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let up = "../".repeat(2 + name.matches('/').count());
        Ok(io::link(&PathBuf::from(format!("{up}blobs/{etag}")), &self.file(commit, name))?)
    }
}

/// What a snapshot lacks of a model that can be loaded; nothing: it is whole.
pub(super) fn lacking(folder: &Path) -> Option<String> {
    let is_there = |name: &str| io::is_file(&folder.join(name));
    let missing = |name: &str| (!is_there(name)).then(|| name.to_owned());
    missing("config.json").or_else(|| missing("tokenizer.json")).or_else(|| {
        if is_there(WHOLE) {
            return None;
        }
        match io::read_text(&folder.join(INDEX), LARGEST_INDEX) {
            Ok(index) => shards(&index, folder)
                .map_or_else(|_| Some(INDEX.to_owned()), |shards| shards.into_iter().find(|shard| !is_there(shard))),
            Err(_) => Some(WHOLE.to_owned()),
        }
    })
}

/// The names of the shards that an index lists, each once; `folder` stands for its place in the error.
pub(super) fn shards(index: &str, folder: &Path) -> Result<BTreeSet<String>> {
    let wrong = || Error::Index { path: folder.join(INDEX) };
    let json: Value = serde_json::from_str(index).map_err(|_| wrong())?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(wrong)?;
    let names: Option<BTreeSet<String>> = map.values().map(|name| name.as_str().map(str::to_owned)).collect();
    names.filter(|names| !names.is_empty() && names.iter().all(|name| is_name(name))).ok_or_else(wrong)
}

/// A commit, an etag or a file's name that never reaches outside its folder.
pub(super) fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() < 200 && !name.starts_with('.') && name.chars().all(is_allowed)
}

/// A branch or tag, whose parts are such names.
fn is_branch(revision: &str) -> bool {
    revision.split('/').all(is_name)
}
