//! The device under attack, and the ordinary steps of its driver that an attack begins with or bends: reset, negotiation, queues,
//! requests.

use super::arena::Arena;
use super::outcome::{Fault, Outcome, equal, holds, pause, perhaps, soon};
use super::queue::{Buffer, Queue, Used, chain};
use super::random::Random;
use crate::interrupts::fired;
use crate::memory::{map, read8, read16, read32, write8, write16, write32, write64};
use crate::msix::Msix;
use crate::pci::{BAR0, BUS_MASTER, COMMAND, Function, MEMORY};
use crate::virtio::{
    ACKNOWLEDGE, COMMON, CONFIG_VECTOR, DEVICE, DRIVER, DRIVER_FEATURE_SELECT, DRIVER_FEATURES, DRIVER_OK,
    FEATURE_SELECT, FEATURES, FEATURES_OK, ISR, NEEDS_RESET, NOTIFY, QUEUE_DESCRIPTORS, QUEUE_ENABLE,
    QUEUE_NOTIFY_OFFSET, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUES, STATUS, Structure,
};

/// Device vectors that the table entries are pointed to: entry 0, for the configuration, and all others, for queues.
pub const CONFIG_INTERRUPT: u8 = 5;
/// See above.
pub const QUEUE_INTERRUPT: u8 = 6;

/// Feature bits of the transport (virtio 1.2, 6).
pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
/// Interrupts and doorbells are asked for by index.
pub const EVENT_INDEX: u64 = 1 << 29;
/// No legacy interface.
pub const VERSION_1: u64 = 1 << 32;
/// A queue can be reset by itself.
pub const RING_RESET: u64 = 1 << 40;

/// The most queues that are used.
pub const MOST_QUEUES: usize = 5;

/// The kind of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk that can be written.
    Disk,
    /// A disk that cannot.
    ReadOnlyDisk,
    /// A network card.
    Card,
}

impl Kind {
    /// As it appears in the names of attacks.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::ReadOnlyDisk => "read-only-disk",
            Self::Card => "card",
        }
    }
}

/// The device, with what the firmware left in its BARs.
pub struct Target {
    /// Its function.
    pub function: Function,
    /// Another function with BARs, to collide with.
    pub other: Option<Function>,
    /// Its kind.
    pub kind: Kind,
    /// It reaches memory by messages only: what the guest forbids, the VMM can prevent.
    pub messages: bool,
    /// Where RAM ends.
    pub end_of_ram: u64,
    /// Physical address of the registers' BAR.
    pub registers: u64,
    /// Of the common configuration structure.
    pub common: u64,
    /// Of the interrupt status.
    pub isr: u64,
    /// Of the device's own configuration.
    pub config: u64,
    /// Of the first doorbell.
    pub doorbells: u64,
    /// Bytes from one doorbell to the next.
    pub doorbell_stride: u64,
    /// Its vectors.
    pub msix: Msix,
    /// Guarded memory.
    pub arena: Arena,
    /// Its queues, as far as they are used.
    pub queues: [Queue; MOST_QUEUES],
    /// For attacks that are not the same each time.
    pub random: Random,
    bars: [u32; 6],
    config_interrupts: u32,
}

impl Target {
    /// The device in `function`, its BARs where they are now.
    pub fn new(function: Function, kind: Kind) -> Option<Self> {
        let msix = Msix::of(function)?;
        let place = |structure: Structure| {
            let bar = function.bar(structure.bar).filter(|bar| !bar.io)?;
            map(bar.address(), bar.size);
            Some(bar.address() + structure.offset)
        };
        let find = |kind| Structure::find(function, kind).and_then(place);
        let notify = Structure::find(function, NOTIFY)?;
        Some(Self {
            function,
            other: None,
            kind,
            messages: false,
            end_of_ram: 0,
            registers: function.bar(notify.bar)?.address(),
            common: find(COMMON)?,
            isr: find(ISR)?,
            config: find(DEVICE)?,
            doorbells: place(notify)?,
            doorbell_stride: function.read32(notify.capability + 16).into(),
            msix,
            arena: Arena::new(),
            queues: core::array::from_fn(|index| Queue::small(u16::try_from(index).unwrap_or(0))),
            random: Random::new(0),
            bars: core::array::from_fn(|index| function.read32(BAR0 + 4 * u16::try_from(index).unwrap_or(0))),
            config_interrupts: 0,
        })
    }

    // ---- Steps of a driver.

