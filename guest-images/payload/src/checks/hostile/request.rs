//! The request that attacks are built around: one that a disk can do, and that a card can at least take.

use super::arena::{READABLE, WRITABLE, put64};
use super::outcome::{Outcome, equal, holds};
use super::queue::Buffer;
use super::target::Target;

/// Bytes that begin a request of either kind: a header of zeros, which has a disk read, and a card send nothing special.
pub const HEADER: u32 = 16;

/// A device that works, with a header in memory.
pub fn begin(target: &mut Target) -> Outcome {
    target.start()?;
    header();
    Ok(())
}

/// Puts the header into memory.
pub fn header() {
    put64(READABLE, 0);
    put64(READABLE + 8, 0);
}

/// Its buffers: header, data, status.
pub fn buffers() -> [Buffer; 3] {
    [(READABLE, HEADER, false), (WRITABLE, 512, true), (WRITABLE + 512, 1, true)]
}

/// The queue under attack serves it.
pub fn serves(target: &mut Target) -> Outcome {
    let main = target.main();
    target.request(main, 0, &buffers());
    equal("used chain", target.used(main)?.head, 0u32)?;
    holds("the device goes on", !target.needs_reset())
}
