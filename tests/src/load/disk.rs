//! A file whose blocks carry their address and a generation, read back and compared all the time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::mix;
use crate::random::Random;

const BLOCK: usize = 4096;
const WORDS: usize = BLOCK / 8;
/// The most blocks in one request.
const MOST: usize = 16;
/// Requests between two syncs.
const SYNC: u64 = 16;

/// Aligned as direct I/O has it.
#[derive(Clone, IntoBytes, FromBytes, Immutable)]
#[repr(C, align(4096))]
struct Block([u64; WORDS]);

/// How a file is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Past the page cache.
    Direct,
    /// By the page cache, which is emptied before what was written is read again.
    Cached,
}

/// The work that a load has done.
#[derive(Clone, Copy, Default, Debug)]
pub struct Done {
    /// Blocks that were written.
    pub written: u64,
    /// Blocks that were read and compared.
    pub verified: u64,
    /// Of the file's content at the end; [`sum`] of the same file is the same.
    pub sum: u64,
}

fn block(address: u64, generation: u64) -> Block {
    let seed = mix(mix(address) ^ generation);
    let mut words = [0; WORDS];
    for (word, value) in (0..).zip(&mut words) {
        *value = mix(seed ^ word);
    }
    (words[0], words[1]) = (address, generation);
    Block(words)
}

/// Writes, syncs, reads and compares `blocks` blocks of a new file until it is `enough`, and at last reads all of it.
///
/// # Errors
/// The system's; or a block is wrong.
pub fn run(path: &Path, blocks: u64, way: Way, enough: &AtomicBool) -> io::Result<Done> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    if way == Way::Direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path)?;
    file.set_len(blocks * BLOCK as u64)?;
    let mut load = Load {
        file,
        way,
        generations: vec![0; usize::try_from(blocks).map_err(io::Error::other)?],
        done: Done::default(),
    };
    let (mut random, _) = Random::fresh();
    for request in 1.. {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        load.write(random.below(blocks), random.below(MOST as u64) + 1)?;
        if request % SYNC == 0 {
            load.file.sync_data()?;
            if way == Way::Cached {
                posix_fadvise(load.file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            }
        }
        load.verify(random.below(blocks), random.below(MOST as u64) + 1)?;
    }
    load.file.sync_all()?;
    if way == Way::Cached {
        posix_fadvise(load.file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    (0..blocks).step_by(MOST).try_for_each(|first| load.verify(first, MOST as u64))?;
    let blocks = (0..).zip(&load.generations).filter(|(_, generation)| **generation > 0);
    load.done.sum = blocks.fold(0, |sum, (address, &generation)| sum.wrapping_add(mix(mix(address) ^ generation)));
    Ok(load.done)
}

struct Load {
    file: File,
    way: Way,
    generations: Vec<u64>,
    done: Done,
}

impl Load {
    fn range(&self, first: u64, count: u64) -> std::ops::Range<u64> {
        first..(first + count).min(self.generations.len() as u64)
    }

    fn write(&mut self, first: u64, count: u64) -> io::Result<()> {
        let mut data = Vec::new();
        for address in self.range(first, count) {
            let generation = &mut self.generations[usize::try_from(address).map_err(io::Error::other)?];
            *generation += 1;
            data.push(block(address, *generation));
        }
        self.done.written += data.len() as u64;
        self.file.write_all_at(data.as_slice().as_bytes(), first * BLOCK as u64)
    }

    fn verify(&mut self, first: u64, count: u64) -> io::Result<()> {
        let range = self.range(first, count);
        let mut data = vec![Block::new_zeroed(); usize::try_from(range.end - range.start).map_err(io::Error::other)?];
        self.file.read_exact_at(data.as_mut_slice().as_mut_bytes(), first * BLOCK as u64)?;
        for (address, found) in range.zip(&data) {
            let generation = self.generations[usize::try_from(address).map_err(io::Error::other)?];
            let right = if generation == 0 { Block::new_zeroed() } else { block(address, generation) };
            if let Some(word) = (0..WORDS).find(|&word| found.0[word] != right.0[word]) {
                let way = if self.way == Way::Direct { "direct" } else { "cached" };
                return Err(io::Error::other(format!(
                    "{way}: block {address} of generation {generation} is wrong from word {word} on: it begins with {:x?}",
                    &found.0[..4]
                )));
            }
            self.done.verified += 1;
        }
        Ok(())
    }
}

/// The sum of a file that [`run`] has written, by its content alone.
///
/// # Errors
/// The system's; or a block is torn or where it does not belong.
pub fn sum(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let mut sum: u64 = 0;
    for address in 0..blocks {
        let mut found = Block::new_zeroed();
        file.read_exact_at(found.0.as_mut_bytes(), address * BLOCK as u64)?;
        let generation = found.0[1];
        if found.0.iter().all(|word| *word == 0) {
            continue;
        }
        if found.0 != block(address, generation).0 {
            return Err(io::Error::other(format!("block {address} is wrong: it begins with {:x?}", &found.0[..4])));
        }
        sum = sum.wrapping_add(mix(mix(address) ^ generation));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_sum_that_its_load_says_and_a_changed_one_is_found_out() {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        let path = directory.path().join("file");
        let enough = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let load = scope.spawn(|| run(&path, 64, Way::Cached, &enough));
            std::thread::sleep(std::time::Duration::from_millis(50));
            enough.store(true, Ordering::Relaxed);
            load.join().expect("it does not panic").expect("the file system works")
        });
        assert!(done.written > 0 && done.verified >= 64);
        assert_eq!(sum(&path).expect("it is whole"), done.sum);
        let file = OpenOptions::new().write(true).open(&path).expect("it is there");
        let two: Vec<_> = [block(1, 7), block(1, 7)].iter().flat_map(|block| block.0.as_bytes().to_vec()).collect();
        file.write_all_at(&two, 0).expect("the file system works");
        assert!(sum(&path).is_err(), "a block is where another one belongs");
    }
}
