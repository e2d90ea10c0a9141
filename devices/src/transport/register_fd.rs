//! A device's registers by ioregionfd: accesses that KVM hands to this process itself, without the client.
//!
//! The order of accesses: one by ioregionfd is answered when it is done, writes included, so all that the driver
//! does after it comes after it: a doorbell, a message, another access. The other way round it is for the client: a
//! message that it does not wait for (a posted write) may still be on its way when an access by ioregionfd is done. A
//! client that uses the ioregionfd therefore waits for the answers to its writes by message. That, and the lock in
//! [`Shared`], make one order of all accesses, whichever way each of them came.

use std::io;

use outrigger_protocol::ioregionfd::{Endpoint, Handler, Size, SocketType};

use super::device::VirtioDevice;
use super::pci_config::{COMMON_OFFSET, NOTIFY_OFFSET};
use super::shared::Shared;

/// Where the sub-region starts in the registers' BAR: common configuration, ISR status and device configuration; not
/// the doorbells, which are eventfds.
pub const START: u64 = COMMON_OFFSET;
/// Bytes.
pub const SIZE: u64 = NOTIFY_OFFSET - START;

/// Serves the sub-region in a thread of its own, until the endpoint is dropped.
///
/// # Errors
/// No socket pair or no thread could be had.
pub fn start<D: VirtioDevice>(name: &str, registers: &Shared<D>) -> io::Result<Endpoint> {
    Endpoint::start(&format!("{name}-registers"), SocketType::Seqpacket, Registers(registers.clone()))
}

struct Registers<D>(Shared<D>);

/// The offset in the BAR, if the access is within the sub-region.
fn place(offset: u64, size: Size) -> Option<u64> {
    let end = offset.checked_add(size.bytes() as u64);
    end.is_some_and(|end| end <= SIZE).then(|| START + offset)
}

impl<D: VirtioDevice> Handler for Registers<D> {
    fn read(&mut self, _user_data: u64, offset: u64, size: Size) -> u64 {
        let mut data = [0; 8];
        if let Some(at) = place(offset, size) {
            self.0.read(at, &mut data[..size.bytes()]);
        }
        u64::from_le_bytes(data)
    }

    fn write(&mut self, _user_data: u64, offset: u64, size: Size, data: u64) {
        if let Some(at) = place(offset, size) {
            self.0.write(at, &data.to_le_bytes()[..size.bytes()]);
        }
    }
}

#[cfg(test)]
#[path = "register_fd_tests.rs"]
mod tests;
