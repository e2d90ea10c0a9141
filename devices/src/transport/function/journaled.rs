//! The function as one that a successor can go on with.

use std::os::fd::OwnedFd;

use log::warn;
use nix::errno::Errno;
use outrigger_protocol::journal::{JournalFormat, JournalMemory};
use outrigger_protocol::server::Journaled;

use super::super::control::TakeError;
use super::super::device::VirtioDevice;
use super::super::journal::{Journal, JournalError};
use super::PciFunction;

impl<D: VirtioDevice> PciFunction<D> {
    fn refuse(&self, error: &JournalError) -> Errno {
        warn!("{}: cannot go on from a predecessor's journal: {error}", self.name);
        match error {
            JournalError::Features { .. } | JournalError::Config | JournalError::Device(_) => Errno::EOPNOTSUPP,
            _ => Errno::EPROTO,
        }
    }

    pub(super) fn refuse_to_take(&self, error: &TakeError) -> Errno {
        match error {
            TakeError::Journal(error) => self.refuse(error),
            TakeError::NotOver(_) => {
                warn!("{}: cannot take over: {error}", self.name);
                Errno::EBUSY
            }
        }
    }

    /// Has the journal say what configuration space is.
    pub(super) fn record_config(&self) {
        self.registers.record_config(self.config.words());
    }
}

impl<D: VirtioDevice> Journaled for PciFunction<D> {
    fn format(&self) -> JournalFormat {
        let queues = u16::try_from(self.doorbells.len()).expect("a device has at most MAX_QUEUES queues");
        JournalFormat { format: format!("virtio-{}/1", self.name), size: Journal::size(queues) }
    }

    fn begin(&mut self, memory: JournalMemory) -> Result<Vec<OwnedFd>, Errno> {
        let kept = self.registers.kept().map_err(|error| {
            warn!("{}: nothing can be kept for a successor: {error}", self.name);
            error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
        })?;
        self.registers.move_journal(memory.into()).map_err(|error| self.refuse_to_take(&error))?;
        Ok(kept)
    }

    fn offer(&mut self, memory: &JournalMemory) -> Result<(), Errno> {
        self.registers.offer(memory.clone().into()).map_err(|error| self.refuse(&error))
    }

    fn take(&mut self, memory: JournalMemory) -> Result<(), Errno> {
        let configuration = self.registers.take(memory.into()).map_err(|error| self.refuse_to_take(&error))?;
        self.config.restore(configuration);
        Ok(())
    }
}
