//! How much memory there is to take.

use std::fs;

/// Bytes that can be taken without swapping or being killed; nothing where the system does not say.
///
/// Linux: `MemAvailable`, and no more than the control group (a container's limit) leaves.
pub fn available_memory() -> Option<u64> {
    let read = |name: &str| fs::read_to_string(name).ok();
    let machine = mem_available(&read("/proc/meminfo")?)?;
    let group = |name: &str| read(&format!("/sys/fs/cgroup/{name}"));
    let left = match (group("memory.max"), group("memory.current"), group("memory.stat")) {
        (Some(max), Some(current), Some(stat)) => left_of_group(&max, &current, &stat),
        _ => None,
    };
    Some(left.map_or(machine, |left| left.min(machine)))
}

/// `MemAvailable:   21233520 kB`
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit less what is used; what only caches files is given up when it is needed. Without a limit: nothing.
fn left_of_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let cached = stat.lines().find_map(|line| line.strip_prefix("file ")).and_then(|bytes| bytes.trim().parse().ok());
    Some(max.saturating_sub(current.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_the_container_are_asked() {
        let meminfo = "MemTotal:       24684084 kB\nMemFree:        15187048 kB\nMemAvailable:   21233520 kB\n";
        assert_eq!(mem_available(meminfo), Some(21_233_520 << 10));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
        assert_eq!(left_of_group("1000\n", "700\n", "anon 600\nfile 100\nfile_mapped 90\n"), Some(400));
        assert_eq!(left_of_group("1000\n", "1100\n", ""), Some(0));
        assert_eq!(left_of_group("max\n", "700\n", ""), None);
    }
}
