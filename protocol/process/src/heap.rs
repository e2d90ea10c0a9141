//! One heap for all threads of a program.
//!
//! The C library gives each thread that allocates a heap of its own, some ten touched pages, so that threads which
//! allocate all the time do not wait for one another. Ours allocate when they start and hardly ever after.

use nix::libc;

/// Makes all threads share one heap. Call it before the program has a second thread.
pub fn share() {
    // SAFETY: sets a parameter of the allocator; it touches no memory of ours. A C library that does not know the
    // parameter answers zero and goes on as before.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives pages that only the start needed back to the system: those of the command line's parser, of files that were
/// read whole.
pub fn trim() {
    // SAFETY: releases memory that nothing refers to.
    unsafe { libc::malloc_trim(0) };
}
