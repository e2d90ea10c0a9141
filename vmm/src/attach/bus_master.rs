//! Bus mastering: whether a function may reach memory on its own (PCI Local Bus 3.0, section 6.2.2, command register bit 2).
//!
//! While a guest has it off, the device's DMA requests by message are refused, and its MSI and MSI-X vectors stay pending,
//! as those are memory writes, too. INTx is not affected. What a device does in guest RAM that it shares cannot be
//! prevented here.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use outrigger_protocol::client::ClientMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::memory::GuestRam;

/// Whether it is on; off at first.
#[derive(Debug, Default)]
pub struct BusMaster(RwLock<bool>);

impl BusMaster {
    /// Follows the command register. When this returns, nothing that was permitted before is still under way.
    pub(super) fn set(&self, on: bool) {
        let is_on = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        if is_on != on {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = on;
        }
    }

    #[cfg(test)]
    pub(super) fn is_on(&self) -> bool {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaches memory for the device, if it may.
    fn permit<T>(&self, access: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let is_on = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if *is_on { access() } else { Err(Errno::EPERM) }
    }
}

/// Guest RAM for a device that reaches it by messages, while bus mastering is on.
pub struct MessageDma {
    ram: Arc<GuestRam>,
    bus_master: Arc<BusMaster>,
}

impl MessageDma {
    /// All of `ram`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, bus_master: Arc<BusMaster>) -> Self {
        Self { ram, bus_master }
    }
}

impl fmt::Debug for MessageDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageDma").field("bus_master", &self.bus_master).finish_non_exhaustive()
    }
}

impl ClientMemory for MessageDma {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        let read = || self.ram.mmap().read_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT);
        self.bus_master.permit(read)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        let write = || self.ram.mmap().write_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT);
        self.bus_master.permit(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_out_of_reach_while_bus_mastering_is_off() {
        let bus_master = Arc::new(BusMaster::default());
        let dma = MessageDma::new(Arc::new(GuestRam::new(4 << 20, false).unwrap()), bus_master.clone());
        let mut data = [0; 2];
        assert_eq!((dma.read(0, &mut data), dma.write(0, &[1, 2])), (Err(Errno::EPERM), Err(Errno::EPERM)));
        bus_master.set(true);
        assert_eq!((dma.write(0, &[1, 2]), dma.read(0, &mut data), data), (Ok(()), Ok(()), [1, 2]));
        bus_master.set(false);
        assert_eq!(dma.write(0, &[3]), Err(Errno::EPERM));
    }
}
