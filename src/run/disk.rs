//! The few calls of the file system that a run needs, each with its path in the error.

use std::path::Path;

use crate::io::{self, folder};

use super::{Error, Result};

pub(super) use folder::{Lines, point};

pub(super) fn make_folders(path: &Path) -> Result<()> {
    folder::make_folders(path).map_err(|source| Error::Create { path: path.into(), source })
}

/// Makes the last folder of `path`; `false` if it is there already.
pub(super) fn make_new_folder(path: &Path) -> Result<bool> {
    folder::make_new_folder(path).map_err(|source| Error::Create { path: path.into(), source })
}

/// Removes from the run folders in `out` what killed runs have left under hidden names.
pub(super) fn clean(out: &Path) {
    let names = io::list(out).unwrap_or_default();
    // `latest` is one of the others
    let folders = names.iter().map(|name| out.join(name)).filter(|path| !io::is_link(path) && io::is_folder(path));
    folders.for_each(|folder| io::clean(&folder));
}

/// Writes the whole file or leaves the old one as it was.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(io::write_atomic(path, bytes)?)
}

pub(super) fn open_lines(path: &Path) -> Result<Lines> {
    folder::open_lines(path).map_err(|source| Error::Write { path: path.into(), source })
}
