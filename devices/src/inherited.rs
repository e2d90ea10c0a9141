//! The file behind a descriptor that came from a predecessor, found out without waiting for another process.

use std::os::fd::AsRawFd;

/// Major and minor number of a character device; none: it is something else. Its file system, which may be a process of
/// somebody's, is not asked.
pub(crate) fn character_device(file: &impl AsRawFd) -> Option<(u32, u32)> {
    // SAFETY: `statx` is integers, for which zero is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: reads an empty path, writes a `statx`.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_TYPE, &raw mut found) };
    let is_character_device = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFCHR;
    (result == 0 && is_character_device).then_some((found.stx_rdev_major, found.stx_rdev_minor))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn devices_are_told_from_files() {
        assert_eq!(character_device(&File::open("/dev/null").unwrap()), Some((1, 3)));
        assert_eq!(character_device(&File::open("/proc/self/exe").unwrap()), None);
    }
}
