//! Which client memory a device has written (specification: "`VFIO_DEVICE_FEATURE_DMA_LOGGING_START`" and the sections
//! after it).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use zerocopy::FromBytes;

use crate::codec::structures;
use crate::dirty_bitmap;
use crate::wire;

/// Writes are noted by pages of this many bytes, whatever page size the client hints at.
pub(super) const PAGE: u64 = 4096;
/// The most ranges that a client may name.
const MAX_RANGES: u32 = 4096;
/// One chunk stands for 4,096 pages, 16 MiB of client memory.
const CHUNK_PAGES: u64 = 4096;
const CHUNK_WORDS: usize = 64;
/// With this many chunks (32 MiB of them) no more is noted: everything counts as written.
const MAX_CHUNKS: usize = 1 << 16;

type Chunk = Box<[u64; CHUNK_WORDS]>;

/// The pages written since the log was started, or since they were last reported.
#[derive(Debug)]
pub(super) struct DirtyLog {
    /// First and last address of each range, sorted, without overlap. Empty: everything is of interest.
    ranges: Vec<(u64, u64)>,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    chunks: BTreeMap<u64, Chunk>,
    everything: bool,
}

impl DirtyLog {
    /// Starts a log. `EINVAL`: a page size that is not a power of two, ranges that are empty, wrap or overlap, or other
    /// ranges than the message says; `E2BIG`: too many of them.
    pub(super) fn start(data: &[u8]) -> Result<Self, Errno> {
        let (control, entries) = wire::DmaLoggingControl::read_from_prefix(data).map_err(|_| Errno::EINVAL)?;
        let length = (control.num_ranges as usize).checked_mul(size_of::<wire::DmaLoggingRange>());
        if !control.page_size.is_power_of_two() || length != Some(entries.len()) {
            return Err(Errno::EINVAL);
        }
        if control.num_ranges > MAX_RANGES {
            return Err(Errno::E2BIG);
        }
        let bounds = |range: wire::DmaLoggingRange| Some((range.iova, last(range.iova, range.length)?));
        let mut ranges = structures(entries).map(bounds).collect::<Option<Vec<_>>>().ok_or(Errno::EINVAL)?;
        ranges.sort_unstable();
        if ranges.windows(2).any(|pair| pair[0].1 >= pair[1].0) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { ranges, pages: Mutex::default() })
    }

    /// Notes a write; a part of a page counts as all of it.
    #[cold]
    pub(super) fn mark(&self, address: u64, length: usize) {
        let Some(end) = last(address, length as u64) else { return };
        if self.ranges.is_empty() {
            return self.pages().mark(address, end);
        }
        let first = self.ranges.partition_point(|range| range.1 < address);
        for &(from, to) in self.ranges[first..].iter().take_while(|range| range.0 <= end) {
            self.pages().mark(address.max(from), end.min(to));
        }
    }

    /// Takes the written pages of a range out of the log, as a bitmap: a page that lies within the range counts as not
    /// written from now on.
    pub(super) fn take(&self, report: &Report) -> Vec<u64> {
        let wire::DmaLoggingReport { iova, length, page_size } = report.request;
        let mut bitmap = vec![0; report.words];
        let mut pages = self.pages();
        if pages.everything {
            set_bits(&mut bitmap, 0, (length - 1) / page_size);
        } else {
            pages.take(iova, iova + (length - 1), |from, to| {
                set_bits(&mut bitmap, (from - iova) / page_size, (to - iova) / page_size);
            });
        }
        bitmap
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A report that makes sense.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) request: wire::DmaLoggingReport,
    words: usize,
}

impl Report {
    /// `EINVAL`: no such range or page size; `E2BIG`: a reply of more than `limit` bytes.
    pub(super) fn parse(data: &[u8], limit: usize) -> Result<Self, Errno> {
        let request = wire::DmaLoggingReport::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
        let words = dirty_bitmap::words(request.iova, request.length, request.page_size).ok_or(Errno::EINVAL)?;
        let words = usize::try_from(words).map_err(|_| Errno::E2BIG)?;
        if words > (limit - data.len()) / size_of::<u64>() {
            return Err(Errno::E2BIG);
        }
        Ok(Self { request, words })
    }

    /// How many bytes of data the reply has.
    pub(super) fn reply_size(&self) -> usize {
        size_of::<wire::DmaLoggingReport>() + self.words * size_of::<u64>()
    }
}

impl Pages {
    /// Notes all pages between two addresses, both included.
    fn mark(&mut self, from: u64, to: u64) {
        for page in from / PAGE..=to / PAGE {
            if self.everything {
                return;
            }
            let (chunk, word, bit) = position(page);
            let full = self.chunks.len() >= MAX_CHUNKS;
            if full && !self.chunks.contains_key(&chunk) {
                self.everything = true;
                self.chunks.clear();
                return;
            }
            self.chunks.entry(chunk).or_insert_with(|| Box::new([0; CHUNK_WORDS]))[word] |= bit;
        }
    }

    /// Hands the parts of pages that were written and lie between two addresses, both included, to `each`, and forgets
    /// those that lie there as a whole.
    fn take(&mut self, from: u64, to: u64, mut each: impl FnMut(u64, u64)) {
        let (first, last) = (from / PAGE, to / PAGE);
        for (&number, chunk) in self.chunks.range_mut(first / CHUNK_PAGES..=last / CHUNK_PAGES) {
            let start = number * CHUNK_PAGES;
            for page in start.max(first)..=(start + (CHUNK_PAGES - 1)).min(last) {
                let (_, word, bit) = position(page);
                if chunk[word] & bit == 0 {
                    continue;
                }
                let (begin, end) = (page * PAGE, page * PAGE + (PAGE - 1));
                each(begin.max(from), end.min(to));
                if begin >= from && end <= to {
                    chunk[word] &= !bit;
                }
            }
        }
        self.chunks.retain(|_, chunk| chunk.iter().any(|&word| word != 0));
    }
}

/// Where the bit of a page is: chunk, word, bit.
fn position(page: u64) -> (u64, usize, u64) {
    let within = usize::try_from(page % CHUNK_PAGES).expect("less than 4,096");
    (page / CHUNK_PAGES, within / 64, 1 << (within % 64))
}

/// The last address of a range; `None`: it is empty or wraps.
fn last(address: u64, length: u64) -> Option<u64> {
    address.checked_add(length.checked_sub(1)?)
}

/// Sets bits `from` to `to`, both included, of a bitmap that has them.
fn set_bits(bitmap: &mut [u64], from: u64, to: u64) {
    for bit in from..=to {
        let word = usize::try_from(bit / 64).expect("a bitmap is in memory");
        bitmap[word] |= 1 << (bit % 64);
    }
}

#[cfg(test)]
mod tests;
