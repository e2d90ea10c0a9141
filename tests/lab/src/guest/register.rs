//! Reads of a device's register as a driver makes them: here `device_status` of the disk's common configuration (virtio 1.2, section
//! 4.1.4.3), through the kernel's file for the BAR. Needs `iomem=relaxed`, as the driver holds the BAR, too.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use std::os::fd::AsRawFd;

use super::{Spent, setup};

const READS: usize = 2000;
/// `device_status` in the common configuration.
const DEVICE_STATUS: usize = 20;
/// The bits that the driver has set in it by now: acknowledge, driver, features ok, driver ok.
const RUNNING: u8 = 0x0f;

/// The average read.
pub fn read(part: usize) -> io::Result<Spent> {
    let reads = READS / part;
    setup::wait_for("/sys/block/vda")?;
    let function = fs::canonicalize("/sys/block/vda/device/..")?;
    let (bar, offset) = common_configuration(&fs::read(function.join("config"))?)
        .ok_or_else(|| io::Error::other("the disk has no virtio common configuration"))?;
    let (page, within) = (offset & !0xfff, (offset & 0xfff) + DEVICE_STATUS);
    let register = map(&function, bar, page)?.wrapping_add(within);
    // SAFETY: the mapping is a page of the BAR and is never unmapped, and the register lies in it: the capability's offset is aligned to
    // 4 bytes, so 20 bytes further is in this page or, for a device that puts it at a page's very end, refused by the assertion.
    let read = || unsafe { register.read_volatile() };
    assert!(within < 4096, "the common configuration crosses a page");
    if read() != RUNNING {
        return Err(io::Error::other(format!("device_status is {:#x}", read())));
    }
    let start = Instant::now();
    for _ in 0..reads {
        read();
    }
    Ok(Spent::since(start, reads))
}

/// BAR and offset from the vendor-specific capability of type 1 (virtio 1.2, section 4.1.4).
fn common_configuration(config: &[u8]) -> Option<(u8, usize)> {
    let mut at = usize::from(*config.get(0x34)?);
    for _ in 0..48 {
        let capability = config.get(at..at + 16)?;
        if capability[0] == 9 && capability[3] == 1 {
            let offset = u32::from_le_bytes(capability[8..12].try_into().ok()?);
            return Some((capability[4], offset as usize));
        }
        at = usize::from(capability[1]);
    }
    None
}

fn map(function: &Path, bar: u8, page: usize) -> io::Result<*mut u8> {
    let path: PathBuf = function.join(format!("resource{bar}"));
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(&path)?;
    let offset = libc::off_t::try_from(page).map_err(io::Error::other)?;
    // SAFETY: a new mapping, of a device's registers.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset) };
    if address == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        return Err(io::Error::other(format!("cannot map {}: {error}", path.display())));
    }
    Ok(address.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_space_without_the_capability_or_with_a_loop_has_none() {
        let mut config = vec![0; 256];
        assert_eq!(common_configuration(&config), None);
        assert_eq!(common_configuration(&config[..64]), None);
        config[0x34] = 0x40;
        config[0x41] = 0x40;
        assert_eq!(common_configuration(&config), None);
        config[0x34] = 0xff;
        assert_eq!(common_configuration(&config), None);
    }

    #[test]
    fn the_capability_is_found_behind_others() {
        let mut config = vec![0; 256];
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x11, 0x60]);
        config[0x60..0x6c].copy_from_slice(&[9, 0, 16, 1, 4, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(common_configuration(&config), Some((4, 0x1000)));
    }
}
