//! The registers' state as the threads share it that access it: the one that serves the client, and that of
//! [`super::register_fd`].
//!
//! I/O that the kernel has begun takes time, and is waited for without the lock, so no access ever waits for it: the
//! other thread goes on meanwhile, and finds a device that is being reset.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use outrigger_protocol::server::{Interrupts, Memory};

use super::control::{Control, TakeError};
use super::device::VirtioDevice;
use super::journal::{CONFIG_SPACE_WORDS, JournalError, Words};
use super::pci_config::ISR_OFFSET;
use super::worker::{Endings, STOP_DEADLINE};

/// How long the answer to a write may wait for workers that have nothing to finish: for drivers that begin again without
/// reading the status first, which they must (virtio 1.2, section 4.1.4.3.2).
const MOMENT: Duration = Duration::from_millis(10);

/// A virtio device behind its registers, for several threads.
#[derive(Debug)]
pub struct Shared<D> {
    control: Arc<Mutex<Control<D>>>,
    endings: Arc<Endings>,
}

impl<D> Clone for Shared<D> {
    fn clone(&self) -> Self {
        Self { control: Arc::clone(&self.control), endings: Arc::clone(&self.endings) }
    }
}

impl<D: VirtioDevice> Shared<D> {
    /// Shares `control`.
    pub fn new(control: Control<D>) -> Self {
        let endings = Arc::clone(control.endings());
        Self { control: Arc::new(Mutex::new(control)), endings }
    }

    fn lock(&self) -> MutexGuard<'_, Control<D>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for workers that were told to stop, up to `limit`, or up to [`STOP_DEADLINE`]
    /// after each was told; returns whether all have ended.
    fn settle(&self, limit: Option<Duration>) -> bool {
        let limit = limit.map(|limit| Instant::now() + limit);
        loop {
            // Before looking, so that no end is missed.
            let seen = self.endings.count();
            let Some(until) = self.lock().settle() else { return true };
            if !self.endings.wait_beyond(seen, limit.unwrap_or(until)) {
                return self.lock().settle().is_none();
            }
        }
    }

    /// A client is there; returns its doorbells.
    pub fn connected(&self, interrupts: &Arc<Interrupts>) -> Vec<Arc<EventFd>> {
        let mut control = self.lock();
        control.connected(interrupts);
        control.doorbells().to_vec()
    }

    /// From when this returns, no queue in service refers to other memory of the client than this.
    pub fn memory_changed(&self, memory: &Memory) {
        self.lock().begin_suspend();
        self.settle(None);
        self.lock().end_suspend(memory);
    }

    /// The descriptors that a successor is to have.
    pub fn kept(&self) -> io::Result<Vec<OwnedFd>> {
        self.lock().device().kept()
    }

    /// Has the journal say what configuration space is.
    pub fn record_config(&self, words: impl Iterator<Item = u64>) {
        self.lock().journal().set_config_space(words);
    }

    /// Keeps the journal in `words` from now on.
    pub fn move_journal(&self, words: Words) -> Result<(), TakeError> {
        self.lock().begin_suspend();
        self.settle(None);
        let mut control = self.lock();
        let moved = control.move_journal(words);
        let memory = control.memory().clone();
        control.end_suspend(&memory);
        moved
    }

    /// Whether the device can go on from what `words` say; nothing changes.
    pub fn offer(&self, words: Words) -> Result<(), JournalError> {
        self.lock().offer(words)
    }

    /// Goes on from what a predecessor, which is gone, left in `words`; returns its configuration space.
    pub fn take(&self, words: Words) -> Result<[u64; CONFIG_SPACE_WORDS], TakeError> {
        self.lock().begin_suspend();
        self.settle(None);
        let mut control = self.lock();
        if let Err(error) = control.take(words) {
            let memory = control.memory().clone();
            control.end_suspend(&memory);
            return Err(error);
        }
        Ok(control.journal().config_space())
    }

    /// Stops the device; returns whether it does nothing any more. Else it goes on, but for queues that do not end.
    pub fn stop(&self) -> bool {
        self.lock().begin_suspend();
        let has_stopped = self.settle(None);
        let mut control = self.lock();
        if has_stopped {
            control.stop();
        }
        let memory = control.memory().clone();
        control.end_suspend(&memory);
        has_stopped
    }

    /// The state to save of a device that is stopped.
    pub fn save(&self) -> Result<Vec<u64>, TakeError> {
        self.lock().save()
    }

    /// Takes what another one has saved; returns its configuration space.
    pub fn load(&self, saved: &[u64]) -> Result<[u64; CONFIG_SPACE_WORDS], TakeError> {
        let mut control = self.lock();
        control.load(saved)?;
        Ok(control.journal().config_space())
    }

    /// The device does its work again.
    pub fn go(&self) -> Result<(), TakeError> {
        self.lock().go()
    }

    /// The client unmasked INTx.
    pub fn intx_unmasked(&self) {
        self.lock().intx_unmasked();
    }

    /// The client is gone.
    pub fn disconnected(&self) {
        self.lock().begin_suspend();
        self.settle(None);
        self.lock().disconnected();
    }

    /// Resets the device, or begins to: what cannot be taken back is waited for by [`Shared::reset_is_over`].
    pub fn reset(&self) {
        let mut control = self.lock();
        control.end_migration();
        control.begin_reset();
        drop(control);
        self.settle(Some(MOMENT));
    }

    /// Waits for a reset; returns whether it is over.
    pub fn reset_is_over(&self) -> bool {
        self.settle(Some(STOP_DEADLINE))
    }

    /// Reads at `offset` of the registers' BAR; within it.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    /// Writes at `offset` of the registers' BAR; within it.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut control = self.lock();
        // The doorbells of other queues have nothing to do with it.
        let concerned = offset < ISR_OFFSET;
        if concerned && control.is_resetting() {
            drop(control);
            self.settle(Some(MOMENT));
            control = self.lock();
        }
        control.write(offset, data);
        if concerned && control.is_resetting() {
            drop(control);
            self.settle(Some(MOMENT));
        }
    }
}

#[cfg(test)]
#[path = "reset_tests.rs"]
mod tests;
