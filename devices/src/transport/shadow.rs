//! A queue whose rings are reached by messages: copies on this side, so that a message moves what a batch of chains needs
//! and not one entry.

use std::sync::atomic::Ordering;

use outrigger_protocol::server::{Memory, MemoryError};
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{Descriptor, QueueLayout, UsedElement};

/// The copies. Entries of the available ring and their descriptors are current from when they were fetched until the
/// chains are in the used ring, as the driver may not change them in between (virtio 1.2, section 2.7.13).
///
/// Indices, flags and event words have no copies: each access is a message.
#[derive(Debug)]
pub struct Shadow {
    layout: QueueLayout,
    memory: Memory,
    available: Box<[u16]>,
    descriptors: Box<[Descriptor]>,
    used: Box<[UsedElement]>,
}

impl Shadow {
    /// Copies for the queue at `layout`.
    pub fn new(layout: &QueueLayout, memory: &Memory) -> Self {
        let size = layout.size.into();
        Self {
            layout: *layout,
            memory: memory.clone(),
            available: vec![0; size].into_boxed_slice(),
            descriptors: vec![Descriptor::new_zeroed(); size].into_boxed_slice(),
            used: vec![UsedElement::new_zeroed(); size].into_boxed_slice(),
        }
    }

    /// Fetches the entries from `first` to before `end`, which the driver has made available, and all descriptors.
    pub fn fetch(&mut self, first: u16, end: u16) -> Result<(), MemoryError> {
        let layout = &self.layout;
        for (at, count) in runs(self.available.len(), first, end) {
            self.memory.read(layout.available_entry(first_of(at)), self.available[at..at + count].as_mut_bytes())?;
        }
        self.memory.read(layout.descriptor(0), self.descriptors.as_mut_bytes())
    }

    /// An entry that was fetched.
    pub fn available(&self, index: u16) -> u16 {
        self.available[usize::from(index) % self.available.len()]
    }

    /// A descriptor, as of the last fetch.
    pub fn descriptor(&self, index: u16) -> Descriptor {
        self.descriptors[usize::from(index)]
    }

    /// Fills an entry of the used ring; the driver's copy follows with [`Shadow::show_used`].
    pub fn set_used(&mut self, index: u16, element: UsedElement) {
        let at = usize::from(index) % self.used.len();
        self.used[at] = element;
    }

    /// Writes the entries from `first` to before `end` to the driver's used ring, and then the index.
    pub fn show_used(&self, first: u16, end: u16) -> Result<(), MemoryError> {
        let layout = &self.layout;
        for (at, count) in runs(self.used.len(), first, end) {
            self.memory.write(layout.used_entry(first_of(at)), self.used[at..at + count].as_bytes())?;
        }
        #[cfg(test)]
        super::journal::kill_points::about_to_store();
        self.memory.store_u16(layout.used_index(), end, Ordering::Release)
    }

    /// See [`super::rings::Rings::available_index`], and so on.
    pub fn available_index(&self) -> Result<u16, MemoryError> {
        self.memory.load_u16(self.layout.available_index(), Ordering::Acquire)
    }

    pub fn available_flags(&self) -> Result<u16, MemoryError> {
        self.memory.load_u16(self.layout.driver, Ordering::Relaxed)
    }

    pub fn used_event(&self) -> Result<u16, MemoryError> {
        self.memory.load_u16(self.layout.used_event(), Ordering::Relaxed)
    }

    pub fn set_used_flags(&self, flags: u16) -> Result<(), MemoryError> {
        self.memory.store_u16(self.layout.device, flags, Ordering::Relaxed)
    }

    pub fn set_available_event(&self, index: u16) -> Result<(), MemoryError> {
        self.memory.store_u16(self.layout.available_event(), index, Ordering::Relaxed)
    }
}

/// The positions of the entries from `first` to before `end` in a ring of `size`: one run, or two around its end, as
/// position and length.
fn runs(size: usize, first: u16, end: u16) -> impl Iterator<Item = (usize, usize)> {
    let (at, count) = (usize::from(first) % size, usize::from(end.wrapping_sub(first)).min(size));
    let before_end = count.min(size - at);
    [(at, before_end), (0, count - before_end)].into_iter().filter(|&(_, count)| count > 0)
}

fn first_of(at: usize) -> u16 {
    u16::try_from(at).expect("a queue has at most 256 entries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_around_the_end_of_the_ring_and_of_the_index() {
        let runs = |first, end| runs(8, first, end).collect::<Vec<_>>();
        assert_eq!(runs(0, 0), []);
        assert_eq!(runs(3, 8), [(3, 5)]);
        assert_eq!(runs(6, 9), [(6, 2), (0, 1)]);
        assert_eq!(runs(5, 13), [(5, 3), (0, 5)]);
        assert_eq!(runs(u16::MAX, 2), [(7, 1), (0, 2)]);
    }
}
