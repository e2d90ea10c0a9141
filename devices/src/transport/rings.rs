//! The three parts of a split virtqueue, as its device reaches them: in place where they are mapped, else by messages.
//!
//! Either way, what the driver made available is looked at in two steps: [`Rings::available_index`], then
//! [`Rings::fetch`] for the entries up to there. Likewise the used ring: entries are set, then shown.

use outrigger_protocol::server::{Memory, MemoryError};

use super::layout::{Descriptor, QueueLayout, UsedElement};
use super::mapped::Mapped;
use super::shadow::Shadow;

/// The rings of one queue in service.
#[derive(Debug)]
pub enum Rings {
    /// All three parts are mapped.
    Mapped(Mapped),
    /// At least one is not.
    Shadow(Shadow),
}

impl Rings {
    /// The rings at `layout`, for as long as a worker serves the queue: client memory does not change under it.
    pub fn new(layout: &QueueLayout, memory: &Memory) -> Self {
        match Mapped::new(layout, memory) {
            Some(mapped) => Self::Mapped(mapped),
            None => Self::Shadow(Shadow::new(layout, memory)),
        }
    }

    /// The available index; what the driver wrote before it can be read from now on.
    #[inline]
    pub fn available_index(&self) -> Result<u16, MemoryError> {
        match self {
            Self::Mapped(mapped) => Ok(mapped.available_index()),
            Self::Shadow(shadow) => shadow.available_index(),
        }
    }

    /// Has the entries from `first` to before `end`, which the driver has made available, ready, and the descriptors.
    #[inline]
    pub fn fetch(&mut self, first: u16, end: u16) -> Result<(), MemoryError> {
        match self {
            Self::Mapped(_) => Ok(()),
            Self::Shadow(shadow) => shadow.fetch(first, end),
        }
    }

    /// An entry of the available ring that was fetched.
    #[inline]
    pub fn available(&self, index: u16) -> u16 {
        match self {
            Self::Mapped(mapped) => mapped.available(index),
            Self::Shadow(shadow) => shadow.available(index),
        }
    }

    /// A descriptor, `index` being within the table.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Descriptor {
        match self {
            Self::Mapped(mapped) => mapped.descriptor(index),
            Self::Shadow(shadow) => shadow.descriptor(index),
        }
    }

    /// Fills an entry of the used ring, which the driver does not look at yet.
    #[inline]
    pub fn set_used(&mut self, index: u16, element: UsedElement) {
        match self {
            Self::Mapped(mapped) => mapped.set_used(index, element),
            Self::Shadow(shadow) => shadow.set_used(index, element),
        }
    }

    /// Shows the driver the used entries from `first` to before `end`, which becomes the used index.
    #[inline]
    pub fn show_used(&self, first: u16, end: u16) -> Result<(), MemoryError> {
        match self {
            Self::Mapped(mapped) => {
                mapped.set_used_index(end);
                Ok(())
            }
            Self::Shadow(shadow) => shadow.show_used(first, end),
        }
    }

    /// The flags of the available ring.
    #[inline]
    pub fn available_flags(&self) -> Result<u16, MemoryError> {
        match self {
            Self::Mapped(mapped) => Ok(mapped.available_flags()),
            Self::Shadow(shadow) => shadow.available_flags(),
        }
    }

    /// The used entry that the driver wants an interrupt for.
    #[inline]
    pub fn used_event(&self) -> Result<u16, MemoryError> {
        match self {
            Self::Mapped(mapped) => Ok(mapped.used_event()),
            Self::Shadow(shadow) => shadow.used_event(),
        }
    }

    /// Sets the flags of the used ring.
    #[inline]
    pub fn set_used_flags(&self, flags: u16) -> Result<(), MemoryError> {
        match self {
            Self::Mapped(mapped) => {
                mapped.set_used_flags(flags);
                Ok(())
            }
            Self::Shadow(shadow) => shadow.set_used_flags(flags),
        }
    }

    /// Says which available entry the doorbell is to ring for.
    #[inline]
    pub fn set_available_event(&self, index: u16) -> Result<(), MemoryError> {
        match self {
            Self::Mapped(mapped) => {
                mapped.set_available_event(index);
                Ok(())
            }
            Self::Shadow(shadow) => shadow.set_available_event(index),
        }
    }
}
