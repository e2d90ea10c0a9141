//! The path through the VMM: an exit becomes a vfio-user message on the vCPU's own thread.

use std::sync::Arc;

use outrigger_protocol::client::{Client, ClientError};

/// One region, asked by message.
pub(super) struct RegionMessages {
    pub(super) client: Arc<Client>,
    pub(super) region: u32,
    /// Writes are not answered. Right for memory, unless a later access on another path must not arrive first; I/O port
    /// writes are not complete without (PCI Local Bus 3.0, section 3.2.5).
    pub(super) posted: bool,
}

impl RegionMessages {
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Err(error) = self.client.region_read(self.region, offset, data) {
            data.fill(0xff);
            note(&error, "read", self.region, offset);
        }
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let result = match self.posted {
            true => self.client.region_write_posted(self.region, offset, data),
            false => self.client.region_write(self.region, offset, data),
        };
        if let Err(error) = result {
            note(&error, "write", self.region, offset);
        }
    }
}

/// The death of a device is told once, by whoever watches it; what it refuses is for whoever debugs it.
pub(super) fn note(error: &ClientError, what: &str, region: u32, offset: u64) {
    match error {
        ClientError::Disconnected(_) => {}
        error => log::warn!("{what} at {offset:#x} of region {region}: {error}"),
    }
}
