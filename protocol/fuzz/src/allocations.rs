//! How much memory an input made the side under attack hold: what its threads allocate and free.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

/// The system's allocator, counting.
struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn is_counted() -> bool {
    COUNTED.try_with(Cell::get).unwrap_or(false)
}

fn grown(size: usize) {
    if is_counted() {
        let size_signed = size.cast_signed();
        let held = HELD.fetch_add(size_signed, Ordering::Relaxed) + size_signed;
        PEAK.fetch_max(held, Ordering::Relaxed);
        LARGEST.fetch_max(size, Ordering::Relaxed);
    }
}

fn shrunk(size: usize) {
    if is_counted() {
        HELD.fetch_sub(size.cast_signed(), Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may both be there for a moment.
        grown(size);
        shrunk(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// From now on this thread belongs to the side under attack.
pub(crate) fn count_this_thread() {
    COUNTED.set(true);
}

/// Bytes held now; the high-water marks start over from here.
pub(crate) fn mark() -> isize {
    let held = HELD.load(Ordering::Relaxed);
    PEAK.store(held, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    held
}

/// The most that was held at once, beyond `mark`, and the largest single allocation, both in bytes.
pub(crate) fn since(mark: isize) -> (usize, usize) {
    let peak = PEAK.load(Ordering::Relaxed) - mark;
    (usize::try_from(peak).unwrap_or(0), LARGEST.load(Ordering::Relaxed))
}
