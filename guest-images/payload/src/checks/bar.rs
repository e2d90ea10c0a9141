//! BARs of the virtio block device move to another place in the window they are in, and can be switched off.

use crate::machine::Machine;
use crate::memory::{map, read32, write32};
use crate::msix::Msix;
use crate::pci::{Bar, Function, MEMORY};
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, VENDOR};
use crate::virtio_blk::{SCRATCH, VirtioBlk};

const FOUR_GIB: u64 = 4 << 30;
/// Where the I/O APIC and what follows it end the window below 4 GiB.
const END_OF_LOW_WINDOW: u64 = 0xfec0_0000;
const PATTERN: u32 = 0x0000_0001;
const ALL_ONES: u64 = 0xffff_ffff;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some(function) = machine.function(VENDOR, BLOCK) else {
        verdict.holds("bar-device-found", false);
        return;
    };
    function.command(MEMORY, 0);
    for (bar, offset) in function.bars().filter_map(|bar| Some((bar, register_in(function, &bar)?))) {
        let before = bar.address();
        map(before, bar.size);
        verdict.equal("bar-size-aligned", before & (bar.size - 1), 0);
        write32(before + offset, PATTERN);
        verdict.equal("bar-answers", u64::from(read32(before + offset)), u64::from(PATTERN));

        let Some(after) = other_place(machine, &bar) else {
            verdict.holds("bar-other-place", false);
            continue;
        };
        bar.move_to(after);
        verdict.equal("bar-moved", bar.address(), after);
        verdict.equal("bar-answers-at-new-place", u64::from(read32(after + offset)), u64::from(PATTERN));
        verdict.equal("bar-old-place-empty", u64::from(read32(before + offset)), ALL_ONES);
        write32(before + offset, 0);
        verdict.equal("bar-old-place-ignores-writes", u64::from(read32(after + offset)), u64::from(PATTERN));

        function.command(0, MEMORY);
        verdict.equal("bar-disabled", u64::from(read32(after + offset)), ALL_ONES);
        function.command(MEMORY, 0);
        verdict.equal("bar-enabled-again", u64::from(read32(after + offset)), u64::from(PATTERN));
    }
}

/// Offset of a register in this BAR that keeps what is written to it.
fn register_in(function: Function, bar: &Bar) -> Option<u64> {
    let common = VirtioBlk::common(function).filter(|common| common.bar == bar.index);
    let table = Msix::of(function).map(|msix| msix.table_place).filter(|table| table.0 == bar.index);
    // The data word of the first table entry.
    common.map(|common| common.offset + SCRATCH).or(table.map(|(_, offset)| offset + 8))
}

/// A free, aligned place in the window that the firmware put this BAR in: above the highest BAR there, or below the lowest.
pub fn other_place(machine: &Machine, bar: &Bar) -> Option<u64> {
    let high = bar.address() >= FOUR_GIB;
    let (mut lowest, mut end) = (u64::MAX, 0);
    for other in machine.functions().flat_map(Function::bars).filter(|other| !other.io) {
        let address = other.address();
        if address != 0 && (address >= FOUR_GIB) == high {
            lowest = lowest.min(address);
            end = end.max(address + other.size);
        }
    }
    let above = end.next_multiple_of(bar.size);
    if high || above + bar.size <= END_OF_LOW_WINDOW {
        return Some(above);
    }
    lowest.checked_sub(bar.size).map(|below| below & !(bar.size - 1))
}
