//! A physical disk that is put to sleep with its BAR decoded: nothing answers there, and the VMM takes the device away.

use crate::machine::Machine;
use crate::memory::{map, read32};
use crate::pci::{ID, MEMORY, NOTHING, POWER};
use crate::verdict::Verdict;

/// QEMU's NVMe controller.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0010;
/// The version of NVM Express that a controller has (NVM Express Base 1.4, section 3.1.2).
const VERSION: u64 = 0x08;
/// The control register of the power management capability, and its state of deep sleep (PCI Power Management 1.2, section 3.2.4).
const CONTROL: u16 = 4;
const D3: u16 = 3;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let found = machine
        .function(VENDOR, DEVICE)
        .and_then(|function| Some((function, function.bar(0)?, function.capabilities(POWER).next()?)));
    verdict.holds("asleep-found", found.is_some());
    let Some((function, bar, capability)) = found else { return };
    map(bar.address(), bar.size);
    let version = bar.address() + VERSION;
    function.command(MEMORY, 0);
    verdict.holds("asleep-awake", matches!(read32(version) >> 16, 1 | 2));
    function.write16(capability + CONTROL, function.read16(capability + CONTROL) | D3);
    verdict.equal("asleep-nothing-answers", u64::from(read32(version)), u64::from(NOTHING));
    verdict.equal("asleep-gone", u64::from(function.read32(ID)), u64::from(NOTHING));
}
