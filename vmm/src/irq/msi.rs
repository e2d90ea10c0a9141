//! MSI: up to 32 vectors that share one message (PCI Local Bus 3.0, section 6.8.1, "MSI Capability Structure").

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::vector::Vector;
use super::{IrqError, Message, Routes};
use crate::machine::vm::Vm;

/// A function's MSI vectors, disabled at first.
#[derive(Debug)]
pub struct Msi {
    routes: Arc<Routes>,
    vectors: Vec<Vector>,
}

/// The registers of the capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiState {
    /// Enable bit of message control.
    pub enabled: bool,
    /// The message to send.
    pub message: Message,
    /// How many vectors the guest granted, a power of two.
    pub granted: u32,
    /// One bit for each masked vector; zero without per-vector masking.
    pub mask: u32,
}

impl Msi {
    /// `count` vectors, at most 32.
    ///
    /// # Errors
    /// If the system has no eventfds left.
    pub fn new(vm: &Arc<Vm>, routes: Arc<Routes>, count: u32) -> Result<Self, IrqError> {
        let vectors = (0..count.min(32)).map(|_| Vector::new(vm.clone())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { routes, vectors })
    }

    /// Disconnects every vector from KVM, whatever the guest set up. Signals stay in the eventfds.
    ///
    /// # Errors
    /// If KVM refuses one; the others are disconnected all the same.
    pub fn disconnect(&mut self) -> Result<(), IrqError> {
        self.vectors.iter_mut().map(Vector::disconnect).fold(Ok(()), Result::and)
    }

    /// Puts new eventfds in place of all: what has the old ones interrupts nobody any more.
    ///
    /// # Errors
    /// If there are none left, or KVM refuses.
    pub fn renew(&mut self) -> Result<(), IrqError> {
        self.vectors.iter_mut().try_for_each(Vector::renew)
    }

    /// The eventfds that the device process signals, by vector.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vectors.iter().map(Vector::fd)
    }

    /// Takes over what the guest wrote.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn set(&mut self, state: MsiState) -> Result<(), IrqError> {
        if !state.enabled {
            return self.vectors.iter_mut().try_for_each(Vector::release);
        }
        // A device that has been granted fewer vectors than it has sends the last granted one for all others.
        for (index, vector) in (0..).zip(&mut self.vectors) {
            if state.mask & (1 << index) != 0 {
                vector.disconnect()?;
            } else {
                let last = state.granted.max(1) - 1;
                vector.connect(&self.routes, state.message.nth(last.min(index)))?;
            }
        }
        Ok(())
    }

    /// One bit for each masked vector that is pending.
    #[must_use]
    pub fn pending(&self) -> u32 {
        (0..).zip(&self.vectors).fold(0, |bits, (index, vector)| bits | u32::from(vector.is_pending()) << index)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_masked_vector_is_pending_until_it_is_unmasked() {
        let vm = Vm::new(1).unwrap();
        let mut msi = Msi::new(&vm, Routes::new(vm.clone()).unwrap(), 4).unwrap();
        let message = Message { address: 0xfee0_0000, data: 0x40 };
        let state = MsiState { enabled: true, message, granted: 4, mask: 0b10 };
        msi.set(state).unwrap();
        let fd = msi.fds().nth(1).unwrap().try_clone_to_owned().unwrap();
        std::fs::File::from(fd).write_all(&1u64.to_ne_bytes()).unwrap();
        assert_eq!(msi.pending(), 0b10);
        msi.set(MsiState { mask: 0, ..state }).unwrap();
        assert_eq!(msi.pending(), 0);
        msi.set(MsiState::default()).unwrap();
    }
}
