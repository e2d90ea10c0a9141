//! Outrigger's own extension: a journal (`docs/PROTOCOL.md`, "Journal").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

wire_struct! {
    /// `OUTRIGGER_JOURNAL_OFFER`, with one fd; echoed in the reply, which may bring fds to be kept.
    JournalOffer, 16 {
        /// Size of this structure.
        argsz: u32,
        /// Zero, or [`JOURNAL_SUCCEED`].
        flags: u32,
        /// Bytes of the journal.
        size: u64,
    }
}

/// A predecessor wrote the journal.
pub const JOURNAL_SUCCEED: u32 = 1 << 0;
