//! The interrupts of one device: exactly one of INTx, MSI and MSI-X is connected to its server at a time, following what
//! the guest enabled.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::pci::{INTX_IRQ, MSI_IRQ, MSIX_IRQ};

use super::Backplane;
use super::discovery::Description;
use crate::irq::IrqError;
use crate::irq::intx::Intx;
use crate::irq::msi::{Msi, MsiState};
use crate::irq::msix::Msix;

pub(super) struct Interrupts {
    pub(super) intx: Option<Intx>,
    pub(super) msi: Option<Msi>,
    pub(super) msix: Option<Arc<Mutex<Msix>>>,
    /// The VFIO index of the type that is connected to the server.
    connected: Option<u32>,
}

/// What the guest enabled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) intx: bool,
    pub(super) msi: MsiState,
    /// Enable and function mask.
    pub(super) msix: (bool, bool),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum InterruptError {
    #[error(transparent)]
    Irq(#[from] IrqError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Interrupts {
    pub(super) fn new(backplane: &Backplane, description: &Description, gsi: u32) -> Result<Self, IrqError> {
        let (vm, routes) = (&backplane.vm, &backplane.routes);
        let intx = description.intx.then(|| Intx::new(vm.clone(), gsi)).transpose()?;
        let msi = description.msi.map(|msi| Msi::new(vm, routes.clone(), msi.vectors)).transpose()?;
        let msix = description.msix.map(|msix| Msix::new(vm, routes.clone(), msix.vectors)).transpose()?;
        Ok(Self { intx, msi, msix: msix.map(|msix| Arc::new(Mutex::new(msix))), connected: None })
    }

    /// Follows what the guest enabled; MSI-X goes before MSI, and MSI before INTx.
    pub(super) fn update(&mut self, client: &Client, wanted: Wanted) -> Result<(), InterruptError> {
        let next = if wanted.msix.0 && self.msix.is_some() {
            Some(MSIX_IRQ)
        } else if wanted.msi.enabled && self.msi.is_some() {
            Some(MSI_IRQ)
        } else if wanted.intx && self.intx.is_some() {
            Some(INTX_IRQ)
        } else {
            None
        };
        if let Some(previous) = self.connected.filter(|_| self.connected != next) {
            self.connected = None;
            // A server that refuses signals eventfds that nobody listens to any more.
            if let Err(error) = client.disable_irqs(previous) {
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
            self.connect(client, next)?;
            self.connected = Some(next);
        }
        if let Some(mut msix) = self.msix() {
            msix.set_control(next == Some(MSIX_IRQ), wanted.msix.1)?;
        }
        if let Some(msi) = &mut self.msi {
            msi.set(if next == Some(MSI_IRQ) { wanted.msi } else { MsiState::default() })?;
        }
        if next == Some(INTX_IRQ)
            && let Some(intx) = &mut self.intx
        {
            intx.set_connected(true)?;
        }
        Ok(())
    }

    /// The MSI-X table back to what it is after power-on; what is enabled is [`Self::update`]'s.
    pub(super) fn reset_table(&self) -> Result<(), IrqError> {
        self.msix().map_or(Ok(()), |mut msix| msix.reset())
    }

    fn connect(&self, client: &Client, irq: u32) -> Result<(), ClientError> {
        match irq {
            MSIX_IRQ => {
                let msix = self.msix();
                let fds: Vec<BorrowedFd<'_>> = msix.iter().flat_map(|msix| msix.fds()).collect();
                client.set_irq_eventfds(irq, 0, &fds)
            }
            MSI_IRQ => {
                let fds: Vec<_> = self.msi.iter().flat_map(Msi::fds).collect();
                client.set_irq_eventfds(irq, 0, &fds)
            }
            _ => {
                let fds: Vec<_> = self.intx.iter().map(Intx::fd).collect();
                client.set_irq_eventfds(irq, 0, &fds)
            }
        }
    }

    fn msix(&self) -> Option<MutexGuard<'_, Msix>> {
        self.msix.as_ref().map(|msix| msix.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
