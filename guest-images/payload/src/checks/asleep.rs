//! A physical disk that is put to sleep with its BAR decoded: nothing answers there. Where its process is not restarted the VMM takes the
//! device away; otherwise it wakes up again.

use crate::machine::Machine;
use crate::memory::{map, read32};
use crate::pci::{Function, ID, MEMORY, NOTHING, POWER};
use crate::verdict::Verdict;

/// QEMU's NVMe controller.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0010;
/// The version of NVM Express that a controller has (NVM Express Base 1.4, section 3.1.2).
const VERSION: u64 = 0x08;
/// The control register of the power management capability, and its state of deep sleep (PCI Power Management 1.2, section 3.2.4).
const CONTROL: u16 = 4;
const D3: u16 = 3;

pub fn is_lost(machine: &Machine, verdict: &mut Verdict) {
    let Some((function, ..)) = sleep(machine, verdict) else { return };
    verdict.equal("asleep-gone", u64::from(function.read32(ID)), u64::from(NOTHING));
}

pub fn wakes(machine: &Machine, verdict: &mut Verdict) {
    let Some((function, version, control)) = sleep(machine, verdict) else { return };
    verdict.equal("asleep-there", u64::from(function.read32(ID)), u64::from(DEVICE) << 16 | u64::from(VENDOR));
    function.write16(control, function.read16(control) & !D3);
    verdict.holds("asleep-woken", matches!(read32(version) >> 16, 1 | 2));
}

/// Puts it to sleep, and finds that nothing answers. The disk, its version register, and the register by which it wakes up.
fn sleep(machine: &Machine, verdict: &mut Verdict) -> Option<(Function, u64, u16)> {
    let found = machine
        .function(VENDOR, DEVICE)
        .and_then(|function| Some((function, function.bar(0)?, function.capabilities(POWER).next()?)));
    verdict.holds("asleep-found", found.is_some());
    let (function, bar, capability) = found?;
    map(bar.address(), bar.size);
    let version = bar.address() + VERSION;
    function.command(MEMORY, 0);
    verdict.holds("asleep-awake", matches!(read32(version) >> 16, 1 | 2));
    let control = capability + CONTROL;
    function.write16(control, function.read16(control) | D3);
    verdict.equal("asleep-nothing-answers", u64::from(read32(version)), u64::from(NOTHING));
    Some((function, version, control))
}
