//! Files: the only user of `std::fs`. Every error names the path and says what to do.

pub mod folder;
mod memory;
mod part;
mod space;
mod stale;
mod swap;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

pub use memory::available_memory;
pub use part::{Lock, Part, link, remove, try_lock};
pub use space::free_space;
pub use stale::clean;
pub use swap::{replace_folder, write_folder};

/// What can go wrong with a path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{path}` does not exist; {hint}")]
    Missing { path: PathBuf, hint: String },
    #[error("`{path}` is a folder; give the path of a file")]
    Folder { path: PathBuf },
    #[error("`{path}` is a file; give the path of a folder")]
    NotFolder { path: PathBuf },
    #[error("`{path}` is a {kind}, not a regular file; copy its content into a file and give that")]
    Special { path: PathBuf, kind: &'static str },
    #[error("permission denied: cannot {action} `{path}`; see `ls -l` for who may")]
    Permission { path: PathBuf, action: &'static str },
    #[error("`{path}` has {got} bytes, more than the {limit} bytes read here; split it or make it smaller")]
    TooLarge { path: PathBuf, got: u64, limit: u64 },
    #[error("`{path}` is not UTF-8 text: byte {byte:#04x} in line {line}; save it as UTF-8")]
    NotText { path: PathBuf, line: usize, byte: u8 },
    #[error("no space left for `{path}`; free some, or choose a folder on another disk")]
    Full { path: PathBuf },
    #[error("`{path}` is on a read-only file system; choose another folder")]
    ReadOnly { path: PathBuf },
    #[error("not enough memory for the {bytes} bytes of `{path}`")]
    Memory { path: PathBuf, bytes: u64 },
    #[error("cannot {action} `{path}`: {source}")]
    Other { path: PathBuf, action: &'static str, source: io::Error },
}

pub type Result<T> = std::result::Result<T, Error>;

/// A file's bytes, mapped into memory and read on demand.
#[derive(Debug)]
pub struct Mmap(memmap2::Mmap);

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The whole content of a regular file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_limited(path, u64::MAX)
}

/// The whole content of a regular file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, len) = open(path)?;
    if len > limit {
        return Err(Error::TooLarge { path: path.into(), got: len, limit });
    }
    let out_of_memory = || Error::Memory { path: path.into(), bytes: len };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(len).map_err(|_| out_of_memory())?).map_err(|_| out_of_memory())?;
    // One byte more than allowed: a file that grows while it is read is caught too.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| classify(path, "read", error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.into(), got: bytes.len() as u64, limit });
    }
    Ok(bytes)
}

/// The whole content of a UTF-8 file of at most `limit` bytes; a byte order mark is left in.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_limited(path, limit)?).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = bytes.iter().take(valid).filter(|&&byte| byte == b'\n').count() + 1;
        Error::NotText { path: path.into(), line, byte: bytes.get(valid).copied().unwrap_or(0) }
    })
}

/// A regular file mapped into memory.
pub fn map(path: &Path) -> Result<Mmap> {
    let (file, _) = open(path)?;
    #[expect(unsafe_code, reason = "mapping a file is the only way to read part of a 14 GB model without copying it")]
    // SAFETY: the map is private to `Mmap`, read-only, and outlives every slice of it. Another process that truncates
    // the file meanwhile can end this one with SIGBUS, never corrupt it: files are taken as unchanging while in use.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| classify(path, "map", error))?;
    Ok(Mmap(map))
}

/// Whether a regular file is there.
pub fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Whether a folder is there.
pub fn is_folder(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Whether anything is there.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether a link is there.
pub fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

/// The length in bytes of a regular file.
pub fn len(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(|error| classify(path, "read", error))?;
    regular(path, &metadata)?;
    Ok(metadata.len())
}

/// The absolute path without links and `..`.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|error| classify(path, "find", error))
}

/// The names in a folder, sorted.
pub fn list(folder: &Path) -> Result<Vec<String>> {
    let failed = |error| classify(folder, "list", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Makes a folder and the ones above it; one that is there already is fine.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::NotFolder { path: path.into() },
        _ => classify(path, "create", error),
    })
}

/// Replaces or makes a file so that at every moment it holds all of the old bytes or all of the new ones.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As `write_atomic`, with the content written by `write` (for content that need not be in memory at once).
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    // A link keeps being a link: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if is_folder(&target) {
        return Err(Error::Folder { path: path.into() });
    }
    let failed = |error| classify(path, "write", error);
    let folder = parent(&target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(stale::prefix());
    #[cfg(unix)]
    builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666)); // umask applies
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    {
        let mut buffered = io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&target).map_err(|error| failed(error.error))?;
    sync_folder(folder);
    Ok(())
}

/// The folder a path lies in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename in `folder` survive a power cut; not every file system can, so failure is no error.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |error| classify(path, "read", error);
    // Looked at before it is opened: opening a named pipe waits for a writer.
    regular(path, &fs::metadata(path).map_err(failed)?)?;
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    regular(path, &metadata)?;
    Ok((file, metadata.len()))
}

fn regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    if metadata.is_dir() {
        return Err(Error::Folder { path: path.into() });
    }
    Err(Error::Special { path: path.into(), kind: special(metadata.file_type()) })
}

