//! A virtio device, as the transport sees it.

use std::io;
use std::os::fd::OwnedFd;

use super::journal::{DEVICE_WORDS, JournalError};
use super::worker::{Work, WorkerError};
use crate::sandbox::Profile;

/// How the device introduces itself on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Virtio device type (virtio 1.2, section 5, "Device Types"): 1 network card, 2 block device.
    pub device_type: u16,
    /// PCI class, subclass and programming interface, as in bytes 11, 10 and 9 of configuration space.
    pub class: u32,
}

/// A predecessor, as its successor knows it before it takes over.
#[derive(Clone, Debug)]
pub struct Predecessor {
    /// All features that it offers.
    pub offered: u64,
    /// Its configuration, as the driver has seen it.
    pub config: Vec<u8>,
}

/// A virtio device: its identity, its configuration, and the work that each of its queues needs.
///
/// All methods run one at a time, on the thread that serves the client or on that of [`super::register_fd`]. The work that
/// [`VirtioDevice::start`] returns runs on a thread of its own.
pub trait VirtioDevice: Send + 'static {
    /// Its identity on the bus. Constant.
    fn identity(&self) -> Identity;

    /// For log lines and thread names, at most ten characters.
    fn name(&self) -> &'static str;

    /// The device-specific feature bits it offers. The transport adds its own
    /// ([`super::registers::TRANSPORT_FEATURES`]). Constant.
    fn features(&self) -> u64;

    /// How many virtqueues there are, at most [`super::MAX_QUEUES`]. Constant.
    fn queues(&self) -> u16;

    /// The profile under which its process is sealed; none: it opens files while it serves. Constant.
    fn profile(&self) -> Option<Profile> {
        None
    }

    /// The device-specific configuration, as the driver reads it; at most 256 bytes, of constant length.
    fn config(&self) -> &[u8];

    /// The driver wrote `data` at `offset` of the configuration; within its length.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver set `DRIVER_OK` with these features; queues are started next.
    ///
    /// # Errors
    /// The back end refused; the driver is told that the device needs a reset.
    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    /// Prepares the work of an enabled queue. Called again for the same queue after its worker was stopped, be it
    /// because client memory changed.
    ///
    /// # Errors
    /// The back end refused; the driver is told that the device needs a reset.
    fn start(&mut self, queue: u16, features: u64) -> Result<Work, WorkerError>;

    /// Makes what the process may not make once it is sealed. Called once, by the only thread.
    ///
    /// # Errors
    /// The host lacks something.
    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    /// Makes what belongs to a thread that will do the work of queues. Runs on each of them, once, while the process may
    /// still do what it may not later.
    ///
    /// # Errors
    /// The host lacks something.
    fn prepare_thread() -> io::Result<()>
    where
        Self: Sized,
    {
        Ok(())
    }

    /// Descriptors that a successor's process is to inherit, as what is behind them would go away with this process.
    ///
    /// # Errors
    /// There are no descriptors left.
    fn kept(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(Vec::new())
    }

    /// Whether this device can go on where `predecessor` is, which may be at work. Features are checked by the transport,
    /// after this.
    ///
    /// # Errors
    /// It cannot, because the driver would see another configuration.
    fn offer(&mut self, predecessor: &Predecessor) -> Result<(), JournalError> {
        if predecessor.config == self.config() { Ok(()) } else { Err(JournalError::Config) }
    }

    /// The predecessor is gone. From when this returns, nothing that it had begun can have an effect any more, though the
    /// kernel may have been at it: this is where to wait for that.
    ///
    /// # Errors
    /// It is not gone.
    fn succeed(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Like [`VirtioDevice::activate`], for a driver that is at work already: with a predecessor, which kept `words`
    /// ([`super::ActiveQueue::keep`]).
    ///
    /// # Errors
    /// The back end refused; the driver is told that the device needs a reset.
    fn reactivate(&mut self, features: u64, _words: [u64; DEVICE_WORDS]) -> io::Result<()> {
        self.activate(features)
    }

    /// The device was reset; no queue is running.
    ///
    /// # Errors
    /// The back end refused, which is logged.
    fn deactivate(&mut self) -> io::Result<()> {
        Ok(())
    }
}
