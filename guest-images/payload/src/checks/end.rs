//! Checks that end the guest, or wait to be ended.

use crate::machine::Machine;
use crate::memory::{map, read32, write32};
use crate::pci::MEMORY;
use crate::power;
use crate::serial::{line, received};
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, VENDOR};
use crate::virtio_blk::{SCRATCH, VirtioBlk};

const ALL_ONES: u32 = 0xffff_ffff;
/// A minute at least, at the microsecond and more that a register access costs.
const PATIENCE: u32 = 60_000_000;

/// Triple fault.
pub fn crash(_: &Machine, _: &mut Verdict) {
    line("crashing");
    power::crash()
}

/// Reset, with nothing wrong.
pub fn reboot(machine: &Machine, _: &mut Verdict) {
    line("rebooting");
    power::reset(&machine.tables)
}

/// Runs until somebody ends the VMM.
pub fn spin(_: &Machine, _: &mut Verdict) {
    line("ready");
    loop {
        core::hint::spin_loop();
    }
}

/// Waits for the word `go` on the console.
pub fn input(_: &Machine, verdict: &mut Verdict) {
    line("ready");
    let mut wanted = b"go".iter().peekable();
    for _ in 0..PATIENCE {
        if wanted.next_if(|&&byte| received() == Some(byte)).is_some() && wanted.peek().is_none() {
            break;
        }
    }
    verdict.holds("input", wanted.peek().is_none());
}

/// Reads a register of the block device until its process is dead: it reads as all ones from then on, in configuration space too,
/// and writes vanish.
pub fn all_ones(machine: &Machine, verdict: &mut Verdict) {
    let Some(function) = machine.function(VENDOR, BLOCK) else {
        verdict.holds("allones-device-found", false);
        return;
    };
    function.command(MEMORY, 0);
    let place = VirtioBlk::common(function).and_then(|common| Some((function.bar(common.bar)?, common.offset)));
    let Some((bar, offset)) = place else {
        verdict.holds("allones-register-found", false);
        return;
    };
    map(bar.address(), bar.size);
    let register = bar.address() + offset + SCRATCH;
    write32(register, 1);
    verdict.equal("allones-answers-before", u64::from(read32(register)), 1);
    line("ready");
    verdict.holds("allones", (0..PATIENCE).any(|_| read32(register) == ALL_ONES));
    write32(register, 1);
    verdict.equal("allones-writes-vanish", u64::from(read32(register)), u64::from(ALL_ONES));
}