#[cfg(unix)]
fn special(kind: fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        kind if kind.is_char_device() || kind.is_block_device() => "device",
        kind if kind.is_fifo() => "named pipe",
        kind if kind.is_socket() => "socket",
        _ => "special file",
    }
}

#[cfg(not(unix))]
fn special(_: fs::FileType) -> &'static str {
    "special file"
}

fn classify(path: &Path, action: &'static str, source: io::Error) -> Error {
    let path = path.to_path_buf();
    match source.kind() {
        ErrorKind::NotFound => {
            let hint = missing_hint(&path);
            Error::Missing { path, hint }
        }
        ErrorKind::PermissionDenied => Error::Permission { path, action },
        ErrorKind::IsADirectory => Error::Folder { path },
        ErrorKind::NotADirectory => {
            let file = path.ancestors().find(|folder| is_file(folder)).map(Path::to_path_buf);
            Error::NotFolder { path: file.unwrap_or(path) }
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Error::Full { path },
        ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { path },
        _ => Error::Other { path, action, source },
    }
}

/// What to try instead of a path that is not there: the folder that is missing, or a name like it.
fn missing_hint(path: &Path) -> String {
    let folder = parent(path);
    if !is_folder(folder) {
        let there = folder.ancestors().find(|folder| is_folder(folder) && !folder.as_os_str().is_empty());
        return match there {
            Some(there) => format!("its folder does not either (`{}` does)", there.display()),
            None => "its folder does not either".into(),
        };
    }
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let near = list(folder)
        .unwrap_or_default()
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&name, &wanted), name))
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 4))
        .min();
    match near {
        Some((_, name)) => format!("did you mean `{}`?", folder.join(name).display()),
        None => format!("look what `{}` holds", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_is_not_a_regular_file_is_named() {
        let dir = folder();
        assert_eq!(
            read(dir.path()).unwrap_err().to_string(),
            format!("`{}` is a folder; give the path of a file", dir.path().display())
        );
        assert!(map(dir.path()).unwrap_err().to_string().contains("is a folder"));
        #[cfg(unix)]
        {
            let zero = read(Path::new("/dev/zero")).unwrap_err().to_string();
            assert_eq!(zero, "`/dev/zero` is a device, not a regular file; copy its content into a file and give that");
            let socket = dir.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            assert!(read(&socket).unwrap_err().to_string().contains("is a socket"));
            let pipe = dir.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
            assert!(made.success());
            assert!(read(&pipe).unwrap_err().to_string().contains("is a named pipe"));
        }
    }

    #[test]
    fn a_missing_file_comes_with_what_to_try() {
        let dir = folder();
        fs::write(dir.path().join("meatballs.jsonl"), "x").unwrap();
        let near = read(&dir.path().join("meatbals.jsonl")).unwrap_err().to_string();
        assert!(near.ends_with("meatballs.jsonl`?"), "{near}");
        let far = read(&dir.path().join("a/b/c.jsonl")).unwrap_err().to_string();
        assert!(far.contains("its folder does not either"), "{far}");
        let through = read(&dir.path().join("meatballs.jsonl/x")).unwrap_err().to_string();
        assert!(through.contains("meatballs.jsonl` is a file; give the path of a folder"), "{through}");
    }

    #[test]
    fn limits_and_text_are_checked() {
        let dir = folder();
        let path = dir.path().join("text");
        fs::write(&path, b"one\ntwo \xff\n").unwrap();
        assert!(matches!(read_limited(&path, 9), Err(Error::TooLarge { got: 10, limit: 9, .. })));
        assert!(matches!(read_text(&path, 10), Err(Error::NotText { line: 2, byte: 0xff, .. })));
        fs::write(&path, "\u{feff}ok").unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "\u{feff}ok");
        fs::write(&path, b"").unwrap();
        assert!(map(&path).unwrap().is_empty());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_rubbish() {
        let dir = folder();
        let path = dir.path().join("file");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"half of the n")?;
            Err(io::Error::from(ErrorKind::StorageFull))
        });
        assert!(failed.unwrap_err().to_string().starts_with("no space left for `"));
        assert_eq!(read(&path).unwrap(), b"old");
        assert_eq!(list(dir.path()).unwrap(), ["file"]);
        write_atomic(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert!(matches!(write_atomic(dir.path(), b""), Err(Error::Folder { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_written_file_is_readable_by_others_and_a_link_stays_a_link() {
        use std::os::unix::fs::PermissionsExt;
        let dir = folder();
        let (path, plain, link) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("link"));
        write_atomic(&path, b"1").unwrap();
        fs::write(&plain, b"1").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_atomic(&link, b"2").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&path).unwrap(), b"2");
    }

    #[test]
    fn a_folder_is_written_whole_and_keeps_what_it_held() {
        let dir = folder();
        let path = dir.path().join("runs/adapter");
        write_folder(&path, &[("a", b"1"), ("b", b"2")]).unwrap();
        fs::write(path.join("README.md"), "mine").unwrap();
        write_folder(&path, &[("a", b"3")]).unwrap();
        assert_eq!(list(&path).unwrap(), ["README.md", "a", "b"]);
        assert_eq!(read(&path.join("a")).unwrap(), b"3");
        assert_eq!(list(&dir.path().join("runs")).unwrap(), ["adapter"]);
        assert!(matches!(write_folder(&path.join("a"), &[]), Err(Error::NotFolder { .. })));
    }
}
