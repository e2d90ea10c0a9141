//! Physical memory, which is mapped one to one: typed volatile access, mapping of what lies above 4 GiB, and the four functions that
//! the compiler calls for copies and comparisons (no C library here, and string instructions are cheap where others are interpreted).

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicUsize, Ordering};

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        /// One volatile read at a physical address.
        pub fn $read(address: u64) -> $type {
            // SAFETY: every address that checks use is memory the loader described, a table of ours or a mapped device; a wrong one
            // raises an exception, which ends the payload with a failure.
            unsafe { read_volatile(address as *const $type) }
        }
        /// One volatile write at a physical address.
        #[allow(dead_code)]
        pub fn $write(address: u64, value: $type) {
            // SAFETY: as for the read; and callers write only to devices and to the buffers in `virtqueue`.
            unsafe { write_volatile(address as *mut $type, value) }
        }
    };
}
access!(read8, write8, u8);
access!(read16, write16, u16);
access!(read32, write32, u32);
access!(read64, write64, u64);

/// Memory that is only ever used by its physical address, with the functions above: tables for the processor, rings for a device.
#[repr(C, align(4096))]
pub struct Raw<T>(UnsafeCell<T>);

// SAFETY: no reference to the content is ever made, volatile accesses are all there is, and only the first processor makes them.
unsafe impl<T> Sync for Raw<T> {}

impl<T> Raw<T> {
    /// Memory that starts out as `content`.
    pub const fn new(content: T) -> Self {
        Self(UnsafeCell::new(content))
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_UNCACHED: u64 = 0x98;
const LARGE_PAGE: u64 = 2 << 20;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const SPARE_TABLES: usize = 12;

static SPARE: [Raw<[u64; 512]>; SPARE_TABLES] = [const { Raw::new([0; 512]) }; SPARE_TABLES];
static SPARE_USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static pml4: u8;
}

/// Makes `length` bytes at `address` accessible. Below 4 GiB everything is already.
///
/// # Panics
/// When the spare page tables run out.
pub fn map(address: u64, length: u64) {
    let mut page = address & !(LARGE_PAGE - 1);
    while page < address + length {
        if page >= 4 << 30 {
            let pdpt = next_table(&raw const pml4 as u64 + (page >> 39 & 511) * 8);
            let directory = next_table(pdpt + (page >> 30 & 511) * 8);
            write64(directory + (page >> 21 & 511) * 8, page | LARGE_UNCACHED | PRESENT_WRITABLE);
        }
        page += LARGE_PAGE;
    }
}

/// The table that the entry at `entry` leads to, taken from the spare ones if there is none yet.
fn next_table(entry: u64) -> u64 {
    if read64(entry) & 1 == 0 {
        let table = &SPARE[SPARE_USED.fetch_add(1, Ordering::Relaxed)];
        write64(entry, table.address() | PRESENT_WRITABLE);
    }
    read64(entry) & FRAME
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller promises `length` readable and writable bytes that do not overlap.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags))
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: what is copied first is not what is read later, in this direction.
        return unsafe { memcpy(to, from, length) };
    }
    for at in (0..length).rev() {
        // SAFETY: the caller promises `length` readable and writable bytes; backwards, no byte is overwritten before it is read.
        unsafe { write_volatile(to.add(at), read_volatile(from.add(at))) }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller promises `length` writable bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("eax") value, options(nostack, preserves_flags))
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: the caller promises `length` readable bytes at both.
        let (left, right) = unsafe { (read_volatile(left.add(at)), read_volatile(right.add(at))) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the same promise as memcmp's.
    unsafe { memcmp(left, right, length) }
}
