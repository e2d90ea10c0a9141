//! The path through the VMM: an exit becomes a vfio-user message on the vCPU's own thread.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_protocol::client::{Client, ClientError};

use crate::bus::BusDevice;
use crate::irq::msix::Msix;

/// One region on a bus.
pub(super) struct RegionMessages {
    client: Arc<Client>,
    region: u32,
    /// The region's own size; the BAR may be larger.
    size: u64,
    /// Memory writes need no answer; I/O port writes are not complete without (PCI Local Bus 3.0, section 3.2.5).
    posted: bool,
    msix: Option<MsixOverlay>,
}

/// The parts of a region that the VMM answers itself.
#[derive(Clone)]
pub(super) struct MsixOverlay {
    pub(super) msix: Arc<Mutex<Msix>>,
    /// Where the table is in this region; empty if elsewhere.
    pub(super) table: Range<u64>,
    /// Where the pending bit array is in this region; empty if elsewhere.
    pub(super) pba: Range<u64>,
}

impl RegionMessages {
    pub(super) fn new(client: Arc<Client>, region: u32, size: u64, posted: bool, msix: Option<MsixOverlay>) -> Self {
        let msix = msix.filter(|overlay| !overlay.table.is_empty() || !overlay.pba.is_empty());
        Self { client, region, size, posted, msix }
    }

    fn within(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.size)
    }
}

impl BusDevice for RegionMessages {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(overlay) = &self.msix {
            let msix = || overlay.msix.lock().unwrap_or_else(PoisonError::into_inner);
            if overlay.table.contains(&offset) {
                return msix().read_table(offset - overlay.table.start, data);
            }
            if overlay.pba.contains(&offset) {
                return msix().read_pba(offset - overlay.pba.start, data);
            }
        }
        if !self.within(offset, data.len()) {
            return data.fill(0xff);
        }
        if let Err(error) = self.client.region_read(self.region, offset, data) {
            data.fill(0xff);
            note(&error, "read", self.region, offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(overlay) = &self.msix {
            if overlay.table.contains(&offset) {
                let mut msix = overlay.msix.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = msix.write_table(offset - overlay.table.start, data) {
                    log::error!("writing the MSI-X table: {error}");
                }
                return;
            }
            if overlay.pba.contains(&offset) {
                return;
            }
        }
        if !self.within(offset, data.len()) {
            return;
        }
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
