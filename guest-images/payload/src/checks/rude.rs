//! A driver that uses everything of a rude device (`tests/src/bin/rude-device`) again and again, and beside it one that uses a disk all
//! the time, on a processor of its own. The host chooses when it is enough, and tells by the console.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::interrupts::{fired, settle, wait};
use crate::ioapic;
use crate::machine::Machine;
use crate::memory::{read32, write32};
use crate::msix::Msix;
use crate::pci::{BUS_MASTER, Function, MEMORY, NOTHING};
use crate::second::{Second, ticks};
use crate::serial::{decimal, line, received, text};
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, VENDOR};
use crate::virtio_blk::VirtioBlk;
use crate::virtqueue;

/// 1af4:10f3.
const ID: u32 = 0x10f3_1af4;
const INTERRUPT_LINE: u16 = 0x3c;
const INTX_DISABLE: u16 = 1 << 10;

/// Registers of BAR 0.
const VALUE: u64 = 0x00;
const RAISE: u64 = 0x10;
const MAPPED: u64 = 0x1000;
const IOREGION: u64 = 0x2000;

const DISK_ENTRY: u16 = 0;
/// The highest vector is delivered first (Intel SDM volume 3A, "Interrupt, Task, and Processor Priority"). Were it a rude device's, a storm of
/// its interrupts, of which an interpreted processor takes a few hundred a second, would keep the disk's waiting for as long as it lasts.
const DISK_VECTOR: u8 = 4;
const RUDE_VECTOR: u8 = 3;
const PIN_VECTOR: u8 = 2;
const MOST: usize = 8;
const ROUNDS: u32 = 60_000_000;
/// Ticks of the time-stamp counter, a few milliseconds: what a processor that runs does not take from one look at it to the next.
const STANDS_STILL: u64 = 10_000_000;
/// Rounds between two looks at the parts of the disk that the VMM has a hand in.
const EVERY: u32 = 16;

/// Until the console says so: rude devices are used by the second processor, if there is one, and the disk by the first, if there
/// is one. The longest that one request took is printed as `longest TICKS`, with the number of requests.
pub fn rude(machine: &Machine, verdict: &mut Verdict) {
    use_all(machine, true, verdict);
}

/// The same with a disk that may lose its interrupts.
pub fn rude_polled(machine: &Machine, verdict: &mut Verdict) {
    use_all(machine, false, verdict);
}

fn use_all(machine: &Machine, interrupts: bool, verdict: &mut Verdict) {
    let mut devices = [const { None }; MOST];
    for (device, function) in devices.iter_mut().zip(machine.functions().filter(|function| function.id() == ID)) {
        *device = Device::new(function);
    }
    let disk = machine.function(VENDOR, BLOCK);
    let Some((function, second)) = disk.zip(Second::start()) else {
        line("ready");
        while received().is_none() {
            wait(64, || false);
            devices.iter().flatten().for_each(Device::use_once);
        }
        verdict.holds("rude", true);
        return;
    };
    let Some(disk) = Disk::start(function, interrupts, verdict) else { return };
    // It may wait for a device for longer than this guest is of interest.
    let mut theirs = || loop {
        devices.iter().flatten().for_each(Device::use_once);
    };
    let all = second.during(&mut theirs, || {
        line("ready");
        (0..ROUNDS).take_while(|_| received().is_none()).all(|round| disk.request(round))
    });
    verdict.holds("rude-all-requests-complete", all);
    text("requests ");
    decimal(disk.requests.load(Ordering::Relaxed));
    text(" longest ");
    decimal(disk.longest.load(Ordering::Relaxed));
    line(" ticks");
}

/// Reads the device's registers until it is dead, and counts the interrupts that come after that.
pub fn quiet_when_dead(machine: &Machine, verdict: &mut Verdict) {
    let Some(device) = machine.functions().find(|function| function.id() == ID).and_then(Device::new) else {
        verdict.holds("quiet-device-found", false);
        return;
    };
    line("ready");
    device.use_once();
    verdict.holds("quiet-dead", (0..ROUNDS).any(|_| device.function.id() == NOTHING));
    // Interrupts that were on their way when the device died.
    settle(20_000);
    let before = [RUDE_VECTOR, PIN_VECTOR].map(fired);
    settle(200_000);
    let after = [RUDE_VECTOR, PIN_VECTOR].map(fired);
    verdict.equal("quiet-when-dead", u64::from(after[0] - before[0] + after[1] - before[1]), 0);
}

