//! KVM's memory slots: which host memory appears at which guest-physical address. A [`Memslot`] is one such mapping; dropping it
//! takes the memory away from the guest again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};

use crate::machine::vm::Vm;

const PAGE: u64 = 4096;

/// Memory that cannot be mapped into the guest.
#[derive(Debug, thiserror::Error)]
pub enum MemslotError {
    /// Not whole pages, or beyond the address space.
    #[error("memory at {guest:#x}, {size:#x} bytes: must be whole pages of {PAGE} bytes")]
    Unaligned {
        /// Guest-physical address.
        guest: u64,
        /// Bytes.
        size: u64,
    },
    /// All slots are taken.
    #[error("all {limit} of KVM's memory slots are in use")]
    Full {
        /// How many KVM has.
        limit: usize,
    },
    /// KVM refused, for example because another slot is there already.
    #[error("KVM does not map {size:#x} bytes at guest address {guest:#x}")]
    Refused {
        /// Guest-physical address.
        guest: u64,
        /// Bytes.
        size: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Hands out the numbers of memory slots.
#[derive(Debug)]
pub struct Memslots {
    vm: Arc<Vm>,
    limit: usize,
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Numbers from here on were never used.
    next: u32,
    /// Numbers below `next` that are free again.
    free: Vec<u32>,
}

/// Host memory that the guest sees at `guest`, until this is dropped.
#[derive(Debug)]
pub struct Memslot {
    slots: Arc<Memslots>,
    number: u32,
    guest: u64,
}

impl Memslots {
    /// The slots of `vm`, all free.
    #[must_use]
    pub fn new(vm: Arc<Vm>) -> Arc<Self> {
        let limit = vm.max_memslots();
        Arc::new(Self { vm, limit, numbers: Mutex::default() })
    }

    /// Let the guest see the `size` bytes at `host` at the guest-physical address `guest`. With `readonly`, guest writes go to
    /// the MMIO bus instead.
    ///
    /// # Errors
    /// If `guest`, `host` or `size` isn't whole pages, the place is taken by another slot, or no slot is left.
    ///
    /// # Safety
    /// `host..host + size` must stay mapped, readable and, unless `readonly`, writable until the returned `Memslot` is dropped,
    /// and this process must hold no Rust reference into it: the guest changes it at any time.
    pub unsafe fn map(
        self: &Arc<Self>,
        guest: u64,
        host: *mut u8,
        size: u64,
        readonly: bool,
    ) -> Result<Memslot, MemslotError> {
        let host = host as u64;
        let whole = [guest, host, size].iter().all(|value| value.is_multiple_of(PAGE));
        if size == 0 || !whole || guest.checked_add(size).is_none() {
            return Err(MemslotError::Unaligned { guest, size });
        }
        let number = self.take().ok_or(MemslotError::Full { limit: self.limit })?;
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: if readonly { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: guest,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the caller vouches for the host memory; the slot number is ours alone until `give_back`.
        if let Err(error) = unsafe { self.vm.fd().set_user_memory_region(region) } {
            self.give_back(number);
            return Err(MemslotError::Refused { guest, size, source: error.into() });
        }
        Ok(Memslot { slots: Arc::clone(self), number, guest })
    }

    fn take(&self) -> Option<u32> {
        let mut numbers = self.numbers();
        if let Some(number) = numbers.free.pop() {
            return Some(number);
        }
        let number = numbers.next;
        ((number as usize) < self.limit).then(|| {
            numbers.next += 1;
            number
        })
    }

    fn give_back(&self, number: u32) {
        self.numbers().free.push(number);
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Memslot {
    fn drop(&mut self) {
        // A size of zero deletes the slot.
        let region = kvm_userspace_memory_region {
            slot: self.number,
            flags: 0,
            guest_phys_addr: self.guest,
            memory_size: 0,
            userspace_addr: 0,
        };
        // SAFETY: the slot is ours, and deleting it makes no host memory accessible.
        match unsafe { self.slots.vm.fd().set_user_memory_region(region) } {
            Ok(()) => self.slots.give_back(self.number),
            // The number stays taken: whatever KVM still has there must not be mistaken for something new.
            Err(error) => log::error!("KVM does not remove the memory at guest address {:#x}: {error}", self.guest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::GuestRam;

    fn slots() -> Arc<Memslots> {
        Memslots::new(Vm::new(1).unwrap())
    }

    /// Slots refer to this memory, which outlives them: it is never unmapped.
    fn memory() -> *mut u8 {
        let ram = Box::leak(Box::new(GuestRam::new(4 << 20, false).unwrap()));
        ram.host_address(0, 4 << 20).unwrap()
    }

    #[test]
    fn a_dropped_slot_frees_its_place_and_its_number() {
        let (slots, host) = (slots(), memory());
        for _ in 0..3 {
            // SAFETY: `memory` is never unmapped.
            let slot = unsafe { slots.map(0x10_0000, host, 0x2000, false) }.unwrap();
            assert_eq!((slot.number, slot.guest), (0, 0x10_0000));
        }
        assert_eq!(slots.numbers().next, 1);
    }

    #[test]
    fn an_occupied_place_is_refused_and_costs_no_number() {
        let (slots, host) = (slots(), memory());
        // SAFETY: `memory` is never unmapped.
        let _slot = unsafe { slots.map(0x10_0000, host, 0x2000, true) }.unwrap();
        // SAFETY: as above.
        let error = unsafe { slots.map(0x10_1000, host, 0x1000, false) }.unwrap_err();
        assert!(matches!(error, MemslotError::Refused { .. }), "{error:?}");
        assert_eq!(slots.numbers().free, [1]);
    }

    #[test]
    fn partial_pages_are_refused() {
        let (slots, host) = (slots(), memory());
        for (guest, host, size) in [(1, host, 0x1000), (0, host.wrapping_add(1), 0x1000), (0, host, 1), (0, host, 0)] {
            // SAFETY: `memory` is never unmapped.
            let error = unsafe { slots.map(guest, host, size, false) }.unwrap_err();
            assert!(matches!(error, MemslotError::Unaligned { .. }), "{error:?}");
        }
    }

    #[test]
    fn running_out_of_slots_is_an_error() {
        let (slots, host) = (Memslots { vm: Vm::new(1).unwrap(), limit: 2, numbers: Mutex::default() }, memory());
        let slots = Arc::new(slots);
        // SAFETY: `memory` is never unmapped.
        let _held = [0, 0x1000].map(|guest| unsafe { slots.map(guest, host, 0x1000, false) }.unwrap());
        // SAFETY: as above.
        let error = unsafe { slots.map(0x2000, host, 0x1000, false) }.unwrap_err();
        assert!(matches!(error, MemslotError::Full { limit: 2 }), "{error:?}");
    }
}
