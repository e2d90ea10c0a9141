//! Loads on the disk, /dev/vda.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use super::aio::{Depth, Direction};
use super::setup::{self, Scale};
use super::{Spent, together};
use crate::figure::Figure;

pub const DISK: &str = "/dev/vda";
const KIB: usize = 1024;
const FLUSHES: usize = 1000;

#[derive(Clone, Copy, Debug)]
struct Load {
    direction: Direction,
    block: usize,
    depth: usize,
    random: bool,
    operations: usize,
}

fn load(figure: &Figure) -> Option<Load> {
    use Direction::{Read, Write};
    let load = |direction, block, depth, random, operations| Load { direction, block, depth, random, operations };
    Some(match figure.name {
        "read-4k-qd1" => load(Read, 4 * KIB, 1, true, 3000),
        "read-4k-qd32" => load(Read, 4 * KIB, 32, true, 9600),
        "write-4k-qd1" => load(Write, 4 * KIB, 1, true, 3000),
        "write-4k-qd32" => load(Write, 4 * KIB, 32, true, 9600),
        "read-128k-qd4" => load(Read, 128 * KIB, 4, false, 1200),
        "write-128k-qd4" => load(Write, 128 * KIB, 4, false, 1200),
        _ => return None,
    })
}

/// Runs the load of a figure, after a tenth of it to warm up.
pub fn measure(figure: &Figure, scale: Scale) -> io::Result<Spent> {
    setup::wait_for(DISK)?;
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(DISK)?;
    let size = nix::unistd::lseek(&disk, 0, nix::unistd::Whence::SeekEnd)?.cast_unsigned();
    if figure.name == "write-flush" {
        return write_and_flush(&disk, size, FLUSHES / scale.part);
    }
    let load = load(figure).ok_or_else(|| io::Error::other(format!("no load is called {}", figure.name)))?;
    let each = load.operations / scale.part / scale.threads;
    let offsets = offsets(size, load.block, load.random).take(each * scale.threads).collect::<Vec<_>>();
    let prepare = |thread| {
        let mut depth = Depth::new(&disk, load.direction, load.depth, load.block)?;
        let offsets = &offsets[thread * each..][..each];
        depth.run(&offsets[..each / 10])?;
        Ok((depth, offsets))
    };
    together::run(scale.threads, offsets.len(), prepare, |(depth, offsets)| depth.run(offsets))
}

/// Flushes each write before the next.
fn write_and_flush(disk: &File, size: u64, operations: usize) -> io::Result<Spent> {
    let offsets = offsets(size, 4 * KIB, true).take(operations).collect::<Vec<_>>();
    let room = vec![0; 8 * KIB];
    let aligned = &room[room.as_ptr().align_offset(4 * KIB)..][..4 * KIB];
    let start = Instant::now();
    for &offset in &offsets {
        disk.write_all_at(aligned, offset)?;
        disk.sync_data()?;
    }
    Ok(Spent::since(start, operations))
}

/// The offsets of the blocks on a disk of `size` bytes: sequential, or random (xorshift, always the same).
pub fn offsets(size: u64, block: usize, random: bool) -> impl Iterator<Item = u64> {
    let (blocks, mut state) = (size / block as u64, 0x9e37_79b9_7f4a_7c15_u64);
    (0..).map(move |number| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (if random { state } else { number }) % blocks * block as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_lies_on_the_disk() {
        let size = 1 << 20;
        assert!(offsets(size, 4096, true).take(1000).all(|offset| offset + 4096 <= size && offset % 4096 == 0));
        assert_eq!(offsets(size, 1 << 19, false).take(3).collect::<Vec<_>>(), [0, 1 << 19, 0]);
    }

    #[test]
    fn a_real_file_is_written_and_read_by_the_kernels_own_asynchronous_io() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let offsets = offsets(1 << 20, 4096, true).take(100).collect::<Vec<_>>();
        for (direction, depth) in [(Direction::Write, 1), (Direction::Write, 32), (Direction::Read, 32)] {
            Depth::new(&file, direction, depth, 4096).unwrap().run(&offsets).unwrap();
        }
        let beyond = Depth::new(&file, Direction::Read, 1, 4096).unwrap().run(&[1 << 20]);
        assert!(beyond.unwrap_err().to_string().contains("ended with 0"));
    }
}
