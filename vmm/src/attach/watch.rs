//! What the main thread watches of each device: the server's own requests, its death, and the guest's end-of-interrupt
//! for INTx.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use outrigger_protocol::client::Client;
use outrigger_protocol::pci::INTX_IRQ;

use super::device::Device;
use super::link::{Cause, Link};
use crate::events::{EventLoop, EventsError, duplicate};
use crate::irq::IrqError;

/// A device that cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The event loop refuses.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// No descriptor left.
    #[error("duplicating a device's descriptor")]
    Duplicate(#[from] io::Error),
    /// No descriptor left.
    #[error(transparent)]
    Irq(#[from] IrqError),
}

/// Serves `device` at the other end of `link` from the event loop. When its process is gone, its ranges read as all-ones, and `died` is called once.
///
/// # Errors
/// If the system has no descriptors left.
pub fn watch(
    device: &Arc<Device>,
    link: &Arc<Link>,
    events: &mut EventLoop,
    died: impl Fn() + Clone + 'static,
) -> Result<(), WatchError> {
    for watched in link.watch() {
        // Edges: what arrives while a vCPU has the connection is served by that vCPU, not by spinning here.
        let mut interest = EpollFlags::EPOLLET | EpollFlags::EPOLLRDHUP;
        interest.set(EpollFlags::EPOLLIN, watched.requests);
        let (device, link, died) = (device.clone(), link.clone(), died.clone());
        events.add(watched.fd.try_clone_to_owned()?, interest, move |what| {
            let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR;
            let served = link.call(Client::serve_ready);
            if !what.intersects(gone) && served.is_ok() {
                return ControlFlow::Continue(());
            }
            link.fail(Cause::HungUp);
            if device.withdraw() {
                died();
            }
            ControlFlow::Break(())
        })?;
    }
    if let Some(resample) = device.resample()? {
        let (slot, link) = (device.slot(), link.clone());
        events.add(duplicate(&resample)?, EpollFlags::EPOLLIN, move |_| {
            if resample.read().is_ok() {
                // The guest has ended an interrupt: the device may assert it again. Another device on the pin may have
                // died meanwhile, which is told elsewhere.
                match link.call(|client| client.unmask_irq(INTX_IRQ, 0)) {
                    Err(error) if !error.is_fatal() => log::warn!("{slot}: unmasking INTx: {error}"),
                    _ => {}
                }
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(())
}
