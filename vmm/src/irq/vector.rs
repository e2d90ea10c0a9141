//! One message-signalled vector: an eventfd that the device process signals, and the route that KVM takes from there.
//!
//! The device process holds the same open file, so it can clear `O_NONBLOCK` and fill the counter. Nothing here reads or
//! writes the eventfd in a way that depends on either: reads ask for `RWF_NOWAIT` themselves, and a signal that was
//! pending is sent by `KVM_SIGNAL_MSI` instead of being written back.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::kvm_msi;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::routing::{Message, Route, Routes};
use super::{IrqError, routing};
use crate::machine::vm::Vm;

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

    /// The eventfd that the device process is given.
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
        // A pending signal must neither be lost nor stay in the counter, where it would look pending again later. One that
        // arrives between these two lines is delivered by KVM, which looks at the counter when it registers.
        let pending = self.take_signal();
        let registered = self.vm.fd().register_irqfd(&self.eventfd, gsi);
        registered.map_err(|source| kvm("KVM_IRQFD", gsi, source))?;
        self.connected = true;
        if pending {
            self.send(message);
        }
        Ok(())
    }

    /// Interrupts the guest now, as a signal would.
    fn send(&self, message: Message) {
        let half = |half: u64| u32::try_from(half & 0xffff_ffff).expect("32 bits");
        let (address_lo, address_hi) = (half(message.address), half(message.address >> 32));
        let msi = kvm_msi { address_lo, address_hi, data: message.data, ..Default::default() };
        // KVM answers with an error if no vCPU takes the message. It is lost then, as it is on a processor.
        if let Err(error) = self.vm.fd().signal_msi(msi) {
            log::debug!("no vCPU takes {message:x?}: {error}");
        }
    }

    /// Takes what the device has signalled out of the counter; whether there was anything. Never waits.
    fn take_signal(&self) -> bool {
        let mut count = [0; 8];
        let mut buffer = [IoSliceMut::new(&mut count)];
        // An offset of -1 is "the current position", the only one that an eventfd has.
        // SAFETY: `IoSliceMut` has the layout of `iovec`, and this one describes `count`, which outlives the call.
        let read =
            unsafe { libc::preadv2(self.eventfd.as_raw_fd(), buffer.as_mut_ptr().cast(), 1, -1, libc::RWF_NOWAIT) };
        read == 8
    }

    /// From now on signals stay in the eventfd.
    pub(super) fn disconnect(&mut self) -> Result<(), IrqError> {
        let Some(route) = self.route.as_ref().filter(|_| self.connected) else { return Ok(()) };
        self.connected = false;
        let unregistered = self.vm.fd().unregister_irqfd(&self.eventfd, route.gsi());
        unregistered.map_err(|source| kvm("KVM_IRQFD", route.gsi(), source))
    }

    /// Puts an eventfd that no process has yet in place of this one. What this one has signalled is not lost.
    pub(super) fn renew(&mut self) -> Result<(), IrqError> {
        let next = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(IrqError::EventFd)?;
        let was_connected = self.connected;
        self.disconnect()?;
        if self.take_signal() {
            next.write(1).map_err(IrqError::EventFd)?;
        }
        self.eventfd = next;
        if let Some(route) = self.route.as_ref().filter(|_| was_connected) {
            let gsi = route.gsi();
            let registered = self.vm.fd().register_irqfd(&self.eventfd, gsi);
            registered.map_err(|source| kvm("KVM_IRQFD", gsi, source))?;
            self.connected = true;
        }
        Ok(())
    }

    /// Disconnects, forgets what is pending, and gives the route back.
    pub(super) fn release(&mut self) -> Result<(), IrqError> {
        let disconnected = self.disconnect();
        self.route = None;
        self.take_signal();
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// A call that has not returned by then, on a machine however busy, blocks.
    const BLOCKED: Duration = Duration::from_secs(20);
    const MESSAGE: Message = Message { address: 0xfee0_0000, data: 0x41 };

    /// A vector whose device has made the shared eventfd a blocking one.
    fn blocking_vector() -> (Vector, Arc<Routes>) {
        let vm = Vm::new(1).unwrap();
        let vector = Vector::new(vm.clone()).unwrap();
        let device = vector.fd().try_clone_to_owned().unwrap();
        fcntl(&device, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        (vector, Routes::new(vm).unwrap())
    }

    fn without_blocking(call: impl FnOnce() + Send + 'static) {
        let (done, is_done) = channel();
        let thread = thread::spawn(move || {
            call();
            done.send(()).unwrap();
        });
        is_done.recv_timeout(BLOCKED).expect("it blocks, or failed");
        thread.join().unwrap();
    }

    #[test]
    fn a_device_that_clears_o_nonblock_blocks_nobody() {
        without_blocking(|| {
            let (mut vector, routes) = blocking_vector();
            for _ in 0..3 {
                vector.connect(&routes, MESSAGE).unwrap();
                vector.disconnect().unwrap();
                vector.connect(&routes, MESSAGE).unwrap();
                vector.release().unwrap();
            }
        });
    }

    #[test]
    fn a_device_that_fills_the_counter_blocks_nobody() {
        without_blocking(|| {
            let (mut vector, routes) = blocking_vector();
            for _ in 0..2 {
                vector.eventfd.write(u64::MAX - 1).unwrap();
                assert!(vector.is_pending());
                vector.connect(&routes, MESSAGE).unwrap();
                vector.disconnect().unwrap();
                assert!(!vector.is_pending(), "what was pending has been sent");
                vector.eventfd.write(u64::MAX - 1).unwrap();
                vector.release().unwrap();
                assert!(!vector.is_pending(), "what was pending is forgotten");
            }
        });
    }
}
