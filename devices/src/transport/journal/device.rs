//! The whole of a journal: what is where.
//!
//! | words | |
//! |---|---|
//! | 0 | [`MAGIC`] |
//! | 1 | format number, queues, bytes of device configuration |
//! | 2 | features offered |
//! | 8 | status, reset begun, queue select, configuration vector |
//! | 9 | features accepted |
//! | 10 | feature selects |
//! | 11 | device needs reset, configuration generation |
//! | 16 to 47 | PCI configuration space |
//! | 48 to 79 | device configuration as the driver has seen it |
//! | 80 to 87 | of the device ([`DEVICE_WORDS`]) |
//! | 88 + 16 n | queue n: its registers (four words), and from word 8 on its state ([`super::queue`]) |
//!
//! Queues have cache lines of their own.

use std::io;

use super::memory::Words;
use super::queue::{QUEUE_STATE_WORDS, QueueJournal};

/// "outrigge", the first word.
const MAGIC: u64 = u64::from_le_bytes(*b"outrigge");
/// Of this layout. Another layout has another number.
const FORMAT: u16 = 1;

const SHAPE: usize = 1;
const OFFERED: usize = 2;
/// Where the registers that are not a queue's begin; [`super::super::registers`] knows what each word is.
const COMMON: usize = 8;
/// How many they are.
pub const COMMON_WORDS: usize = 3;
const SIGNALS: usize = COMMON + COMMON_WORDS;
const CONFIG_SPACE: usize = 16;
/// The part of PCI configuration space that anything is in: 256 bytes.
pub const CONFIG_SPACE_WORDS: usize = 32;
const DEVICE_CONFIG: usize = CONFIG_SPACE + CONFIG_SPACE_WORDS;
const DEVICE_CONFIG_WORDS: usize = 32;
const DEVICE: usize = DEVICE_CONFIG + DEVICE_CONFIG_WORDS;
/// Words that a device has for itself. A reset makes them zero.
pub const DEVICE_WORDS: usize = 8;
const QUEUES: usize = DEVICE + DEVICE_WORDS;
const QUEUE_WORDS: usize = 16;
/// Of a queue's registers.
pub const QUEUE_REGISTER_WORDS: usize = 4;
const QUEUE_STATE: usize = 8;

const _: () = assert!(QUEUE_REGISTER_WORDS <= QUEUE_STATE && QUEUE_STATE + QUEUE_STATE_WORDS <= QUEUE_WORDS);
const _: () = assert!(SIGNALS < CONFIG_SPACE && QUEUES.is_multiple_of(8));

/// A journal that this device cannot go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Too little memory.
    #[error("{words} words of memory, {needed} are needed")]
    Size {
        /// Words of memory.
        words: usize,
        /// Words needed.
        needed: usize,
    },
    /// Of another kind, or nobody has begun it.
    #[error("not a journal of format {FORMAT}: {magic:#x}, {shape:#x}")]
    Format {
        /// The first word.
        magic: u64,
        /// The second.
        shape: u64,
    },
    /// Of another device.
    #[error("{found} queues, and this device has {queues}")]
    Queues {
        /// Queues in the journal.
        found: u16,
        /// Queues of this device.
        queues: u16,
    },
    /// Features that the driver uses, or is about to.
    #[error("the features {missing:#x} are missing here")]
    Features {
        /// Which.
        missing: u64,
    },
    /// The driver has seen another configuration.
    #[error("the device's configuration is another")]
    Config,
    /// For a reason of the device's own.
    #[error("{0}")]
    Device(&'static str),
    /// Registers that cannot have been.
    #[error("queue {queue}: {source}")]
    Queue {
        /// Which.
        queue: u16,
        /// Why.
        source: super::super::layout::LayoutError,
    },
    /// Registers that cannot have been.
    #[error("device status {0:#x} cannot be")]
    Status(u8),
}

/// The journal of one device. Clones refer to the same memory.
#[derive(Clone, Debug)]
pub struct Journal {
    words: Words,
    queues: u16,
}

impl Journal {
    /// The memory.
    pub fn words(&self) -> Words {
        self.words.clone()
    }

    /// Bytes of the journal of a device with so many queues.
    pub const fn size(queues: u16) -> u64 {
        (Self::word_count(queues) * size_of::<u64>()) as u64
    }

    const fn word_count(queues: u16) -> usize {
        QUEUES + QUEUE_WORDS * queues as usize
    }

    /// In ordinary memory.
    ///
    /// # Errors
    /// There is none left.
    pub fn own(queues: u16) -> io::Result<Self> {
        Ok(Self { words: Words::own(Self::word_count(queues))?, queues })
    }

    /// How many words of memory it has.
    pub fn count(&self) -> usize {
        self.words.count()
    }

