//! A queue whose rings are mapped: resolved to host addresses once, and accessed in place as atomic integers, for the
//! driver works on them at the same time.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use outrigger_protocol::server::Memory;
use vm_memory::VolatileSlice;

use super::layout::{DESCRIPTOR_LENGTH, Descriptor, QueueLayout, UsedElement};

/// The rings in place.
#[derive(Debug)]
pub struct Mapped {
    layout: QueueLayout,
    /// Two words for each descriptor: its address, and all the rest.
    descriptors: Part<[AtomicU64; 2]>,
    /// Flags, index, the entries, and the used event.
    driver: Part<AtomicU16>,
    /// Flags and index.
    device: Part<AtomicU16>,
    /// Identifier and length.
    used: Part<[AtomicU32; 2]>,
    /// One.
    available_event: Part<AtomicU16>,
    /// Keeps all of these mapped.
    memory: Memory,
}

/// Integers in client memory, some in a row.
#[derive(Debug)]
struct Part<T>(NonNull<[T]>);

// SAFETY: `T` is atomic integers, which any thread may use.
unsafe impl<T: Sync> Send for Part<T> {}

impl<T> Part<T> {
    /// `count` of them from byte `offset` of `slice` on; `None` if they do not fit or are misaligned.
    fn new(slice: &VolatileSlice<'_>, offset: usize, count: usize) -> Option<Self> {
        let slice = slice.subslice(offset, count.checked_mul(size_of::<T>())?).ok()?;
        let start = NonNull::new(slice.ptr_guard_mut().as_ptr())?.cast::<T>();
        start.is_aligned().then(|| Self(NonNull::slice_from_raw_parts(start, count)))
    }
}

impl<T> Deref for Part<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: aligned and within one mapping, as `new` has checked. The mapping stays: a `Part` is never without the
        // `Mapped` that it was made for, whose `memory` it is in. Every `T` is atomic integers, which have no invalid
        // values, and all code that accesses client memory expects others to.
        unsafe { self.0.as_ref() }
    }
}

impl Mapped {
    /// `None` if the three parts are not each within one mapping, or misaligned there.
    pub fn new(layout: &QueueLayout, memory: &Memory) -> Option<Self> {
        let size = usize::from(layout.size);
        let descriptors = memory.readable_slice(layout.descriptor(0), DESCRIPTOR_LENGTH as usize * size).ok()?;
        let driver = memory.readable_slice(layout.driver, 6 + 2 * size).ok()?;
        let device = memory.writable_slice(layout.device, 6 + 8 * size).ok()?;
        Some(Self {
            layout: *layout,
            descriptors: Part::new(&descriptors, 0, size)?,
            driver: Part::new(&driver, 0, 3 + size)?,
            device: Part::new(&device, 0, 2)?,
            used: Part::new(&device, 4, size)?,
            available_event: Part::new(&device, 4 + 8 * size, 1)?,
            memory: memory.clone(),
        })
    }

    fn position(&self, index: u16) -> usize {
        usize::from(index & (self.layout.size - 1))
    }

    /// See [`super::rings::Rings::available_index`], and so on.
    #[inline]
    pub fn available_index(&self) -> u16 {
        u16::from_le(self.driver[1].load(Ordering::Acquire))
    }

    #[inline]
    pub fn available_flags(&self) -> u16 {
        u16::from_le(self.driver[0].load(Ordering::Relaxed))
    }

    #[inline]
    pub fn available(&self, index: u16) -> u16 {
        u16::from_le(self.driver[2 + self.position(index)].load(Ordering::Relaxed))
    }

    #[inline]
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.driver[2 + usize::from(self.layout.size)].load(Ordering::Relaxed))
    }

    #[inline]
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let [address, rest] = &self.descriptors[usize::from(index)];
        zerocopy::transmute!([address.load(Ordering::Relaxed), rest.load(Ordering::Relaxed)])
    }

    #[inline]
    pub fn set_used(&mut self, index: u16, element: UsedElement) {
        let [id, length] = &self.used[self.position(index)];
        #[cfg(test)]
        super::journal::kill_points::about_to_store();
        id.store(element.id.to_le(), Ordering::Relaxed);
        length.store(element.length.to_le(), Ordering::Relaxed);
        self.memory.mark_dirty(self.layout.used_entry(index), size_of::<UsedElement>());
    }

    #[inline]
    pub fn set_used_index(&self, index: u16) {
        #[cfg(test)]
        super::journal::kill_points::about_to_store();
        self.device[1].store(index.to_le(), Ordering::Release);
        self.memory.mark_dirty(self.layout.used_index(), 2);
    }

    #[inline]
    pub fn set_used_flags(&self, flags: u16) {
        self.device[0].store(flags.to_le(), Ordering::Relaxed);
        self.memory.mark_dirty(self.layout.device, 2);
    }

    #[inline]
    pub fn set_available_event(&self, index: u16) {
        self.available_event[0].store(index.to_le(), Ordering::Relaxed);
        self.memory.mark_dirty(self.layout.available_event(), 2);
    }
}
