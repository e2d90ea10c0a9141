//! Split virtqueues (virtio 1.2, section 2.7, "Split Virtqueues"), device side.
//!
//! The rings are reached in place where they are mapped, else by messages; buffers are for the device to reach, through
//! the same [`Memory`]. Everything that the driver wrote is checked before use; a ring that makes no sense is an error that
//! ends the queue's service until the driver resets the device.

use std::sync::atomic::{Ordering, fence};

use outrigger_protocol::server::{Memory, MemoryError};
use zerocopy::{FromZeros, IntoBytes};

use super::chain::{Chain, ChainError, Segment};
use super::journal::{HeadSet, QueueJournal};
use super::layout::{
    DESCRIPTOR_INDIRECT, DESCRIPTOR_LENGTH, DESCRIPTOR_NEXT, DESCRIPTOR_WRITE, Descriptor, MAX_QUEUE_SIZE, QueueLayout,
    UsedElement,
};
use super::rings::Rings;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A ring or a descriptor chain that makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The available index moved by more than the queue's size.
    #[error("available index {index} is more than {size} ahead of {next}")]
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// The device's index so far.
        next: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A descriptor index beyond its table.
    #[error("descriptor {index} of a table of {entries}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries in the table.
        entries: u32,
    },
    /// The driver offered a chain again before it came back.
    #[error("descriptor {0} was made available again before it was used")]
    AlreadyInFlight(u16),
    /// Nested, combined with NEXT, not negotiated, or of an impossible length.
    #[error("indirect descriptor {index} of {length} bytes is not allowed there")]
    Indirect {
        /// The descriptor that refers to the table.
        index: u16,
        /// The table's length in bytes.
        length: u32,
    },
    /// The chain as a whole.
    #[error("descriptor chain {head}: {source}")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// The error in it.
        source: ChainError,
    },
    /// A predecessor's journal and the used ring cannot both be right.
    #[error("the journal says used index {followed}, and the used ring of {size} entries {index}")]
    UsedIndex {
        /// The index in the journal.
        followed: u16,
        /// The index that the driver sees.
        index: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A predecessor's journal has chains that cannot be.
    #[error("the journal has chains in flight beyond a queue of {size}")]
    InFlight {
        /// Entries in the queue.
        size: u16,
    },
    /// A part of the queue is not mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// One virtqueue in service. Its state is in a [`QueueJournal`], which is as far as it was when the queue goes out of
/// service, however that happens.
#[derive(Debug)]
pub struct Queue {
    layout: QueueLayout,
    memory: Memory,
    journal: QueueJournal,
    rings: Rings,
    /// A copy of the indirect table being looked at.
    table: Box<[Descriptor]>,
    /// The available index as last read.
    available: u16,
    /// The next entry of the available ring to take.
    next_available: u16,
    /// The next entry of the used ring to fill.
    next_used: u16,
    /// Chains that were taken and that the driver has not been shown in the used ring: as the journal says.
    in_flight: HeadSet,
    /// Those of them that are in the used ring.
    pushed: HeadSet,
    /// Those of them that nobody is at work on: they are handed out before any other.
    again: HeadSet,
    /// The used index as the driver can see it.
    published: u16,
    /// The used index when an interrupt was last considered; none: consider every entry new.
    considered: Option<u16>,
}

impl Queue {
    /// Takes the queue into service where `journal` says: chains in flight are handed out again.
    ///
    /// # Errors
    /// The journal makes no sense.
    pub fn new(layout: QueueLayout, memory: Memory, journal: QueueJournal) -> Result<Self, QueueError> {
        let (size, next_used, in_flight) = (layout.size, journal.next_used(), journal.in_flight());
        if !in_flight.is_within(size) {
            return Err(QueueError::InFlight { size });
        }
        let mut queue = Self {
            rings: Rings::new(&layout, &memory),
            layout,
            memory,
            journal,
            table: vec![Descriptor::new_zeroed(); MAX_QUEUE_SIZE.into()].into_boxed_slice(),
            available: 0,
            next_available: 0,
            next_used,
            in_flight,
            pushed: HeadSet::default(),
            again: HeadSet::default(),
            published: next_used,
            considered: None,
        };
        queue.begin_again();
        Ok(queue)
    }

    /// All chains in flight are to be done again, and all others up to there are used.
    fn begin_again(&mut self) {
        self.again = self.in_flight;
        self.next_available = self.next_used.wrapping_add(self.in_flight.count());
        self.available = self.next_available;
        self.published = self.next_used;
    }

    /// Follows a predecessor that was killed: what it has shown the driver in the used ring is done, whatever the journal
    /// says. It ends after at most as many steps as the queue has entries, and a predecessor that is killed here, too,
    /// leaves what it found.
    ///
    /// # Errors
    /// The journal and the used ring cannot both be right, or the used ring is not there.
    pub fn follow(&mut self) -> Result<(), QueueError> {
        let (size, followed, before) = (self.layout.size, self.next_used, self.in_flight);
        let index = self.memory.load_u16(self.layout.used_index(), Ordering::Acquire)?;
        let shown = index.wrapping_sub(followed);
        if shown > size {
            return Err(QueueError::UsedIndex { followed, index, size });
        }
        for entry in (0..shown).map(|step| followed.wrapping_add(step)) {
            let id = u32::from_le_bytes(self.memory.read_array(self.layout.used_entry(entry))?);
            let head = u16::try_from(id).ok().filter(|&head| head < size);
            let Some(head) = head else {
                let index = u16::try_from(id).unwrap_or(u16::MAX);
                return Err(QueueError::DescriptorIndex { index, entries: size.into() });
            };
            self.in_flight.remove(head);
        }
        self.next_used = index;
        self.journal.shown(&before, &self.in_flight, index);
        self.begin_again();
        Ok(())
    }

    /// The memory that the queue and its buffers are in.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Takes the next chain that the driver made available; returns its head, which [`Queue::push`] wants back.
    ///
    /// # Errors
    /// The ring or the chain makes no sense; nothing was taken.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<u16>, QueueError> {
        if !self.again.is_empty() {
            return self.pop_again(chain);
        }
        let (size, next) = (self.layout.size, self.next_available);
        if next == self.available {
            let index = self.rings.available_index()?;
            if index.wrapping_sub(next) > size {
                return Err(QueueError::AvailableIndex { index, next, size });
            }
            if next == index {
                return Ok(None);
            }
            self.rings.fetch(next, index)?;
            self.available = index;
        }
        let head = self.rings.available(next);
        if head >= size {
            return Err(QueueError::DescriptorIndex { index: head, entries: size.into() });
        }
        if self.in_flight.contains(head) {
            return Err(QueueError::AlreadyInFlight(head));
        }
        self.walk(head, chain)?;
        self.in_flight.insert(head);
        self.journal.taken(head, &self.in_flight);
        self.next_available = next.wrapping_add(1);
        Ok(Some(head))
    }

    /// A chain that was in flight when the queue came into service, or that was given back.
    #[cold]
    fn pop_again(&mut self, chain: &mut Chain) -> Result<Option<u16>, QueueError> {
        let Some(head) = self.again.first() else { return Ok(None) };
        // Nothing is known of its descriptors where they are reached by messages.
        self.rings.fetch(self.available, self.available)?;
        self.walk(head, chain)?;
        self.again.remove(head);
        Ok(Some(head))
    }

    /// Gives back a chain that was taken, unused: it is handed out before any other the next time.
    pub fn undo_pop(&mut self, head: u16) {
        debug_assert!(self.is_taken(head), "only a chain that was taken can be given back");
        self.again.insert(head);
    }

    fn is_taken(&self, head: u16) -> bool {
        self.in_flight.contains(head) && !self.again.contains(head) && !self.pushed.contains(head)
    }

    fn walk(&mut self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        chain.clear();
        let (entries, mut index) = (u32::from(self.layout.size), head);
        loop {
            let descriptor = self.rings.descriptor(index);
            if descriptor.flags & DESCRIPTOR_INDIRECT != 0 {
                return self.walk_indirect(head, index, descriptor, chain);
            }
            add(head, descriptor, chain)?;
            let Some(next) = next(descriptor, entries)? else { return Ok(()) };
            index = next;
        }
    }

    /// The rest of a chain is in the table that `descriptor`, number `index`, refers to. It is read at once: where memory
    /// is reached by messages, that is one.
    fn walk_indirect(
        &mut self,
        head: u16,
        index: u16,
        descriptor: Descriptor,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        let length = descriptor.length;
        let entries = length / DESCRIPTOR_LENGTH;
        let fits = length != 0 && length.is_multiple_of(DESCRIPTOR_LENGTH) && entries <= MAX_QUEUE_SIZE.into();
        let bare = descriptor.flags & DESCRIPTOR_NEXT == 0;
        if !self.layout.indirect || !fits || !bare {
            return Err(QueueError::Indirect { index, length });
        }
        let table = &mut self.table[..entries as usize];
        self.memory.read(descriptor.address, table.as_mut_bytes())?;
        let mut index = 0;
        loop {
            let descriptor = table[usize::from(index)];
            if descriptor.flags & DESCRIPTOR_INDIRECT != 0 {
                return Err(QueueError::Indirect { index, length: descriptor.length });
            }
            add(head, descriptor, chain)?;
            let Some(next) = next(descriptor, entries)? else { return Ok(()) };
            index = next;
        }
    }

    /// Puts a chain that was taken into the used ring, `written` bytes of it written. The driver sees it after
    /// [`Queue::publish`].
    pub fn push(&mut self, head: u16, written: u32) {
        debug_assert!(self.is_taken(head), "only a chain that was taken can be used");
        self.rings.set_used(self.next_used, UsedElement { id: head.into(), length: written });
        self.pushed.insert(head);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver everything pushed so far; returns whether it wants an interrupt for it.
    pub fn publish(&mut self) -> Result<bool, MemoryError> {
        let used = self.next_used;
        if used == self.published {
            return Ok(false);
        }
        self.rings.show_used(self.published, used)?;
        self.published = used;
        let before = self.in_flight;
        self.in_flight.remove_all(&std::mem::take(&mut self.pushed));
        self.journal.shown(&before, &self.in_flight, used);
        // The driver writes what it wants and then looks at the used index; we, the other way round
        // (virtio 1.2, section 2.7.7.1).
        fence(Ordering::SeqCst);
        let considered = self.considered.replace(used);
        if self.layout.event_idx {
            let event = self.rings.used_event()?;
            let Some(considered) = considered else { return Ok(true) };
            // Wanted if `event` is among the entries [considered, used).
            Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(considered))
        } else {
            Ok(self.rings.available_flags()? & AVAIL_NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver not to ring the doorbell: the queue is being looked at anyway.
    pub fn suppress_doorbell(&mut self) -> Result<(), MemoryError> {
        if self.layout.event_idx {
            // The event index stays in the past.
            return Ok(());
        }
        self.rings.set_used_flags(USED_NO_NOTIFY)
    }

    /// Asks the driver to ring the doorbell for the next chain; returns whether one is there already, in which case it
    /// may not ring.
    pub fn want_doorbell(&mut self) -> Result<bool, MemoryError> {
        let next = self.next_available;
        if self.layout.event_idx {
            self.rings.set_available_event(next)?;
        } else {
            self.rings.set_used_flags(0)?;
        }
        // The driver writes the available index and then looks at what we want; we, the other way round.
        fence(Ordering::SeqCst);
        Ok(!self.again.is_empty() || self.rings.available_index()? != next)
    }
}

fn add(head: u16, descriptor: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
    let segment = Segment { address: descriptor.address, length: descriptor.length };
    let writable = descriptor.flags & DESCRIPTOR_WRITE != 0;
    chain.add(segment, writable).map_err(|source| QueueError::Chain { head, source })
}

/// Which descriptor of a table of `entries` comes after this one, if any.
fn next(descriptor: Descriptor, entries: u32) -> Result<Option<u16>, QueueError> {
    let index = descriptor.next;
    match descriptor.flags & DESCRIPTOR_NEXT {
        0 => Ok(None),
        _ if u32::from(index) < entries => Ok(Some(index)),
        _ => Err(QueueError::DescriptorIndex { index, entries }),
    }
}

#[cfg(test)]
#[path = "queue_killed_tests.rs"]
mod killed_tests;
#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
