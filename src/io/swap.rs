//! Folders that are replaced whole: at every moment the path holds all of the old files or all of the new ones.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::{Error, Result, classify, create_folder, exists, is_folder, parent, sync_folder};

/// Makes the folder `path` with these files, or replaces the one that is there in one step; its other files stay.
pub fn write_folder(path: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    replace_folder(path, files, &[], |_| Ok(()))
}

/// As `write_folder`; files of the old folder that are named in `gone` and not in `files` do not stay.
///
/// `check` sees the new folder, under another name, before it takes the place of the old one; when it fails, the old
/// one stays as it was.
pub fn replace_folder<E: From<Error>>(
    path: &Path,
    files: &[(&str, &[u8])],
    gone: &[&str],
    check: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let failed = |error| classify(path, "write", error);
    // A link keeps being a link: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let is_there = exists(&target);
    if is_there && !is_folder(&target) {
        return Err(Error::NotFolder { path: path.into() }.into());
    }
    let folder = parent(&target);
    create_folder(folder)?;
    super::clean(folder);
    let temporary = beside(folder).map_err(failed)?;
    let fresh = temporary.path();
    for (name, bytes) in files {
        step("write").and_then(|()| write_new(&fresh.join(name), bytes)).map_err(failed)?;
    }
    check(fresh)?;
    if is_there {
        let is_old = |name: &str| gone.contains(&name) || files.iter().any(|(new, _)| *new == name);
        take_over(&target, fresh, &is_old).map_err(failed)?;
    }
    sync_folder(fresh);
    step("move").map_err(failed)?;
    if is_there {
        exchange(fresh, &target).map_err(failed)?; // the temporary folder is the old one now, and is removed
    } else {
        fs::rename(fresh, &target).map_err(failed)?;
        let _ = temporary.keep(); // renamed: nothing left to remove
    }
    sync_folder(folder);
    step("moved").map_err(failed)?;
    Ok(())
}

fn beside(folder: &Path) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(super::stale::prefix());
    #[cfg(unix)]
    builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777)); // umask applies
    builder.tempdir_in(folder)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Puts what `old` holds beside the new files into `fresh` too: by a second name where the disk can, else by a copy.
fn take_over(old: &Path, fresh: &Path, is_replaced: &dyn Fn(&str) -> bool) -> io::Result<()> {
    fs::set_permissions(fresh, fs::metadata(old)?.permissions())?;
    for entry in fs::read_dir(old)? {
        let entry = entry?;
        if is_replaced(&entry.file_name().to_string_lossy()) {
            continue;
        }
        step("take over")?;
        let (from, to) = (entry.path(), fresh.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            fs::create_dir(&to)?;
            take_over(&from, &to, &|_| false)?;
        } else if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

/// Lets two folders change names in one step; where the system cannot, in two.
fn exchange(fresh: &Path, target: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, fresh, CWD, target, RenameFlags::EXCHANGE) {
            // What old kernels and network file systems answer.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            told => return Ok(told?),
        }
    }
    by_two_renames(fresh, target)
}

/// A kill between the two leaves the old folder whole, as `.unslothify-…/old`, and the new one whole beside it.
fn by_two_renames(fresh: &Path, target: &Path) -> io::Result<()> {
    let aside = beside(parent(target))?;
    let old = aside.path().join("old");
    fs::rename(target, &old)?;
    let moved = step("between").and_then(|()| fs::rename(fresh, target));
    if let Err(error) = moved {
        return match fs::rename(&old, target) {
            Ok(()) => Err(error),
            Err(_) => {
                let kept = aside.keep().join("old");
                Err(io::Error::new(error.kind(), format!("{error}; the old folder is `{}` now", kept.display())))
            }
        };
    }
    Ok(())
}

