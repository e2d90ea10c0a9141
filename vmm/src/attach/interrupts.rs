//! The interrupts of one device: exactly one of INTx, MSI and MSI-X is connected to its server at a time, following the
//! [`Mode`] that the guest chose.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::client::ClientError;
use outrigger_protocol::pci::{INTX_IRQ, MSI_IRQ, MSIX_IRQ};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::discovery::Description;
use super::link::Link;
use crate::irq::intx::Intx;
use crate::irq::msi::{Msi, MsiState};
use crate::irq::msix::Msix;
use crate::irq::{IrqError, Routes};
use crate::machine::vm::Vm;

pub(super) struct Interrupts {
    pub(super) intx: Option<Intx>,
    pub(super) msi: Option<Msi>,
    pub(super) msix: Option<Arc<Mutex<Msix>>>,
    /// The VFIO index of the type that is connected to the server.
    connected: Option<u32>,
    /// The mode that was reached; none: KVM or the server refused, and the next write to configuration space tries again.
    reached: Option<Mode>,
}

/// How a device interrupts, as the guest's registers say. Computed in one place, [`super::config_space::ConfigSpace::mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    None,
    Intx,
    Msi(MsiState),
    Msix {
        /// The function mask; each vector has one of its own in the table.
        masked: bool,
    },
}

