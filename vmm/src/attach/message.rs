//! The path through the VMM: an exit becomes a vfio-user message on the vCPU's own thread.

use std::sync::Arc;

use outrigger_protocol::client::ClientError;

use super::link::Link;

/// One region, asked by message.
pub(super) struct RegionMessages {
    pub(super) link: Arc<Link>,
    pub(super) region: u32,
    /// Writes are not answered. Right for memory, unless a later access on another path must not arrive first; I/O port
    /// writes are not complete without (PCI Local Bus 3.0, section 3.2.5).
    pub(super) posted: bool,
}

impl RegionMessages {
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Err(error) = self.link.call(|client| client.region_read(self.region, offset, data)) {
            data.fill(0xff);
            note(&error, "read", self.region, offset);
        }
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let result = match self.posted {
            true => self.link.call(|client| client.region_write_posted(self.region, offset, data)),
            false => self.link.call(|client| client.region_write(self.region, offset, data)),
        };
        if let Err(error) = result {
            note(&error, "write", self.region, offset);
        }
    }
}

/// Logs what a device refuses. Its death is told once, by the thread that watches it.
pub(super) fn note(error: &ClientError, what: &str, region: u32, offset: u64) {
    if !error.is_fatal() {
        log::warn!("{what} at {offset:#x} of region {region}: {error}");
    }
}
