//! A file that is fetched piece by piece, and how it takes its place when it is whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Result, classify, create_folder, parent, sync_folder};

/// The beginning of a file; it grows at its end, and a killed process leaves what it has written.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Part {
    /// Goes on with the part that is there, or begins one.
    pub fn open(path: &Path) -> Result<Self> {
        create_folder(parent(path))?;
        let failed = |error| classify(path, "write", error);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { path: path.into(), file, len })
    }

    /// Bytes that are there.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `bytes` at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| classify(&self.path, "write", error))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is there.
    pub fn clear(&mut self) -> Result<()> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|error| classify(&self.path, "write", error))?;
        self.len = 0;
        Ok(())
    }

    /// Shows all bytes that are there to `look`, in order, until it says no.
    pub fn read(&mut self, mut look: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let failed = |error| classify(&self.path, "read", error);
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut block = vec![0; 1 << 20];
        loop {
            let got = self.file.read(&mut block).map_err(failed)?;
            match block.get(..got) {
                Some(bytes) if got > 0 && look(bytes) => {}
                _ => break,
            }
        }
        self.file.seek(SeekFrom::End(0)).map_err(failed).map(|_| ())
    }

    /// Makes the part the file `path`, which it must be whole for: every byte is on the disk before the name is.
    pub fn finish(self, path: &Path) -> Result<()> {
        self.file.sync_all().map_err(|error| classify(&self.path, "write", error))?;
        create_folder(parent(path))?;
        fs::rename(&self.path, path).map_err(|error| classify(path, "write", error))?;
        sync_folder(parent(path));
        Ok(())
    }
}

/// Puts a link to `target` at `link`, in place of what is there. `target` is relative to the link's folder; where the
/// system has no links, its file is copied.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    let folder = parent(link);
    create_folder(folder)?;
    let name = link.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fresh = link.with_file_name(format!("{}{name}", super::stale::prefix()));
    let _ = fs::remove_file(&fresh);
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(target, &fresh);
    #[cfg(not(unix))]
    let made = fs::copy(folder.join(target), &fresh).map(|_| ());
    let made = made.and_then(|()| fs::rename(&fresh, link));
    if made.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    made.map_err(|error| classify(link, "write", error))
}

/// Keeps other processes from the same work until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

/// Takes the lock that the file `path` stands for; nothing while another process has it.
pub fn try_lock(path: &Path) -> Result<Option<Lock>> {
    create_folder(parent(path))?;
    let failed = |error| classify(path, "lock", error);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => Ok(Some(Lock(file))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(classify(path, "remove", error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_part_grows_over_several_processes_and_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, whole) = (dir.path().join("blobs/x.incomplete"), dir.path().join("blobs/x"));
        let mut part = Part::open(&path).unwrap();
        assert!(part.is_empty());
        part.write(b"one ").unwrap();
        drop(part);
        let mut part = Part::open(&path).unwrap();
        assert_eq!(part.len(), 4);
        let mut seen = Vec::new();
        part.read(|bytes| {
            seen.extend_from_slice(bytes);
            true
        })
        .unwrap();
        assert_eq!(seen, b"one ");
        part.write(b"two").unwrap();
        part.finish(&whole).unwrap();
        assert_eq!(fs::read(&whole).unwrap(), b"one two");
        assert!(!path.exists());
        let mut part = Part::open(&path).unwrap();
        part.write(b"wrong").unwrap();
        part.clear().unwrap();
        part.write(b"ok").unwrap();
        part.finish(&whole).unwrap();
        assert_eq!(fs::read(&whole).unwrap(), b"ok");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_relative_and_replaced_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        fs::write(dir.path().join("blobs/a"), "a").unwrap();
        fs::write(dir.path().join("blobs/b"), "b").unwrap();
        let at = dir.path().join("snapshots/1/file");
        for name in ["a", "b"] {
            link(&Path::new("../../blobs").join(name), &at).unwrap();
            assert_eq!(fs::read_to_string(&at).unwrap(), name);
        }
        assert_eq!(super::super::list(at.parent().unwrap()).unwrap(), ["file"]);
    }

    #[test]
    fn a_lock_is_for_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".locks/x.lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some() && try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
