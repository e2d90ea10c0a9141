//! INTx: a level-triggered pin of the I/O APIC.
//!
//! The device process signals an eventfd and masks itself; KVM raises the pin. When the guest ends the interrupt, KVM
//! lowers the pin and signals the resample eventfd, upon which the device is told to unmask: if the cause still stands, it
//! signals again.
//!
//! A server may take an eventfd of its own to be told by. Then KVM signals that, and the VMM has no part in an interrupt.
//!
//! The open files of the trigger and of the server's eventfd are shared with the device process, which can clear `O_NONBLOCK`:
//! the VMM reads neither. The resample eventfd is the VMM's alone.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::IrqError;
use super::vector::kvm;
use crate::machine::vm::Vm;

/// A function's interrupt pin, disconnected at first.
#[derive(Debug)]
pub struct Intx {
    vm: Arc<Vm>,
    gsi: u32,
    trigger: EventFd,
    resample: EventFd,
    /// The eventfd by which KVM tells the server without the VMM, if the server takes it.
    unmask: Option<EventFd>,
    connected: bool,
}

impl Intx {
    /// A pin that is wired to `gsi`.
    ///
    /// # Errors
    /// If the system has no eventfds left.
    pub fn new(vm: Arc<Vm>, gsi: u32) -> Result<Self, IrqError> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(IrqError::EventFd);
        Ok(Self { vm, gsi, trigger: eventfd()?, resample: eventfd()?, unmask: None, connected: false })
    }

    /// The eventfd that the device process signals.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.trigger.as_raw_fd()) }
    }

    /// Has KVM signal `unmask`, which the server has taken, when the guest has ended the interrupt; none: [`resample`](Self::resample).
    /// True: the pin was connected and has been connected again, and an end in between was not signalled.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn set_unmask(&mut self, unmask: Option<EventFd>) -> Result<bool, IrqError> {
        if unmask.is_none() && self.unmask.is_none() {
            return Ok(false);
        }
        let was_connected = self.connected;
        self.set_connected(false)?;
        self.unmask = unmask;
        self.set_connected(was_connected)?;
        Ok(was_connected)
    }

    /// Readable when the guest has ended the interrupt, unless the server is told without the VMM.
    #[must_use]
    pub fn resample(&self) -> &EventFd {
        &self.resample
    }

    /// Puts a new trigger in place of this one: what has the old one raises the pin no more. Whoever is given the new one
    /// raises it if the cause still stands.
    ///
    /// # Errors
    /// If there are no eventfds left, or KVM refuses.
    pub fn renew(&mut self) -> Result<(), IrqError> {
        let next = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(IrqError::EventFd)?;
        let was_connected = self.connected;
        self.set_connected(false)?;
        self.trigger = next;
        self.set_connected(was_connected)
    }

    /// Connects or disconnects the pin.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn set_connected(&mut self, connected: bool) -> Result<(), IrqError> {
        if connected == self.connected {
            return Ok(());
        }
        let (fd, gsi) = (self.vm.fd(), self.gsi);
        let result = match connected {
            true => {
                let resample = self.unmask.as_ref().unwrap_or(&self.resample);
                fd.register_irqfd_with_resample(&self.trigger, resample, gsi)
            }
            // KVM lowers the pin when the last resampling irqfd of a GSI goes away.
            false => fd.unregister_irqfd(&self.trigger, gsi),
        };
        result.map_err(|source| kvm("KVM_IRQFD", gsi, source))?;
        self.connected = connected;
        Ok(())
    }
}

impl Drop for Intx {
    fn drop(&mut self) {
        if let Err(error) = self.set_connected(false) {
            log::error!("disconnecting INTx: {error}");
        }
    }
}
