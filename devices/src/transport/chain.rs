//! One request's buffers, gathered from a descriptor chain.

use outrigger_protocol::server::{Memory, MemoryError};

/// The most descriptors a chain may have: the largest queue's size (virtio 1.2, section 2.7.5.3.1).
pub const MAX_SEGMENTS: usize = super::layout::MAX_QUEUE_SIZE as usize;

/// A contiguous range of client memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First DMA address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// A descriptor that a chain cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// More than [`MAX_SEGMENTS`] descriptors, or a loop.
    #[error("more than {MAX_SEGMENTS} descriptors in a chain")]
    TooManyDescriptors,
    /// More than 4 GiB - 1, which a used element could not report (virtio 1.2, section 2.7.5).
    #[error("a chain of 4 GiB or more")]
    TooLong,
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, section 2.7.4.2).
    #[error("a readable descriptor after a writable one")]
    ReadableAfterWritable,
}

/// The buffers of one request: those the device reads, then those it writes. Allocated once and reused.
#[derive(Debug)]
pub struct Chain {
    segments: Box<[Segment]>,
    count: usize,
    readable: usize,
    descriptors: usize,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl Chain {
    /// Room for the longest chain.
    pub fn new() -> Self {
        Self {
            segments: vec![Segment::default(); MAX_SEGMENTS].into_boxed_slice(),
            count: 0,
            readable: 0,
            descriptors: 0,
            readable_bytes: 0,
            writable_bytes: 0,
        }
    }

    /// The buffers that the device reads.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The buffers that the device writes.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..self.count]
    }

    /// Bytes in [`Chain::readable`].
    pub fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    /// Bytes in [`Chain::writable`].
    pub fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }

    pub(super) fn clear(&mut self) {
        (self.count, self.readable, self.descriptors) = (0, 0, 0);
        (self.readable_bytes, self.writable_bytes) = (0, 0);
    }

    /// Adds a descriptor. Empty ones count towards the limit and are otherwise ignored.
    pub(crate) fn add(&mut self, segment: Segment, writable: bool) -> Result<(), ChainError> {
        if self.descriptors == MAX_SEGMENTS {
            return Err(ChainError::TooManyDescriptors);
        }
        self.descriptors += 1;
        if segment.length == 0 {
            return Ok(());
        }
        let bytes =
            self.readable_bytes.checked_add(self.writable_bytes).and_then(|sum| sum.checked_add(segment.length));
        if bytes.is_none() {
            return Err(ChainError::TooLong);
        }
        if writable {
            self.writable_bytes += segment.length;
        } else if self.count > self.readable {
            return Err(ChainError::ReadableAfterWritable);
        } else {
            self.readable_bytes += segment.length;
            self.readable += 1;
        }
        self.segments[self.count] = segment;
        self.count += 1;
        Ok(())
    }
}

/// At most `length` bytes of `segments`, after the first `skip` bytes.
pub fn part(segments: &[Segment], mut skip: u32, mut length: u32) -> impl Iterator<Item = Segment> + Clone {
    segments.iter().filter_map(move |&Segment { address, length: whole }| {
        let skipped = skip.min(whole);
        skip -= skipped;
        let taken = length.min(whole - skipped);
        length -= taken;
        (taken > 0).then(|| Segment { address: address.saturating_add(skipped.into()), length: taken })
    })
}

/// `segments`, adjacent ones joined, because a message costs the same whatever it moves.
fn merged(segments: impl IntoIterator<Item = Segment>) -> impl Iterator<Item = Segment> {
    let mut segments = segments.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut merged = segments.next()?;
        let end = |segment: Segment| segment.address.checked_add(segment.length.into());
        while let Some(next) = segments.next_if(|next| end(merged) == Some(next.address)) {
            merged.length = merged.length.checked_add(next.length)?;
        }
        Some(merged)
    })
}

/// Copies the first bytes of `segments` to `data`. If `segments` end early, the rest of `data` is unchanged.
pub fn gather(
    memory: &Memory,
    segments: impl IntoIterator<Item = Segment>,
    mut data: &mut [u8],
) -> Result<(), MemoryError> {
    for segment in merged(segments) {
        let (part, rest) = data.split_at_mut(data.len().min(segment.length as usize));
        memory.read(segment.address, part)?;
        data = rest;
        if data.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Copies `data` to the first bytes of `segments`, as far as there is room.
pub fn scatter(
    memory: &Memory,
    segments: impl IntoIterator<Item = Segment>,
    mut data: &[u8],
) -> Result<(), MemoryError> {
    for segment in merged(segments) {
        let (part, rest) = data.split_at(data.len().min(segment.length as usize));
        memory.write(segment.address, part)?;
        data = rest;
        if data.is_empty() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(length: u32) -> Segment {
        Segment { address: 0x1000, length }
    }

    #[test]
    fn readable_and_writable_parts_are_told_apart() {
        let mut chain = Chain::new();
        for (length, writable) in [(16, false), (0, false), (512, true), (0, false), (1, true)] {
            chain.add(segment(length), writable).unwrap();
        }
        assert_eq!(chain.readable(), [segment(16)]);
        assert_eq!(chain.writable(), [segment(512), segment(1)]);
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 513));
        assert_eq!(chain.add(segment(1), false), Err(ChainError::ReadableAfterWritable));
    }

    #[test]
    fn parts_are_cut_from_any_layout() {
        let segment = |address, length| Segment { address, length };
        let part = |segments: &[Segment], skip, length| part(segments, skip, length).collect::<Vec<_>>();
        assert_eq!(part(&[segment(0, 16), segment(100, 512)], 16, 512), [segment(100, 512)]);
        assert_eq!(part(&[segment(0, 528)], 16, 512), [segment(16, 512)]);
        assert_eq!(part(&[segment(0, 10), segment(100, 518)], 16, 512), [segment(106, 512)]);
        assert_eq!(part(&[segment(0, 512), segment(600, 1)], 0, 512), [segment(0, 512)]);
        assert_eq!(part(&[segment(0, 513)], 0, 512), [segment(0, 512)]);
    }

    #[test]
    fn neighbours_are_moved_at_once() {
        let segment = |address, length| Segment { address, length };
        let merged = |segments: &[Segment]| super::merged(segments.iter().copied()).collect::<Vec<_>>();
        assert_eq!(merged(&[segment(0, 16), segment(16, 512), segment(1024, 8)]), [segment(0, 528), segment(1024, 8)]);
        assert_eq!(merged(&[segment(16, 16), segment(0, 16)]), [segment(16, 16), segment(0, 16)]);
        assert_eq!(merged(&[segment(u64::MAX - 7, 8), segment(0, 16)]).len(), 2);
    }

    #[test]
    fn descriptors_and_bytes_are_bounded() {
        let mut chain = Chain::new();
        chain.add(segment(u32::MAX), false).unwrap();
        assert_eq!(chain.add(segment(1), true), Err(ChainError::TooLong));
        chain.clear();
        for _ in 0..MAX_SEGMENTS {
            chain.add(segment(0), true).unwrap();
        }
        assert_eq!(chain.add(segment(0), true), Err(ChainError::TooManyDescriptors));
    }
}
