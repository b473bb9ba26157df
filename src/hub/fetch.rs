//! A model from the hub to the cache: what it needs, whether there is room, one line before and a bar while it comes.

use std::path::Path;

use super::cache::{self, INDEX, Repository, WHOLE};
use super::error::bytes as size_of;
use super::http::{Http, Meta};
use super::transfer::{self, File, Meter};
use super::{Access, Error, Result, Source, Wanted};
use crate::io;

/// What is fetched beside the weights, where a repository has it.
const SMALL: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
];

/// Room that is left on the disk beside the model.
const SPARE: u64 = 64 << 20;

/// Fetches what the cache lacks of the model.
pub(super) fn fetch(wanted: &Wanted, access: &Access<'_>) -> Result<Source> {
    let http = Http::new(wanted, *access)?;
    access.check()?;
    let (commit, files) = http.describe()?;
    let repository = Repository::new(&access.places.cache, &wanted.id);
    let names = match &wanted.file {
        Some(name) if files.contains(name) => vec![name.clone()],
        Some(name) => {
            let has = files.into_iter().filter(|name| name.ends_with(".gguf")).collect();
            return Err(Error::NoFile { id: wanted.id.clone(), name: name.clone(), has });
        }
        None => needed(&http, &repository, &commit, &files)?,
    };
    bring(&http, wanted, &repository, &commit, &names)?;
    repository.set_revision(&wanted.revision, &commit)?;
    let folder = repository.file(&commit, "");
    let path = wanted.file.as_ref().map_or_else(|| folder.clone(), |name| folder.join(name));
    let path = path.components().collect();
    Ok(Source::Cached { id: wanted.id.clone(), revision: commit, path })
}

/// The files of a model in safetensors; of one in shards, its index is fetched to know them.
fn needed(http: &Http<'_>, repository: &Repository, commit: &str, files: &[String]) -> Result<Vec<String>> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let id = || http.wanted().id.clone();
    if !has("config.json") {
        let ggufs: Vec<String> = files.iter().filter(|name| name.ends_with(".gguf")).cloned().collect();
        return Err(match ggufs.is_empty() {
            true => Error::NoFile { id: id(), name: "config.json".to_owned(), has: files.to_vec() },
            false => Error::NoWeights { id: id(), ggufs },
        });
    }
    let mut names: Vec<String> = SMALL.into_iter().filter(|name| has(name)).map(str::to_owned).collect();
    if has(WHOLE) {
        names.push(WHOLE.to_owned());
    } else if has(INDEX) {
        let path = repository.file(commit, INDEX);
        if !io::is_file(&path) {
            let meta = meta(http, commit, INDEX)?;
            let file = File { commit, name: INDEX, meta: &meta };
            transfer::fetch(http, repository, &file, &mut Meter::new(&super::Silent, meta.size, 0))?;
        }
        let shards = cache::shards(&io::read_text(&path, 64 << 20)?, path.parent().unwrap_or(Path::new("")))?;
        if let Some(missing) = shards.iter().find(|name| !has(name)) {
            return Err(Error::NoFile { id: id(), name: missing.clone(), has: files.to_vec() });
        }
        names.extend(shards);
    } else {
        let ggufs = files.iter().filter(|name| name.ends_with(".gguf")).cloned().collect();
        return Err(Error::NoWeights { id: id(), ggufs });
    }
    Ok(names)
}

/// Fetches those of the files that the snapshot lacks.
fn bring(http: &Http<'_>, wanted: &Wanted, repository: &Repository, commit: &str, names: &[String]) -> Result<()> {
    let access = &http.access;
    let mut missing: Vec<(&str, Meta)> = Vec::new();
    for name in names.iter().filter(|name| !io::is_file(&repository.file(commit, name))) {
        let meta = meta(http, commit, name)?;
        if io::is_file(&repository.blob(&meta.etag)) {
            repository.link(commit, name, &meta.etag)?; // another revision has brought it
        } else {
            missing.push((name, meta));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let total: u64 = missing.iter().map(|(_, meta)| meta.size).sum();
    let part = |meta: &Meta| io::len(&repository.part(&meta.etag)).unwrap_or(0).min(meta.size);
    let kept: u64 = missing.iter().map(|(_, meta)| part(meta)).sum();
    let needed = total - kept + SPARE;
    let folder = access.places.cache.clone();
    check_room(&wanted.id, &folder, needed, io::free_space(&folder))?;
    let there = if kept == 0 { String::new() } else { format!(" ({} of it are here already)", size_of(kept)) };
    let files = if missing.len() == 1 { "1 file".to_owned() } else { format!("{} files", missing.len()) };
    access.listener.note(&format!(
        "fetching `{}` from {}: {files}, {}{there}, to `{}`",
        wanted.id,
        access.places.endpoint,
        size_of(total),
        folder.display()
    ));
    let mut meter = Meter::new(access.listener, total, kept);
    let fetched = missing
        .iter()
        .try_for_each(|(name, meta)| transfer::fetch(http, repository, &File { commit, name, meta }, &mut meter));
    access.listener.progress_end();
    fetched
}

/// Fails where `folder` is known to have too little room.
fn check_room(id: &str, folder: &Path, needed: u64, free: Option<u64>) -> Result<()> {
    match free {
        Some(free) if free < needed => {
            Err(Error::NoSpace { id: id.to_owned(), needed, free, folder: folder.to_owned() })
        }
        _ => Ok(()),
    }
}

fn meta(http: &Http<'_>, commit: &str, name: &str) -> Result<Meta> {
    let url = http.address(commit, name)?;
    http.insist(name, |_| http.run(http.head(url.clone(), name, commit)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn too_little_room_is_told_before_the_first_byte() {
        let folder = Path::new("/cache");
        let error = check_room("org/name", folder, 4_200_000_000, Some(1_500_000)).unwrap_err().to_string();
        let wanted = "`org/name` needs 4.2 GB in `/cache`, where 2 MB are free: free some, or set HF_HOME to a folder on \
                      another disk";
        assert_eq!(error, wanted);
        assert!(check_room("org/name", folder, 5, Some(5)).is_ok() && check_room("org/name", folder, 5, None).is_ok());
    }
}
