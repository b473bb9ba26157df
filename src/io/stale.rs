//! Temporary files and folders that a killed process has left, and how the next one knows them.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// What every temporary name begins with.
const MARK: &str = ".unslothify-";
/// So old, one is left over even where nobody can tell whether its process lives.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

/// The beginning of this process's temporary names: `.unslothify-PLACE-PID-`, PLACE being where the number PID means a
/// process.
pub(super) fn prefix() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| format!("{MARK}{}-{}-", place(), std::process::id()))
}

/// Removes from `folder` what killed processes have left there under a temporary name; what cannot be removed stays. So
/// does everything where a swap was cut in the middle, for then the only copies have such names.
pub fn clean(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let is_ours = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(MARK));
    let entries: Vec<_> = entries.flatten().filter(is_ours).collect();
    if entries.iter().any(|entry| entry.path().join("old").exists()) {
        return;
    }
    for entry in entries {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(MARK)) else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
        if !is_left_over(rest, place(), age, is_running) {
            continue;
        }
        let path = entry.path();
        if metadata.is_dir() {
            let _ = fs::remove_dir_all(path);
        } else if metadata.is_file() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether the name `PLACE-PID-…` was made by a process that is gone.
fn is_left_over(rest: &str, here: &str, age: Duration, is_running: impl Fn(u32) -> bool) -> bool {
    let mut parts = rest.splitn(3, '-');
    let place = parts.next();
    let pid = parts.next().and_then(|pid| pid.parse().ok());
    match (place, pid) {
        (Some(place), Some(pid)) if place == here && !here.is_empty() => !is_running(pid),
        _ => age >= OLD,
    }
}

/// A short name for this start of the system and the set of processes seen here; empty where the system tells neither.
fn place() -> &'static str {
    static PLACE: OnceLock<String> = OnceLock::new();
    PLACE.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let processes = fs::read_link("/proc/self/ns/pid");
        let (Ok(boot), Ok(processes)) = (boot, processes) else { return String::new() };
        let text = format!("{} {}", boot.trim(), processes.display());
        // FNV-1a
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{:08x}", hash >> 32)
    })
}

fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_name_is_left_over_when_its_process_is_gone_or_when_it_is_old() {
        let is = |rest: &str, hours: u64| is_left_over(rest, "abcd", Duration::from_secs(hours * 3600), |pid| pid == 7);
        assert!(is("abcd-8-xyz", 0), "its process is gone");
        assert!(!is("abcd-7-xyz", 100), "its process runs");
        assert!(!is("ffff-8-xyz", 23), "another machine's, or of before a restart");
        assert!(is("ffff-8-xyz", 24));
        assert!(!is("xyz", 1) && is("xyz", 25), "of an older version");
        assert!(!is_left_over("-8-xyz", "", Duration::ZERO, |_| false), "nothing is known of the processes");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_dead_processes_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let dead = format!("{MARK}{}-{}-", place(), child.id());
        fs::create_dir(dir.path().join(format!("{dead}folder"))).unwrap();
        fs::write(dir.path().join(format!("{dead}folder/a")), "half").unwrap();
        fs::write(dir.path().join(format!("{dead}file")), "half").unwrap();
        fs::create_dir(dir.path().join(format!("{}mine", prefix()))).unwrap();
        fs::write(dir.path().join(".unslothify-notes"), "").unwrap();
        fs::write(dir.path().join("adapter"), "").unwrap();
        clean(dir.path());
        let mut left = super::super::list(dir.path()).unwrap();
        left.retain(|name| name.starts_with('.'));
        let mut wanted = vec![format!("{}mine", prefix()), ".unslothify-notes".to_owned()];
        wanted.sort();
        assert_eq!(left, wanted);
        fs::create_dir_all(dir.path().join(format!("{dead}aside/old"))).unwrap();
        fs::create_dir(dir.path().join(format!("{dead}fresh"))).unwrap();
        clean(dir.path());
        assert!(dir.path().join(format!("{dead}fresh")).exists(), "the new copy of a swap that was cut");
    }
}
