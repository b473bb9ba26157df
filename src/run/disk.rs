//! The few calls of the file system that a run needs, each with its path in the error.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use super::{Error, Result};

pub(super) fn make_folders(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| Error::Create { path: path.into(), source })
}

/// Makes the last folder of `path`; `false` if it is there already.
pub(super) fn make_new_folder(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Create { path: path.into(), source }),
    }
}

/// Writes the whole file or leaves the old one as it was.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::Write { path: path.into(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    // A temporary file is readable by its owner alone; results are meant to be shared.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

pub(super) fn open_lines(path: &Path) -> Result<File> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.map_err(|source| Error::Write { path: path.into(), source })
}

/// Points the link `link` at `target`, in one step; `false` where that cannot be done.
pub(super) fn point(link: &Path, target: &Path) -> bool {
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
