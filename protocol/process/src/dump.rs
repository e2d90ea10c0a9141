//! Core dumps of a process that maps guest RAM: they are for finding its faults, and the guest's secrets do not belong in them.

use std::io;

use nix::libc;

/// Leaves the mapping of `length` bytes at `start` out of core dumps (madvise(2), `MADV_DONTDUMP`).
///
/// Content and validity of the mapping do not change; a range that is not mapped is only logged.
pub fn exclude(start: *mut u8, length: usize) {
    // SAFETY: this advice writes no memory, and says something about dumps only.
    if unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTDUMP) } != 0 {
        log::warn!("core dumps may hold guest memory: {}", io::Error::last_os_error());
    }
}

/// Whether the mapping at `start` is left out of core dumps: "dd" in `/proc/self/smaps` (proc_pid_smaps(5)).
#[must_use]
pub fn is_excluded(start: *const u8) -> bool {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let first = format!("{:x}-", start as usize);
    let mapping = text.lines().skip_while(|line| !line.starts_with(&first));
    mapping
        .skip(1)
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "dd"))
}