    /// BARs where they were, decoding and bus mastering on, vectors routed and open: what an attack may have changed outside of the
    /// device's own registers.
    pub fn come_home(&self) {
        let registers = (BAR0..).step_by(4).zip(self.bars);
        if registers.clone().any(|(register, value)| self.function.read32(register) != value) {
            self.function.command(0, MEMORY);
            registers.for_each(|(register, value)| self.function.write32(register, value));
        }
        if self.function.read16(COMMAND) != MEMORY | BUS_MASTER {
            self.function.write16(COMMAND, MEMORY | BUS_MASTER);
        }
        self.msix.switch_on();
        for entry in 0..self.msix.vectors {
            self.msix.open(entry, if entry == 0 { CONFIG_INTERRUPT } else { QUEUE_INTERRUPT });
        }
    }

    /// Resets the device; in the order of 3.1.1 the first step.
    pub fn reset(&self) -> Outcome {
        write8(self.common + STATUS, 0);
        equal("status after a reset", if soon(|| self.status() == 0) { 0 } else { self.status() }, 0u8)
    }

    /// A reset device and clean memory.
    pub fn begin(&mut self) -> Outcome {
        self.come_home();
        self.reset()?;
        self.arena.clear();
        for (index, queue) in (0..).zip(&mut self.queues) {
            *queue = Queue::small(index);
            queue.clear();
        }
        Ok(())
    }

