//! Client memory that a server may reach by messages.

use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use outrigger_protocol::client::ClientMemory;

/// Bytes from DMA address 0 on; it trusts that ranges were checked before.
#[derive(Debug)]
pub struct GuestMemory(pub Mutex<Vec<u8>>);

impl GuestMemory {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; size])))
    }
}

impl ClientMemory for GuestMemory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        let bytes = self.0.lock().unwrap();
        let start = usize::try_from(address).unwrap();
        data.copy_from_slice(&bytes[start..start + data.len()]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        let mut bytes = self.0.lock().unwrap();
        let start = usize::try_from(address).unwrap();
        bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