    fn shape(queues: u16, config: u16) -> u64 {
        let [a, b] = FORMAT.to_le_bytes();
        let [c, d] = queues.to_le_bytes();
        let [e, f] = config.to_le_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    fn has_room(words: &Words, queues: u16) -> Result<(), JournalError> {
        let (words, needed) = (words.count(), Self::word_count(queues));
        if words < needed { Err(JournalError::Size { words, needed }) } else { Ok(()) }
    }

    /// Goes on in `words`: copies everything there, the header last. `offered` and `config` are what the driver sees.
    pub fn copy_to(&self, words: Words, offered: u64, config: &[u8]) -> Result<Self, JournalError> {
        Self::has_room(&words, self.queues)?;
        let copy = Self { words, queues: self.queues };
        copy.words.store(0, 0);
        for index in COMMON..Self::word_count(self.queues) {
            copy.words.store(index, self.words.load(index));
        }
        copy.set_config(config);
        copy.words.store(OFFERED, offered);
        copy.words.store(SHAPE, Self::shape(self.queues, length(config)));
        copy.words.store(0, MAGIC);
        Ok(copy)
    }

    /// A predecessor's journal in `words`. Only the header is checked.
    pub fn open(words: Words, queues: u16) -> Result<Self, JournalError> {
        Self::has_room(&words, queues)?;
        let (magic, shape) = (words.load(0), words.load(SHAPE));
        let [a, b, c, d, ..] = shape.to_le_bytes();
        if magic != MAGIC || u16::from_le_bytes([a, b]) != FORMAT {
            return Err(JournalError::Format { magic, shape });
        }
        let found = u16::from_le_bytes([c, d]);
        if found != queues {
            return Err(JournalError::Queues { found, queues });
        }
        Ok(Self { words, queues })
    }

    /// The features that were offered to the driver.
    pub fn offered(&self) -> u64 {
        self.words.load(OFFERED)
    }

    /// The registers that are not a queue's.
    pub fn common(&self) -> [u64; COMMON_WORDS] {
        std::array::from_fn(|word| self.words.load(COMMON + word))
    }

    /// Stores them, the first word last: it says whether a reset is over.
    pub fn set_common(&self, values: [u64; COMMON_WORDS]) {
        for (word, value) in values.into_iter().enumerate().rev() {
            self.words.store(COMMON + word, value);
        }
    }

    /// A queue's registers.
    pub fn queue_registers(&self, queue: u16) -> [u64; QUEUE_REGISTER_WORDS] {
        std::array::from_fn(|word| self.words.load(Self::queue_at(queue) + word))
    }

    /// Stores them, the first word last: it says whether a reset of the queue is over, and whether it is enabled.
    pub fn set_queue_registers(&self, queue: u16, values: [u64; QUEUE_REGISTER_WORDS]) {
        for (word, value) in values.into_iter().enumerate().rev() {
            self.words.store(Self::queue_at(queue) + word, value);
        }
    }

    fn queue_at(queue: u16) -> usize {
        QUEUES + QUEUE_WORDS * usize::from(queue)
    }

    /// A queue's state.
    pub fn queue(&self, queue: u16) -> QueueJournal {
        QueueJournal::new(self.words.clone(), Self::queue_at(queue) + QUEUE_STATE)
    }

    /// The word of [`super::super::signals`].
    pub fn signals(&self) -> u64 {
        self.words.load(SIGNALS)
    }

    /// Stores it.
    pub fn set_signals(&self, value: u64) {
        self.words.store(SIGNALS, value);
    }

    /// The start of PCI configuration space.
    pub fn config_space(&self) -> [u64; CONFIG_SPACE_WORDS] {
        std::array::from_fn(|word| self.words.load(CONFIG_SPACE + word))
    }

    /// Stores those words that have changed.
    pub fn set_config_space(&self, values: impl IntoIterator<Item = u64>) {
        for (word, value) in values.into_iter().take(CONFIG_SPACE_WORDS).enumerate() {
            if self.words.load(CONFIG_SPACE + word) != value {
                self.words.store(CONFIG_SPACE + word, value);
            }
        }
    }

    /// The device's configuration as the driver has seen it.
    pub fn config(&self) -> Vec<u8> {
        let [.., low, high, _, _] = self.words.load(SHAPE).to_le_bytes();
        let bytes = (0..DEVICE_CONFIG_WORDS).flat_map(|word| self.words.load(DEVICE_CONFIG + word).to_le_bytes());
        bytes.take(u16::from_le_bytes([low, high]).into()).collect()
    }

    /// Stores it; its length is constant.
    pub fn set_config(&self, config: &[u8]) {
        for (word, bytes) in config.chunks(size_of::<u64>()).take(DEVICE_CONFIG_WORDS).enumerate() {
            let mut value = [0; size_of::<u64>()];
            value[..bytes.len()].copy_from_slice(bytes);
            self.words.store(DEVICE_CONFIG + word, u64::from_le_bytes(value));
        }
    }

    /// The device's own words.
    pub fn device(&self) -> [u64; DEVICE_WORDS] {
        std::array::from_fn(|word| self.words.load(DEVICE + word))
    }

    /// Stores one of them.
    pub fn set_device(&self, word: usize, value: u64) {
        assert!(word < DEVICE_WORDS, "a device has {DEVICE_WORDS} words for itself");
        self.words.store(DEVICE + word, value);
    }
}

fn length(config: &[u8]) -> u16 {
    u16::try_from(config.len()).expect("at most 256 bytes")
}
