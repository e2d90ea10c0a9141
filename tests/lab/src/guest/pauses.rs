//! Reads of the disk while its process is killed or replaced: how long nothing is completed.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use super::Spent;
use super::aio::{Depth, Direction};
use super::disk::{DISK, offsets};
use super::setup;

const BLOCK: usize = 4096;
/// How many pauses the mean is of.
const PAUSES: usize = 10;
/// A hundred reads fit in here: what is shorter is none.
const LEAST: Duration = Duration::from_millis(1);

pub fn measures(name: &str) -> bool {
    depth(name).is_some()
}

fn depth(name: &str) -> Option<usize> {
    match name {
        "restart-qd1" => Some(1),
        "restart-qd32" => Some(32),
        _ => None,
    }
}

/// Reads until there were [`PAUSES`].
pub fn measure(name: &str) -> io::Result<Spent> {
    setup::wait_for(DISK)?;
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(DISK)?;
    let size = nix::unistd::lseek(&disk, 0, nix::unistd::Whence::SeekEnd)?.cast_unsigned();
    let mut depth = Depth::new(&disk, Direction::Read, depth(name).unwrap_or(1), BLOCK)?;
    let paused = depth.run_until_paused(offsets(size, BLOCK, true), PAUSES, LEAST)?;
    Ok(Spent { nanoseconds: u64::try_from(paused.as_nanos()).unwrap_or(u64::MAX), count: PAUSES as u64 })
}