/// Where the tests look at the disk as a killed process would leave it, and make the next call fail.
fn step(what: &'static str) -> io::Result<()> {
    #[cfg(test)]
    return tests::at_step(what);
    #[cfg(not(test))]
    {
        let _ = what;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::cell::RefCell;
    use std::io::ErrorKind;
    use std::rc::Rc;

    use super::super::{list, read};
    use super::*;

    type Observer = Box<dyn FnMut(&'static str) -> io::Result<()>>;

    thread_local! {
        static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
    }

    pub(super) fn at_step(what: &'static str) -> io::Result<()> {
        OBSERVER.with(|observer| observer.borrow_mut().as_mut().map_or(Ok(()), |observe| observe(what)))
    }

    /// Runs `work`, which fails at step number `fail_at`; gives the steps it came to and what `look` saw at each.
    fn observed<T: 'static>(
        fail_at: usize,
        look: impl Fn() -> T + 'static,
        work: impl FnOnce() -> Result<()>,
    ) -> (Result<()>, Vec<(&'static str, T)>) {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let own = seen.clone();
        let observe: Observer = Box::new(move |what| {
            own.borrow_mut().push((what, look()));
            if own.borrow().len() > fail_at { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        OBSERVER.with(|observer| *observer.borrow_mut() = Some(observe));
        let result = work();
        OBSERVER.with(|observer| *observer.borrow_mut() = None);
        (result, Rc::try_unwrap(seen).unwrap_or_else(|_| unreachable!("the observer is gone")).into_inner())
    }

    const OLD: [(&str, &[u8]); 3] = [("a", b"old a"), ("b", b"old b"), ("stale", b"old")];
    const NEW: [(&str, &[u8]); 2] = [("a", b"new a"), ("b", b"new b")];

    /// The files of `path` as text, or nothing.
    fn content(path: &Path) -> Option<Vec<String>> {
        let names = list(path).ok()?;
        Some(names.iter().map(|name| String::from_utf8(read(&path.join(name)).unwrap_or_default()).unwrap()).collect())
    }

    fn replace(path: &Path) -> Result<()> {
        replace_folder(path, &NEW, &["stale"], |_| Ok(()))
    }

    #[test]
    fn a_failure_or_a_kill_at_any_step_leaves_the_old_or_the_new_folder_and_never_a_mix() {
        let (old, new) = (["old a", "old b", "old"].map(String::from), ["new a", "new b"].map(String::from));
        let mut fail_at = 0;
        loop {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("adapter");
            write_folder(&path, &OLD).unwrap();
            let looked = path.clone();
            let (result, seen) = observed(fail_at, move || content(&looked), || replace(&path));
            for (what, found) in seen {
                let found = found.unwrap();
                assert!(found == if what == "moved" { &new[..] } else { &old[..] }, "at `{what}`: {found:?}");
            }
            assert_eq!(list(dir.path()).unwrap(), ["adapter"], "no rubbish stays");
            if result.is_ok() {
                assert_eq!(content(&path).unwrap(), new);
                assert_eq!(fail_at, 4, "two files written, moved, and the end");
                break;
            }
            fail_at += 1;
        }
    }

    #[test]
    fn a_check_that_fails_leaves_the_old_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter");
        write_folder(&path, &OLD).unwrap();
        let refused = replace_folder(&path, &NEW, &[], |fresh| {
            assert_eq!(content(fresh).unwrap(), ["new a", "new b"]);
            Err(Error::Full { path: fresh.into() })
        });
        assert!(refused.is_err());
        assert_eq!(content(&path).unwrap(), ["old a", "old b", "old"]);
        assert_eq!(list(dir.path()).unwrap(), ["adapter"]);
    }

    #[test]
    fn what_else_the_old_folder_holds_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter");
        write_folder(&path, &OLD).unwrap();
        fs::create_dir(path.join("notes")).unwrap();
        fs::write(path.join("notes/today"), "mine").unwrap();
        fs::write(path.join("README.md"), "mine").unwrap();
        replace(&path).unwrap();
        assert_eq!(list(&path).unwrap(), ["README.md", "a", "b", "notes"]);
        assert_eq!(read(&path.join("notes/today")).unwrap(), b"mine");
    }

    #[test]
    fn two_renames_keep_both_folders_whole_and_put_the_old_one_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, fresh) = (dir.path().join("adapter"), dir.path().join("fresh"));
        for (fail_at, wanted) in [(0, "old a"), (1, "new a")] {
            write_folder(&path, &OLD).unwrap();
            write_folder(&fresh, &NEW).unwrap();
            let (looked, folder) = (fresh.clone(), dir.path().to_path_buf());
            let look = move || {
                let aside = list(&folder).unwrap().into_iter().find(|name| name.starts_with(".unslothify-")).unwrap();
                (content(&folder.join(aside).join("old")).unwrap(), content(&looked).unwrap())
            };
            let swap = || by_two_renames(&fresh, &path).map_err(|error| classify(&path, "write", error));
            let (result, seen) = observed(fail_at, look, swap);
            assert_eq!(result.is_ok(), fail_at == 1);
            let (what, (old, new)) = &seen[0];
            assert_eq!((*what, old[0].as_str(), new[0].as_str()), ("between", "old a", "new a"));
            assert_eq!(content(&path).unwrap()[0], wanted);
            fs::remove_dir_all(&path).unwrap();
            let _ = fs::remove_dir_all(&fresh); // moved when the swap went well
            assert!(list(dir.path()).unwrap().is_empty());
        }
    }
}