/// Puts BAR 0 of the first rude device onto configuration space, and switches memory decoding on and off until the console says so.
pub fn ecam_toggle(machine: &Machine, verdict: &mut Verdict) {
    let function = machine.functions().find(|function| function.id() == ID);
    let Some((function, (base, ..))) = function.zip(machine.tables.ecam) else {
        verdict.holds("ecam-device-found", false);
        return;
    };
    function.command(0, MEMORY);
    function.write32(crate::pci::BAR0, u32::try_from(base).unwrap_or(0));
    line("ready");
    while received().is_none() {
        function.command(MEMORY, 0);
        function.command(0, MEMORY);
    }
    verdict.holds("ecam-toggle", true);
}

struct Device {
    function: Function,
    registers: u64,
    msix: Option<Msix>,
}

fn vectors(msix: &Msix) -> u16 {
    msix.vectors.min(4)
}

impl Device {
    fn new(function: Function) -> Option<Self> {
        let bar = function.bar(0)?;
        function.command(MEMORY | BUS_MASTER, 0);
        crate::memory::map(bar.address(), bar.size.min(1 << 21));
        ioapic::route(function.read8(INTERRUPT_LINE), PIN_VECTOR);
        let msix = Msix::of(function);
        for entry in 0..msix.as_ref().map_or(0, vectors) {
            msix.iter().for_each(|msix| msix.route(entry, RUDE_VECTOR));
        }
        Some(Self { function, registers: bar.address(), msix })
    }

    /// All that a driver does, on any processor: by all paths, with interrupts of both kinds, with the BAR on and off.
    fn use_once(&self) {
        self.function.command(MEMORY | BUS_MASTER, INTX_DISABLE);
        for page in [VALUE, MAPPED, IOREGION] {
            write32(self.registers + page, 1);
            read32(self.registers + page);
        }
        write32(self.registers + RAISE, 1);
        read32(self.registers + VALUE);
        if let Some(msix) = &self.msix {
            msix.control(true, false);
            (0..vectors(msix)).for_each(|entry| msix.mask(entry, false));
            write32(self.registers + RAISE, 1);
            read32(self.registers + VALUE);
            for entry in 0..vectors(msix) {
                msix.mask(entry, true);
                msix.pending(entry);
                msix.mask(entry, false);
            }
            msix.control(false, false);
        }
        self.function.command(0, MEMORY);
        self.function.command(MEMORY, 0);
    }
}

struct Disk {
    blk: VirtioBlk,
    msix: Msix,
    function: Function,
    /// Whether a request is only over when its interrupt has come.
    interrupts: bool,
    requests: AtomicU64,
    longest: AtomicU64,
}

impl Disk {
    fn start(function: Function, interrupts: bool, verdict: &mut Verdict) -> Option<Self> {
        let msix = Msix::of(function)?;
        msix.control(true, false);
        msix.route(DISK_ENTRY, DISK_VECTOR);
        msix.mask(DISK_ENTRY, false);
        match VirtioBlk::start(function, DISK_ENTRY) {
            Ok(blk) => {
                let (requests, longest) = (AtomicU64::new(0), AtomicU64::new(0));
                Some(Self { blk, msix, function, interrupts, requests, longest })
            }
            Err(refused) => {
                verdict.equal(refused.0, refused.1, 0);
                None
            }
        }
    }

    /// One request with its interrupt, and now and then accesses that the VMM passes on to the disk: the clock counts both. Not so what
    /// the VMM asks of KVM for an interrupt that is switched on or off, which takes KVM longer where it interprets ring-0 code.
    fn request(&self, round: u32) -> bool {
        if round.is_multiple_of(EVERY) {
            self.msix.mask(DISK_ENTRY, true);
            self.msix.control(false, false);
            self.msix.control(true, false);
            self.msix.mask(DISK_ENTRY, false);
        }
        let (start, before) = (ticks(), fired(DISK_VECTOR));
        if round.is_multiple_of(EVERY) {
            self.function.id();
            self.blk.capacity();
        }
        self.blk.request(round & 1, 2 + u64::from(round / 2 % 64));
        // From here on the guest runs until the interrupt comes. A processor that stands still meanwhile is its host's doing, which has
        // others to serve as well.
        let (mut time, mut last) = (ticks().saturating_sub(start), ticks());
        let done = wait(ROUNDS, || {
            let now = ticks();
            time += now.saturating_sub(last).min(STANDS_STILL);
            last = now;
            virtqueue::idle() && (!self.interrupts || fired(DISK_VECTOR) != before)
        });
        self.longest.fetch_max(time, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        done && virtqueue::status() == 0
    }
}