impl Mode {
    /// The VFIO index of the interrupt type.
    const fn irq(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Intx => Some(INTX_IRQ),
            Self::Msi(_) => Some(MSI_IRQ),
            Self::Msix { .. } => Some(MSIX_IRQ),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum InterruptError {
    #[error(transparent)]
    Irq(#[from] IrqError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Interrupts {
    pub(super) fn new(
        vm: &Arc<Vm>,
        routes: &Arc<Routes>,
        description: &Description,
        gsi: u32,
    ) -> Result<Self, IrqError> {
        let intx = description.intx.then(|| Intx::new(vm.clone(), gsi)).transpose()?;
        let msi = description.msi.map(|msi| Msi::new(vm, routes.clone(), msi.vectors)).transpose()?;
        let msix = description.msix.map(|msix| Msix::new(vm, routes.clone(), msix.vectors)).transpose()?;
        Ok(Self {
            intx,
            msi,
            msix: msix.map(|msix| Arc::new(Mutex::new(msix))),
            connected: None,
            reached: Some(Mode::None),
        })
    }

    /// Connects what `mode` says, and nothing else. A mode that is reached already costs nothing.
    pub(super) fn follow(&mut self, link: &Link, mode: Mode) -> Result<(), InterruptError> {
        if self.reached.replace(mode) == Some(mode) {
            return Ok(());
        }
        let result = self.change(link, mode);
        if result.is_err() {
            self.reached = None;
        }
        result
    }

    fn change(&mut self, link: &Link, mode: Mode) -> Result<(), InterruptError> {
        let next = mode.irq();
        if let Some(previous) = self.connected.filter(|_| self.connected != next) {
            self.connected = None;
            // A server that refuses signals eventfds that nobody listens to any more.
            if let Err(error) = link.call(|client| client.disable_irqs(previous)) {
                log::debug!("disabling interrupts of type {previous}: {error}");
            }
        }
        // KVM's side first when something is taken away, and last when something is connected: then the eventfds that
        // the server gets are complete, and a signal in between stays in its eventfd.
        if next != Some(INTX_IRQ)
            && let Some(intx) = &mut self.intx
        {
            intx.set_connected(false)?;
        }
        if next != self.connected
            && let Some(next) = next
        {
            self.connect(link, next)?;
            self.connected = Some(next);
        }
        if let Some(mut msix) = self.msix() {
            msix.set_control(next == Some(MSIX_IRQ), mode == Mode::Msix { masked: true })?;
        }
        if let Some(msi) = &mut self.msi {
            msi.set(if let Mode::Msi(state) = mode { state } else { MsiState::default() })?;
        }
        if next == Some(INTX_IRQ)
            && let Some(intx) = &mut self.intx
        {
            intx.set_connected(true)?;
        }
        Ok(())
    }

    /// Another server signals from now on: it is given the eventfds of `mode`. KVM's side stays as it is, so no signal is
    /// lost in between.
    pub(super) fn hand_over(&mut self, link: &Link, mode: Mode) -> Result<(), InterruptError> {
        self.connected = None;
        self.reached = None;
        self.follow(link, mode)
    }

    /// Puts new eventfds in place of those that a server has which may live on. The next server is given them by
    /// [`hand_over`](Self::hand_over).
    pub(super) fn renew(&mut self) -> Result<(), IrqError> {
        self.msix().map_or(Ok(()), |mut msix| msix.renew())?;
        self.msi.as_mut().map_or(Ok(()), Msi::renew)?;
        self.intx.as_mut().map_or(Ok(()), Intx::renew)
    }

    /// Disconnects KVM's side, so that no signal of the device's becomes an interrupt any more. What the guest set up stays.
    pub(super) fn disconnect(&mut self) {
        self.connected = None;
        self.reached = None;
        let msix = self.msix().map_or(Ok(()), |mut msix| msix.disconnect());
        let msi = self.msi.as_mut().map_or(Ok(()), Msi::disconnect);
        let intx = self.intx.as_mut().map_or(Ok(()), |intx| intx.set_connected(false));
        for error in [msix, msi, intx].into_iter().filter_map(Result::err) {
            log::error!("disconnecting the interrupts of a device that is gone: {error}");
        }
    }

    /// The MSI-X table back to what it is after power-on; what is enabled is [`Self::follow`]'s.
    pub(super) fn reset_table(&self) -> Result<(), IrqError> {
        self.msix().map_or(Ok(()), |mut msix| msix.reset())
    }

    fn connect(&mut self, link: &Link, irq: u32) -> Result<(), InterruptError> {
        match irq {
            MSIX_IRQ => {
                let msix = self.msix();
                let fds: Vec<BorrowedFd<'_>> = msix.iter().flat_map(|msix| msix.fds()).collect();
                link.call(|client| client.set_irq_eventfds(irq, 0, &fds))?;
            }
            MSI_IRQ => {
                let fds: Vec<_> = self.msi.iter().flat_map(Msi::fds).collect();
                link.call(|client| client.set_irq_eventfds(irq, 0, &fds))?;
            }
            _ => {
                let fds: Vec<_> = self.intx.iter().map(Intx::fd).collect();
                link.call(|client| client.set_irq_eventfds(irq, 0, &fds))?;
                if let Some(intx) = &mut self.intx
                    && intx.set_unmask(offer_unmask(link)?)?
                {
                    link.call(|client| client.unmask_irq(INTX_IRQ, 0))?;
                }
            }
        }
        Ok(())
    }

    fn msix(&self) -> Option<MutexGuard<'_, Msix>> {
        self.msix.as_ref().map(|msix| msix.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An eventfd by which a physical device is unmasked without a message. None: the server is told by messages, as any other, since
/// libvfio-user accepts such an eventfd and ignores it. Each server has one of its own, as the one before may still read the last.
fn offer_unmask(link: &Link) -> Result<Option<EventFd>, InterruptError> {
    if !link.is_tied() {
        return Ok(None);
    }
    let unmask = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(IrqError::EventFd)?;
    // SAFETY: the descriptor is open for as long as it is lent.
    let lent = unsafe { BorrowedFd::borrow_raw(unmask.as_raw_fd()) };
    match link.call(|client| client.set_unmask_eventfd(INTX_IRQ, 0, Some(lent))) {
        Err(error) if error.is_fatal() => Err(error.into()),
        answer => Ok(answer.is_ok().then_some(unmask)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::super::discovery::{MsiCapability, MsixCapability};
    use super::super::testing::{self, Nothing, description};
    use super::*;
    use crate::irq::{Message, Routes};
    use crate::machine::vm::Vm;

    #[test]
    fn a_write_that_changes_no_mode_waits_for_nobody() {
        let mut description = description();
        description.msix = Some(MsixCapability { offset: 0x70, vectors: 4, table: (0, 0), pba: (0, 0x800) });
        let vm = Vm::new(1).unwrap();
        let mut interrupts = Interrupts::new(&vm, &Routes::new(vm.clone()).unwrap(), &description, 16).unwrap();
        let link = testing::link(Nothing);
        interrupts.follow(&link, Mode::Intx).unwrap();
        let msix = interrupts.msix.clone().unwrap();
        let a_vcpu_writes_the_table = msix.lock().unwrap();
        let (done, is_done) = channel();
        thread::spawn(move || {
            interrupts.follow(&link, Mode::Intx).unwrap();
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(5)).expect("it waits for the MSI-X table");
        drop(a_vcpu_writes_the_table);
    }

    /// A process that was cut off keeps its eventfds. KVM must not listen to them any more.
    #[test]
    fn what_is_disconnected_raises_no_interrupt() {
        let mut description = description();
        description.msi = Some(MsiCapability { offset: 0x50, vectors: 2, wide: true, maskable: false });
        description.msix = Some(MsixCapability { offset: 0x70, vectors: 2, table: (0, 0), pba: (0, 0x800) });
        let vm = Vm::new(1).unwrap();
        let mut interrupts = Interrupts::new(&vm, &Routes::new(vm.clone()).unwrap(), &description, 16).unwrap();
        let message = Message { address: 0xfee0_0000, data: 0x41 };
        let state = MsiState { enabled: true, message, granted: 2, mask: 0 };
        interrupts.msi.as_mut().unwrap().set(state).unwrap();
        interrupts.disconnect();
        interrupts.msi.as_ref().unwrap().fds().for_each(signal);
        assert_eq!(interrupts.msi.as_ref().unwrap().pending(), 0b11, "KVM has taken a signal of MSI");

        interrupts.msix().unwrap().set_control(true, false).unwrap();
        for (field, value) in [0xfee0_0000, 0, 0x41, 0].into_iter().cycle().take(8).enumerate() {
            interrupts.msix().unwrap().write_table(4 * field as u64, &u32::to_le_bytes(value)).unwrap();
        }
        interrupts.disconnect();
        interrupts.msix().unwrap().fds().for_each(signal);
        let mut pending = [0];
        interrupts.msix().unwrap().read_pba(0, &mut pending);
        assert_eq!(pending, [0b11], "KVM has taken a signal of MSI-X");
    }

    /// A server that hung up and lives on keeps its eventfds.
    #[test]
    fn what_is_renewed_is_signalled_by_its_new_eventfds_alone() {
        let mut description = description();
        description.intx = true;
        description.msi = Some(MsiCapability { offset: 0x50, vectors: 2, wide: true, maskable: true });
        description.msix = Some(MsixCapability { offset: 0x70, vectors: 2, table: (0, 0), pba: (0, 0x800) });
        let vm = Vm::new(1).unwrap();
        let mut interrupts = Interrupts::new(&vm, &Routes::new(vm.clone()).unwrap(), &description, 16).unwrap();
        let message = Message { address: 0xfee0_0000, data: 0x41 };
        // One vector that KVM listens to, and one that is masked and pending.
        let state = MsiState { enabled: true, message, granted: 2, mask: 0b10 };
        interrupts.msi.as_mut().unwrap().set(state).unwrap();
        interrupts.intx.as_mut().unwrap().set_connected(true).unwrap();
        interrupts.msix().unwrap().set_control(true, true).unwrap();
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        let old: Vec<_> = interrupts.msi.as_ref().unwrap().fds().map(own).collect();
        let old_msix: Vec<_> = interrupts.msix().unwrap().fds().map(own).collect();
        let old_pin = own(interrupts.intx.as_ref().unwrap().fd());
        signal(old[1].as_fd());
        interrupts.renew().unwrap();
        assert_eq!(interrupts.msi.as_ref().unwrap().pending(), 0b10, "what was pending is lost");

        old.iter().chain(&old_msix).chain([&old_pin]).for_each(|fd| signal(fd.as_fd()));
        for fd in [&old[0], &old_pin] {
            assert!(nix::unistd::read(fd, &mut [0; 8]).is_ok(), "KVM takes the old one's signals");
        }
        let pending = |interrupts: &Interrupts| {
            let mut bits = [0];
            interrupts.msix().unwrap().read_pba(0, &mut bits);
            bits[0]
        };
        assert_eq!(pending(&interrupts), 0, "the old eventfds still count");
        interrupts.msix().unwrap().fds().for_each(signal);
        assert_eq!(pending(&interrupts), 0b11);
        signal(interrupts.msi.as_ref().unwrap().fds().next().unwrap());
        let taken = || nix::unistd::read(interrupts.msi.as_ref().unwrap().fds().next().unwrap(), &mut [0; 8]).is_err();
        assert!(taken(), "KVM does not listen to the new one");
    }

    fn signal(fd: BorrowedFd<'_>) {
        nix::unistd::write(fd, &1u64.to_ne_bytes()).unwrap();
    }
}
