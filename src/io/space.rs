//! How much room a disk has.

use std::path::Path;

/// Bytes that an ordinary user can still write on the file system of `path`, or of the nearest folder above it that is
/// there; nothing where the system does not say.
pub fn free_space(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|folder| folder.exists())?;
    #[cfg(unix)]
    {
        let told = rustix::fs::statvfs(there).ok()?;
        told.f_bavail.checked_mul(told.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_not_there_yet_has_the_room_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let free = free_space(dir.path()).unwrap();
        let later = free_space(&dir.path().join("not/there/yet")).unwrap();
        assert!(free > 0 && later.abs_diff(free) < free / 2, "{free} {later}");
    }
}
