//! What a run's folder needs beyond reading and writing whole files; the caller adds the path to the error.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Result};
use std::path::Path;

/// A file that grows by whole lines, opened by `open_lines`.
pub type Lines = fs::File;

pub fn make_folders(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
}

/// Makes the last folder of `path`; `false` if it is there already.
pub fn make_new_folder(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

pub fn open_lines(path: &Path) -> Result<Lines> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Points the link `link` at `target`, in one step; `false` where that cannot be done.
pub fn point(link: &Path, target: &Path) -> bool {
    #[cfg(unix)]
    {
        let name = format!(".latest-{}-{}", std::process::id(), target.display());
        let fresh = link.with_file_name(name);
        let made = std::os::unix::fs::symlink(target, &fresh).and_then(|()| fs::rename(&fresh, link));
        if made.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        made.is_ok()
    }
    #[cfg(not(unix))]
    {
        let _ = (link, target);
        false
    }
}
