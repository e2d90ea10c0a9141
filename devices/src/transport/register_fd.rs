//! A device's registers by ioregionfd: accesses that KVM hands to this process itself, without the client.
//!
//! What may overtake what: an access by ioregionfd is answered when it is done, writes included, so whatever the driver
//! does after it comes after it: a doorbell, a message, another access. The other way round it is for the client: a
//! message that it does not wait for (a posted write) may still be on its way when an access by ioregionfd is done. A
//! client that uses the ioregionfd therefore waits for the answers to its writes by message. That, and the lock of
//! [`Control`], make one order of all accesses, whichever way each of them came.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_protocol::ioregionfd::{Endpoint, Handler, Size, SocketType};

use super::control::Control;
use super::device::VirtioDevice;
use super::pci_config::{COMMON_OFFSET, NOTIFY_OFFSET};

/// Where the sub-region starts in the registers' BAR: common configuration, ISR status and device configuration; not
/// the doorbells, which are eventfds.
pub const START: u64 = COMMON_OFFSET;
/// Bytes.
pub const SIZE: u64 = NOTIFY_OFFSET - START;

/// Serves the sub-region in a thread of its own, until the endpoint is dropped. Who drops it holds no lock on `control`.
///
/// # Errors
/// No socket pair or no thread could be had.
pub fn start<D: VirtioDevice>(name: &str, control: &Arc<Mutex<Control<D>>>) -> io::Result<Endpoint> {
    Endpoint::start(&format!("{name}-registers"), SocketType::Seqpacket, Registers(Arc::clone(control)))
}

struct Registers<D>(Arc<Mutex<Control<D>>>);

impl<D: VirtioDevice> Registers<D> {
    /// Does `access` at an offset of the BAR, if it is within the sub-region.
    fn access(&self, offset: u64, size: Size, access: impl FnOnce(&mut Control<D>, u64)) {
        let end = offset.checked_add(size.bytes() as u64);
        if end.is_some_and(|end| end <= SIZE) {
            access(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), START + offset);
        }
    }
}

impl<D: VirtioDevice> Handler for Registers<D> {
    fn read(&mut self, _user_data: u64, offset: u64, size: Size) -> u64 {
        let mut data = [0; 8];
        self.access(offset, size, |control, at| control.read(at, &mut data[..size.bytes()]));
        u64::from_le_bytes(data)
    }

    fn write(&mut self, _user_data: u64, offset: u64, size: Size, data: u64) {
        self.access(offset, size, |control, at| control.write(at, &data.to_le_bytes()[..size.bytes()]));
    }
}

#[cfg(test)]
#[path = "register_fd_tests.rs"]
mod tests;
