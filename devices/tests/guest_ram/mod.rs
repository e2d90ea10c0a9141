//! Guest memory as a client reaches it for a device process by messages.

use nix::errno::Errno;
use outrigger_protocol::client::ClientMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[derive(Debug)]
pub struct Ram(pub GuestMemoryMmap);

impl ClientMemory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.0.read_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT)
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.0.write_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT)
    }
}
