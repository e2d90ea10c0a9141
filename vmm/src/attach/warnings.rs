//! The log lines of one device that its guest or its process can cause at will.

use std::fmt::Arguments;
use std::sync::Arc;

use outrigger_process::RateLimit;
use outrigger_protocol::client::ClientError;

use crate::pci::Slot;

/// Writes warnings about a device, not more of them than its limit allows. The limit lasts as long as the slot.
#[derive(Debug)]
pub(super) struct Warnings {
    slot: Slot,
    limit: RateLimit,
}

impl Warnings {
    pub(super) fn new(slot: Slot) -> Arc<Self> {
        Arc::new(Self { slot, limit: RateLimit::new() })
    }

    pub(super) fn warn(&self, line: Arguments<'_>) {
        self.limit.warn(format_args!("{}: {line}", self.slot));
    }

    /// Says what the device refuses. Its death is told once, elsewhere.
    pub(super) fn warn_of_refusal(&self, error: &ClientError, what: &str, region: u32, offset: u64) {
        if !error.is_fatal() {
            self.warn(format_args!("{what} at {offset:#x} of region {region}: {error}"));
        }
    }
}
