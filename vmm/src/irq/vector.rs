//! One message-signalled vector: an eventfd that the device process signals, and the route that KVM takes from there.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::routing::{Message, Route, Routes};
use super::{IrqError, routing};
use crate::vm::Vm;

/// A vector, disconnected at first.
#[derive(Debug)]
pub(super) struct Vector {
    vm: Arc<Vm>,
    eventfd: EventFd,
    route: Option<Route>,
    connected: bool,
}

impl Vector {
    pub(super) fn new(vm: Arc<Vm>) -> Result<Self, IrqError> {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(IrqError::EventFd)?;
        Ok(Self { vm, eventfd, route: None, connected: false })
    }

    /// What the device process is given.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.eventfd.as_raw_fd()) }
    }

    /// Whether the device has signalled since the vector was disconnected.
    pub(super) fn is_pending(&self) -> bool {
        let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        !self.connected && poll(&mut fds, PollTimeout::ZERO) == Ok(1)
    }

    /// From now on every signal becomes `message`; one that is pending does so at once.
    pub(super) fn connect(&mut self, routes: &Arc<Routes>, message: Message) -> Result<(), IrqError> {
        let route = match &self.route {
            Some(route) => route,
            None => self.route.insert(routes.reserve()?),
        };
        route.set(message)?;
        if self.connected {
            return Ok(());
        }
        let gsi = route.gsi();
        // What is pending must neither be lost nor stay in the counter, where it would look pending again later.
        let pending = self.eventfd.read().is_ok();
        let registered = self.vm.fd().register_irqfd(&self.eventfd, gsi);
        registered.map_err(|source| kvm("KVM_IRQFD", gsi, source))?;
        self.connected = true;
        if pending {
            let _ = self.eventfd.write(1);
        }
        Ok(())
    }

    /// From now on signals stay in the eventfd.
    pub(super) fn disconnect(&mut self) -> Result<(), IrqError> {
        let Some(route) = self.route.as_ref().filter(|_| self.connected) else { return Ok(()) };
        self.connected = false;
        let unregistered = self.vm.fd().unregister_irqfd(&self.eventfd, route.gsi());
        unregistered.map_err(|source| kvm("KVM_IRQFD", route.gsi(), source))
    }

    /// Disconnects, forgets what is pending, and gives the route back.
    pub(super) fn release(&mut self) -> Result<(), IrqError> {
        let disconnected = self.disconnect();
        self.route = None;
        let _ = self.eventfd.read();
        disconnected
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            log::error!("disconnecting an interrupt: {error}");
        }
    }
}

pub(super) fn kvm(call: &'static str, gsi: u32, source: vmm_sys_util::errno::Error) -> IrqError {
    IrqError::Kvm { call, gsi, source: source.into() }
}

impl routing::Message {
    /// The message of vector `index` of a multi-message MSI: the low bits of the data count the vectors
    /// (PCI Local Bus 3.0, section 6.8.1.6).
    pub(super) const fn nth(self, index: u32) -> Self {
        Self { address: self.address, data: self.data | index }
    }
}
