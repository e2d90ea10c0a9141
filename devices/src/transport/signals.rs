//! Signals of queue threads to the driver: interrupts, ISR status, "device needs reset", configuration changes.
//!
//! Everything is atomic, because a queue's thread fires while the thread that serves the socket changes vectors.

use std::fmt::Arguments;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use outrigger_process::RateLimit;
use outrigger_protocol::pci::{INTX_IRQ, MSIX_IRQ};
use outrigger_protocol::server::Interrupts;

use super::journal::Journal;
use super::registers::NO_VECTOR;

/// A queue has used buffers (virtio 1.2, section 4.1.4.5, "ISR status capability").
const ISR_QUEUE: u8 = 1;
/// The configuration changed.
const ISR_CONFIG: u8 = 2;

/// The interrupt side of one device.
///
/// The journal has "device needs reset" and the configuration's generation. It has no ISR status, which a successor sets
/// whenever it takes over: an interrupt that nobody has asked for is harmless, and one that is lost is not (virtio 1.2,
/// section 4.1.4.5).
#[derive(Debug)]
pub struct Signals {
    isr: AtomicU8,
    needs_reset: AtomicBool,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    log: RateLimit,
    journal: Mutex<Journal>,
}

impl Signals {
    /// For a device with this many queues.
    pub fn new(queues: u16, journal: Journal) -> Self {
        Self {
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            log: RateLimit::new(),
            journal: Mutex::new(journal),
        }
    }

    /// Goes on in another journal, which says the same.
    pub fn set_journal(&self, journal: Journal) {
        *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = journal;
    }

    /// Goes on where a predecessor's journal says.
    pub fn take(&self, journal: Journal) {
        let [needs_reset, generation, ..] = journal.signals().to_le_bytes();
        self.reset_interrupts();
        self.needs_reset.store(needs_reset & 1 != 0, Ordering::Relaxed);
        self.generation.store(generation, Ordering::Relaxed);
        self.set_journal(journal);
    }

    /// Has the journal say what is the case.
    fn record(&self) {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let (needs_reset, generation) = (self.needs_reset(), self.generation());
        journal.set_signals(u64::from_le_bytes([needs_reset.into(), generation, 0, 0, 0, 0, 0, 0]));
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.needs_reset.store(false, Ordering::Relaxed);
        self.record();
        self.reset_interrupts();
    }

    fn reset_interrupts(&self) {
        self.isr.store(0, Ordering::Relaxed);
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Relaxed));
    }

    /// The vector that configuration changes fire.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(vector, Ordering::Relaxed);
    }

    /// The vector that a queue fires.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(vector, Ordering::Relaxed);
        }
    }

    /// The driver should look at a queue's used ring.
    pub fn queue_used(&self, interrupts: &Interrupts, queue: u16) {
        let vector = self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |slot| slot.load(Ordering::Relaxed));
        self.fire(interrupts, vector, ISR_QUEUE);
    }

    /// The driver should read the device-specific configuration again.
    pub fn config_changed(&self, interrupts: &Interrupts) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.record();
        self.fire(interrupts, self.config_vector.load(Ordering::Relaxed), ISR_CONFIG);
    }

    /// The device cannot go on before the driver resets it (virtio 1.2, section 2.1.2), for the reason that is logged.
    /// Without a client, its successor finds out by reading the status.
    pub fn fail(&self, interrupts: Option<&Interrupts>, reason: Arguments<'_>) {
        self.log.warn(format_args!("{reason}; the device needs a reset"));
        self.needs_reset.store(true, Ordering::Relaxed);
        self.record();
        if let Some(interrupts) = interrupts {
            self.fire(interrupts, self.config_vector.load(Ordering::Relaxed), ISR_CONFIG);
        }
    }

    /// Fires what a predecessor may not have come to: the driver looks at whatever there is to see.
    pub fn catch_up(&self, interrupts: &Interrupts, queues: impl IntoIterator<Item = u16>) {
        queues.into_iter().for_each(|queue| self.queue_used(interrupts, queue));
        if self.needs_reset() {
            self.fire(interrupts, self.config_vector.load(Ordering::Relaxed), ISR_CONFIG);
        }
    }

    /// Says in the log what the guest may be able to cause at will: all lines of one device share a limit, which no reset
    /// and no other client renews.
    pub fn warn(&self, line: Arguments<'_>) {
        self.log.warn(line);
    }

    /// Whether [`Signals::fail`] was called since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Relaxed)
    }

    /// Changes with every change of the configuration.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Reads the ISR status, which also takes the INTx cause away.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::Relaxed)
    }

    /// The client unmasked INTx: fires again unless the driver has read the ISR status.
    pub fn intx_unmasked(&self, interrupts: &Interrupts) {
        if self.isr.load(Ordering::Relaxed) != 0 {
            interrupts.trigger(INTX_IRQ, 0);
        }
    }

    /// By MSI-X when the client uses it, else by INTx: the client connects either the one or the other, as the driver
    /// tells it to.
    fn fire(&self, interrupts: &Interrupts, vector: u16, cause: u8) {
        if interrupts.is_connected(MSIX_IRQ) {
            if vector != NO_VECTOR {
                interrupts.trigger(MSIX_IRQ, vector.into());
            }
        } else {
            self.isr.fetch_or(cause, Ordering::Relaxed);
            interrupts.trigger(INTX_IRQ, 0);
        }
    }
}
