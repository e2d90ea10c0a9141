//! Disk images for guests.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes in the payload's disk.
pub const PAYLOAD_DISK: u64 = 1 << 20;

const SECTOR: usize = 512;
const PATTERN: u32 = 0x5eed_0000;

/// Makes the disk that the payload's `blk` check expects: sector 0 holds a pattern, the rest zeros.
pub fn for_payload(directory: &Path) -> PathBuf {
    let path = directory.join("disk.img");
    let mut file = File::create(&path).expect("the directory is ours");
    file.write_all(&words(|at| PATTERN + at)).expect("the file is ours");
    file.set_len(PAYLOAD_DISK).expect("the file is ours");
    path
}

/// Whether sector 1 holds what the `blk` check writes there.
pub fn payload_wrote(path: &Path) -> bool {
    let mut sector = [0; SECTOR];
    let mut file = File::open(path).expect("the test made it");
    file.seek(SeekFrom::Start(SECTOR as u64)).and_then(|_| file.read_exact(&mut sector)).expect("it has two sectors");
    sector == words(|at| !(PATTERN + at))
}

/// Whether sector 0 of such a disk still holds the pattern.
pub fn has_pattern(content: &[u8]) -> bool {
    content.starts_with(&words(|at| PATTERN + at))
}

/// An image of `length` bytes without content.
pub fn empty(path: &Path, length: u64) {
    File::create(path).and_then(|file| file.set_len(length)).expect("the directory is ours");
    assert_eq!(fs::metadata(path).expect("just made").len(), length);
}

fn words(word: impl Fn(u32) -> u32) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    for (at, bytes) in (0..).zip(sector.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&word(at).to_le_bytes());
    }
    sector
}
