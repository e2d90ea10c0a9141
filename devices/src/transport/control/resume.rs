//! How a device begins to keep a journal for a client, and how it goes on from a predecessor's.

use log::debug;
use outrigger_protocol::server::Memory;

use super::super::device::{Predecessor, VirtioDevice};
use super::super::journal::{Fence, Journal, JournalError, Words};
use super::super::registers::CommonRegisters;
use super::{Control, Service};

/// Why a device does not take over, or does not keep a journal.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The predecessor's journal is unusable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There are workers of an earlier client, or a predecessor that is not gone.
    #[error("what was begun before is not over: {0}")]
    NotOver(std::io::Error),
}

impl<D: VirtioDevice> Control<D> {
    /// The device's name.
    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    /// The client's memory that the device reaches.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where the device's state is.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The device behind the registers.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn features(&self) -> u64 {
        self.device.features() | self.transport_features
    }

    /// Keeps the journal in `words` from now on. No worker is running, but for some that are out of service.
    pub fn move_journal(&mut self, words: Words) -> Result<(), TakeError> {
        let fence = Fence::begin(&words).map_err(TakeError::NotOver)?;
        self.journal = self.journal.copy_to(words, self.features(), self.device.config())?;
        self.fence = fence;
        self.signals.set_journal(self.journal.clone());
        Ok(())
    }

    /// The client is gone, and its journal with it: a successor may have it from now on.
    pub(super) fn leave_journal(&mut self) {
        if self.fence.is_none() {
            return;
        }
        let own = Words::own(self.journal.count()).map_err(TakeError::NotOver);
        let moved = own.and_then(|words| self.move_journal(words));
        if let Err(error) = moved {
            self.signals
                .warn(format_args!("{}: keeps the journal of a client that has left: {error}", self.device.name()));
        }
    }

    /// Whether this device can go on from what `words` say; nothing changes.
    pub fn offer(&mut self, words: Words) -> Result<(), JournalError> {
        let journal = Journal::open(words, self.device.queues())?;
        self.restore(&journal).map(drop)
    }

    fn restore(&mut self, journal: &Journal) -> Result<CommonRegisters, JournalError> {
        let predecessor = Predecessor { offered: journal.offered(), config: journal.config() };
        self.device.offer(&predecessor)?;
        CommonRegisters::restore(journal, self.features(), self.device.queues())
    }

    /// Goes on from what a predecessor left in `words`, which it may have stopped to write between any two stores; it is
    /// gone. No worker is running. A device that is killed here in turn leaves what it found.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn take(&mut self, words: Words) -> Result<(), TakeError> {
        self.has_no_workers()?;
        let fence = Fence::succeed(&words).map_err(TakeError::NotOver)?;
        self.device.succeed().map_err(TakeError::NotOver)?;
        // Only now it cannot be written any more.
        let journal = Journal::open(words, self.device.queues())?;
        let registers = self.restore(&journal)?;
        let config = journal.config();
        self.adopt(journal, fence, registers);
        self.finish(&config);
        Ok(())
    }

    fn has_no_workers(&self) -> Result<(), TakeError> {
        let stopping = self.services.iter().any(Service::is_stopping);
        if stopping { Err(TakeError::NotOver(std::io::ErrorKind::TimedOut.into())) } else { Ok(()) }
    }

    fn adopt(&mut self, journal: Journal, fence: Option<Fence>, registers: CommonRegisters) {
        self.registers = registers;
        (self.journal, self.fence) = (journal.clone(), fence);
        self.signals.take(journal);
        let (config_vector, queue_vectors) = self.registers.interrupt_vectors();
        self.signals.set_config_vector(config_vector);
        queue_vectors.for_each(|(queue, vector)| self.signals.set_queue_vector(queue, vector));
        self.services.fill_with(Service::default);
        (self.orphaned, self.frozen) = (false, false);
        // Resets that have begun are over, as there are no workers.
        self.stopping = true;
        self.settle();
    }

    /// Goes on with another process's work; `config` is the configuration as its driver has seen it.
    fn finish(&mut self, config: &[u8]) {
        if self.registers.is_running() {
            self.go_on();
        }
        // The predecessor may have come to the cause of an interrupt and not to the interrupt.
        if let Some(interrupts) = &self.interrupts {
            let in_service = |index: &u16| !matches!(self.services[usize::from(*index)], Service::Off);
            self.signals.catch_up(interrupts, self.indices().filter(in_service));
            if config != self.device.config() {
                self.signals.config_changed(interrupts);
            }
        }
        // Last: until then, the driver may not have been told of another configuration.
        self.journal.set_config(self.device.config());
    }

    fn go_on(&mut self) {
        let features = self.registers.features();
        debug!("{}: goes on for a predecessor, features {features:#x}", self.device.name());
        if let Err(error) = self.device.reactivate(features, self.journal.device()) {
            return self.fail(format_args!("cannot go on: {error}"));
        }
        for index in self.indices().filter(|&index| self.registers.queue(index).is_some()) {
            self.services[usize::from(index)] = Service::Suspended { succeeds: true };
        }
        self.resume();
    }

    /// The device's whole state, for another server to load. No worker is running.
    pub fn save(&self) -> Result<Vec<u64>, TakeError> {
        self.has_no_workers()?;
        let words = Words::own(self.journal.count()).map_err(TakeError::NotOver)?;
        self.journal.copy_to(words.clone(), self.features(), self.device.config())?;
        Ok((0..words.count()).map(|word| words.load(word)).collect())
    }

    /// Takes what another server has saved. It may still be there, so nothing starts before [`Control::go`].
    pub fn load(&mut self, saved: &[u64]) -> Result<(), TakeError> {
        self.has_no_workers()?;
        let words = Words::own(saved.len().max(1)).map_err(TakeError::NotOver)?;
        saved.iter().enumerate().for_each(|(word, &value)| words.store(word, value));
        let journal = Journal::open(words, self.device.queues())?;
        let registers = self.restore(&journal)?;
        let config = journal.config();
        let fence = self.fence.clone();
        // A client's journal stays where it is.
        let journal = match fence {
            Some(_) => journal.copy_to(self.journal.words(), self.features(), self.device.config())?,
            None => journal,
        };
        self.adopt(journal, fence, registers);
        self.loaded = Some(config);
        Ok(())
    }

    /// Forgets a stop and a loaded state: the device is reset next.
    pub fn end_migration(&mut self) {
        (self.stopped, self.loaded) = (false, None);
    }

    /// From now on, no queue is in service, whatever comes, until [`Control::go`] or a reset. No worker is running.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// The device does its work again, or that of the one which it has loaded, which is gone.
    ///
    /// # Errors
    /// It is not gone.
    pub fn go(&mut self) -> Result<(), TakeError> {
        if self.loaded.is_some() {
            self.device.succeed().map_err(TakeError::NotOver)?;
        }
        self.stopped = false;
        match self.loaded.take() {
            Some(config) => self.finish(&config),
            None => self.resume(),
        }
        Ok(())
    }
}
