//! The registers as words of a journal, one word for whatever one access changes.

use super::super::journal::{COMMON_WORDS, Journal, JournalError, QUEUE_REGISTER_WORDS};
use super::super::layout::QueueLayout;
use super::{
    CommonRegisters, FEATURE_VERSION_1, NO_VECTOR, QueueRegisters, STATUS_DRIVER_OK, STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
};

const RESETTING: u8 = 1;
const ENABLED: u8 = 2;

impl QueueRegisters {
    fn words(&self) -> [u64; QUEUE_REGISTER_WORDS] {
        let ([a, b], [c, d]) = (self.size.to_le_bytes(), self.vector.to_le_bytes());
        let resetting = if self.resetting { RESETTING } else { 0 };
        let enabled = if self.enabled { ENABLED } else { 0 };
        let control = u64::from_le_bytes([resetting | enabled, 0, a, b, c, d, 0, 0]);
        [control, self.descriptors, self.driver, self.device]
    }

    fn from_words(words: [u64; QUEUE_REGISTER_WORDS], queue: u16, vectors: u16) -> Result<Self, JournalError> {
        let [control, descriptors, driver, device] = words;
        let [flags, _, a, b, c, d, ..] = control.to_le_bytes();
        let (size, vector) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let (enabled, resetting) = (flags & ENABLED != 0, flags & RESETTING != 0);
        // A reset may be over in part.
        let layout = (enabled && !resetting).then(|| QueueLayout::new(size, descriptors, driver, device)).transpose();
        Ok(Self {
            size,
            vector: if vector < vectors { vector } else { NO_VECTOR },
            enabled,
            resetting,
            descriptors,
            driver,
            device,
            layout: layout.map_err(|source| JournalError::Queue { queue, source })?,
        })
    }
}

impl CommonRegisters {
    /// The queue that accesses to queue registers are about.
    pub fn selected_queue(&self) -> u16 {
        self.queue_select
    }

    fn words(&self) -> [u64; COMMON_WORDS] {
        let ([a, b], [c, d]) = (self.queue_select.to_le_bytes(), self.config_vector.to_le_bytes());
        let resetting = if self.resetting { RESETTING } else { 0 };
        let control = u64::from_le_bytes([self.status, resetting, a, b, c, d, 0, 0]);
        let selects = u64::from(self.device_feature_select) | u64::from(self.driver_feature_select) << 32;
        [control, self.accepted, selects]
    }

    /// Has the journal say what an access has changed that came when `queue` was the selected one.
    pub fn record(&self, journal: &Journal, queue: u16) {
        self.record_common(journal);
        self.record_queue(journal, queue);
    }

    /// Has the journal say what the registers are that are not a queue's.
    pub fn record_common(&self, journal: &Journal) {
        journal.set_common(self.words());
    }

    /// Has the journal say what a queue's registers are.
    pub fn record_queue(&self, journal: &Journal, queue: u16) {
        if let Some(registers) = self.queues.get(usize::from(queue)) {
            journal.set_queue_registers(queue, registers.words());
        }
    }

    /// Has the journal say everything, last of all whether a reset is over.
    pub fn record_all(&self, journal: &Journal) {
        (0..self.num_queues()).for_each(|queue| self.record_queue(journal, queue));
        self.record_common(journal);
    }

    /// The registers of a device that offers `features` and has `queues` queues, as a journal has them.
    ///
    /// # Errors
    /// They cannot have come about, or the driver knows of features that this device does not offer.
    pub fn restore(journal: &Journal, features: u64, queues: u16) -> Result<Self, JournalError> {
        let [control, accepted, selects] = journal.common();
        let [status, flags, a, b, c, d, ..] = control.to_le_bytes();
        let mut registers = Self::new(features, queues);
        if flags & RESETTING != 0 {
            // It may be over in part, and will all be done again.
            registers.begin_reset();
            return Ok(registers);
        }
        let negotiated = status & STATUS_FEATURES_OK != 0;
        if status & STATUS_NEEDS_RESET != 0
            || status & STATUS_DRIVER_OK != 0 && !negotiated
            || negotiated && accepted & FEATURE_VERSION_1 == 0
        {
            return Err(JournalError::Status(status));
        }
        // A driver that is negotiating has read what is offered, or will.
        let known = match (status, negotiated) {
            (0, _) => 0,
            (_, false) => journal.offered(),
            (_, true) => accepted,
        };
        if known & !features != 0 {
            return Err(JournalError::Features { missing: known & !features });
        }
        let (vector, vectors) = (u16::from_le_bytes([c, d]), registers.vectors());
        let [s0, s1, s2, s3, s4, s5, s6, s7] = selects.to_le_bytes();
        registers.accepted = accepted;
        registers.device_feature_select = u32::from_le_bytes([s0, s1, s2, s3]);
        registers.driver_feature_select = u32::from_le_bytes([s4, s5, s6, s7]);
        registers.status = status;
        registers.config_vector = if vector < vectors { vector } else { NO_VECTOR };
        registers.queue_select = u16::from_le_bytes([a, b]);
        for (queue, index) in registers.queues.iter_mut().zip(0..) {
            *queue = QueueRegisters::from_words(journal.queue_registers(index), index, vectors)?;
        }
        Ok(registers)
    }

    /// The vectors that configuration changes and each queue fire.
    pub fn interrupt_vectors(&self) -> (u16, impl Iterator<Item = (u16, u16)>) {
        (self.config_vector, (0..).zip(self.queues.iter().map(|queue| queue.vector)))
    }

    /// The queues that are being reset.
    pub fn resetting_queues(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.queues).filter(|(_, queue)| queue.resetting).map(|(index, _)| index)
    }
}