    /// Everything an attack may start from but the queues: a reset device that has agreed on `features`.
    pub fn negotiate(&mut self, features: u64) -> Outcome {
        self.begin()?;
        write8(self.common + STATUS, ACKNOWLEDGE | DRIVER);
        self.accept(features);
        write8(self.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        equal("status after FEATURES_OK", self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
        write16(self.common + CONFIG_VECTOR, 0);
        Ok(())
    }

    /// Writes the features that the driver accepts.
    pub fn accept(&self, features: u64) {
        for (word, accepted) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            write32(self.common + DRIVER_FEATURE_SELECT, word);
            write32(self.common + DRIVER_FEATURES, u32::try_from(accepted).unwrap_or(0));
        }
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let word = |select| {
            write32(self.common + FEATURE_SELECT, select);
            u64::from(read32(self.common + FEATURES))
        };
        word(0) | word(1) << 32
    }

    /// The features that an attack negotiates unless it is about them: all that are offered but the other way of notification, and packets
    /// that take several buffers or are larger than the wire's.
    pub fn features(&self) -> u64 {
        let lasting = match self.kind {
            Kind::Card => 1 << 5 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 22,
            _ => 1 << 5 | 1 << 9 | 1 << 13 | 1 << 14,
        };
        self.offered() & (lasting | INDIRECT_DESCRIPTORS | VERSION_1 | RING_RESET)
    }

    /// How many queues the device has, as far as they are used.
    pub fn count(&self) -> u16 {
        read16(self.common + QUEUES).min(5)
    }

    /// Writes a queue's registers, all but the enable bit.
    pub fn configure(&mut self, queue: Queue) {
        queue.clear();
        self.program(queue);
    }

    /// The same with memory that is not the driver's to clear.
    pub fn program(&mut self, queue: Queue) {
        write16(self.common + QUEUE_SELECT, queue.index);
        write16(self.common + QUEUE_SIZE, queue.size);
        write16(self.common + QUEUE_VECTOR, 1);
        for (register, address) in [queue.descriptors, queue.available, queue.used].into_iter().enumerate() {
            write64(self.common + QUEUE_DESCRIPTORS + register as u64 * 8, address);
        }
        self.arena.offer(queue.used, queue.used_size());
        self.queues[usize::from(queue.index)] = queue;
    }

    /// Enables the selected queue.
    pub fn enable(&self) {
        write16(self.common + QUEUE_ENABLE, 1);
    }

    /// Sets DRIVER_OK.
    pub fn ready(&mut self) {
        self.config_interrupts = fired(CONFIG_INTERRUPT);
        write8(self.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// A device that works, with these features.
    pub fn start_with(&mut self, features: u64) -> Outcome {
        self.negotiate(features)?;
        for index in 0..self.count() {
            self.configure(Queue::small(index));
            self.enable();
        }
        self.ready();
        equal("status after DRIVER_OK", self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    }

    /// A device that works.
    pub fn start(&mut self) -> Outcome {
        self.come_home();
        let features = self.features();
        self.start_with(features)
    }

    /// A device that works, and whose queue under attack has 256 entries.
    pub fn start_large(&mut self) -> Outcome {
        let features = self.features();
        self.start_one(features, Queue::large(self.main()))
    }

    /// A device whose only queue is `queue`, where that says.
    pub fn start_one(&mut self, features: u64, queue: Queue) -> Outcome {
        self.negotiate(features)?;
        self.configure(queue);
        self.enable();
        self.ready();
        Ok(())
    }

    // ---- Requests.

    /// The queue that is attacked where it doesn't matter which: a disk's first, a card's first for sending.
    pub fn main(&self) -> u16 {
        u16::from(self.kind == Kind::Card)
    }

    /// That queue.
    pub fn queue(&mut self) -> &mut Queue {
        let index = usize::from(self.main());
        &mut self.queues[index]
    }

    /// Rings a queue's doorbell.
    pub fn ring(&self, queue: u16) {
        write16(self.doorbell(queue), queue);
    }

    /// Where that is.
    pub fn doorbell(&self, queue: u16) -> u64 {
        write16(self.common + QUEUE_SELECT, queue);
        self.doorbells + u64::from(read16(self.common + QUEUE_NOTIFY_OFFSET)) * self.doorbell_stride
    }

    /// Makes `head` available in the queue under attack, and rings.
    pub fn submit(&mut self, head: u16) {
        let queue = self.queue();
        queue.enter(head);
        queue.show();
        self.ring(self.main());
    }

    /// Makes a chain of `buffers` available in `queue`, from its entry `first` on, and rings.
    pub fn request(&mut self, queue: u16, first: u16, buffers: &[Buffer]) {
        self.prepare(queue, first, buffers);
        self.queues[usize::from(queue)].show();
        self.ring(queue);
    }

    /// The same without telling the device.
    pub fn prepare(&mut self, queue: u16, first: u16, buffers: &[Buffer]) {
        for &(address, length, _) in buffers.iter().filter(|buffer| buffer.2) {
            self.arena.offer(address, length.into());
        }
        let queue = &mut self.queues[usize::from(queue)];
        chain(queue.descriptors, first, buffers);
        queue.enter(first);
    }

    /// Makes a chain available in the queue under attack, and does not ring.
    pub fn request_unseen(&mut self, buffers: &[Buffer]) {
        self.prepare(self.main(), 0, buffers);
        self.queue().show();
    }

    /// Waits for the next used chain of `queue`.
    pub fn used(&mut self, queue: u16) -> Result<Used, Fault> {
        let queue = &mut self.queues[usize::from(queue)];
        holds("a chain is used", soon(|| queue.unseen() > 0))?;
        Ok(queue.look())
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        read8(self.common + STATUS)
    }

    /// Whether the device has given up.
    pub fn needs_reset(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    /// Waits until the device wants to be rung for what comes next in the queue under attack: until then it may look by itself.
    pub fn is_idle(&mut self) -> Outcome {
        let used = self.queue().used;
        holds("a doorbell is wanted", soon(|| read16(used) == 0))?;
        pause();
        Ok(())
    }

    // ---- What an attack may come to.

    /// The device says that it needs a reset, by status and interrupt, and uses nothing (2.1.2).
    pub fn is_refused(&mut self) -> Outcome {
        holds("the device needs a reset", soon(|| self.needs_reset()))?;
        let before = self.config_interrupts;
        holds("a configuration interrupt tells of it", soon(|| fired(CONFIG_INTERRUPT) != before))?;
        let unseen = self.queues.iter().map(|queue| u64::from(queue.unseen())).sum::<u64>();
        equal("chains used", unseen, 0u64)
    }

    /// Either the device needs a reset, or `head` is used; whatever the specification leaves open has to be one of the two.
    pub fn is_answered(&mut self) -> Outcome {
        let main = usize::from(self.main());
        holds("an answer", soon(|| self.queues[main].unseen() > 0 || self.needs_reset()))
    }

    /// Nothing at all: no used chain, and the device does not give up.
    pub fn is_ignored(&mut self) -> Outcome {
        pause();
        let unseen = self.queues.iter().map(|queue| u64::from(queue.unseen())).sum::<u64>();
        equal("chains used", unseen, 0u64)?;
        holds("the device goes on", !self.needs_reset())
    }

    /// Any result within a moment is right.
    pub fn is_left_open(&mut self) -> Outcome {
        let main = usize::from(self.main());
        perhaps(|| self.queues[main].unseen() > 0 || self.needs_reset());
        Ok(())
    }
}
