//! Registers that a device process serves (`devices/examples/paths.rs`) while something goes wrong, or seems to. The
//! host chooses the moment, and reports it on the console.

use core::array::from_fn;
use core::sync::atomic::{AtomicBool, Ordering};

use super::paths::{ALL_ONES, PATIENCE, REGISTERS, SEQPACKET, STREAM, TICKET, VALUE, VALUES, WRITES, find};
use crate::machine::Machine;
use crate::memory::{read32, write32};
use crate::pci::MEMORY;
use crate::second::Second;
use crate::serial::{line, received};
use crate::verdict::Verdict;

/// As `end::PATIENCE`.
const MINUTE: u32 = 60_000_000;

/// Until the console says so: what is written by each path is read there, each write is done once, and each read.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let Some((_, bar)) = find(machine) else {
        verdict.holds("steady-device-found", false);
        return;
    };
    let page = |index: usize| bar.address() + REGISTERS[index].1;
    let before: [u32; REGISTERS.len()] = from_fn(|index| read32(page(index) + WRITES));
    let mut ticket = read32(page(0) + TICKET);
    line("ready");
    let wrong = (1..MINUTE).take_while(|_| received().is_none()).find_map(|time| {
        let wrong = |index: &usize| {
            write32(page(*index) + VALUE, time);
            ticket = ticket.wrapping_add(1);
            read32(page(*index) + VALUE) != time
                || read32(page(*index) + WRITES).wrapping_sub(before[*index]) != time
                || read32(page(*index) + TICKET) != ticket
        };
        (0..REGISTERS.len()).find(wrong)
    });
    let name = wrong.map_or("steady", |index| REGISTERS[index].0);
    verdict.holds(name, wrong.is_none());
}

/// The first processor reads a register. The second disables the BAR when the console says so, and enables it when the
/// console says so again. An access that waits meanwhile gets its answer, later ones read all ones, and after enabling
/// all registers are there again.
pub fn disabled(machine: &Machine, verdict: &mut Verdict) {
    let Some(((function, bar), second)) = find(machine).zip(Second::start()) else {
        verdict.holds("disabled-device-and-second-processor-found", false);
        return;
    };
    let register = bar.address() + SEQPACKET;
    write32(register, 1);
    let enabled = AtomicBool::new(false);
    line("ready");
    // The console is the second processor's until it is done.
    let mut theirs = || {
        wait_for_console();
        function.command(0, MEMORY);
        line("disabled");
        wait_for_console();
        function.command(MEMORY, 0);
        enabled.store(true, Ordering::Release);
    };
    let last = second.beside(&mut theirs, || {
        let last = (0..MINUTE).map(|_| read32(register)).find(|&value| value != 1);
        // Each look is an exit: if ring-0 code is interpreted, the other processor goes on only then.
        let _ = (0..MINUTE).any(|_| enabled.load(Ordering::Acquire));
        last
    });
    verdict.equal("disabled", last.map_or(1, u64::from), u64::from(ALL_ONES));
    verdict.holds("disabled-enabled-again", enabled.load(Ordering::Acquire));
    verdict.equal("disabled-answers-after", u64::from(read32(register)), 1);
}

fn wait_for_console() {
    while received().is_none() {}
}

/// Reads registers that have a path of their own until the device is dead: everything reads as all ones from then on, and writes
/// vanish.
pub fn gone(machine: &Machine, verdict: &mut Verdict) {
    dies(machine, verdict);
}

/// The same, and a device that is dead stays so until the console says that it was long enough.
pub fn gone_for_good(machine: &Machine, verdict: &mut Verdict) {
    let Some(base) = dies(machine, verdict) else { return };
    line("gone");
    let mut times = (0..MINUTE).take_while(|_| received().is_none());
    verdict.holds("gone-for-good", times.all(|_| read32(base + STREAM) & read32(base + SEQPACKET) == ALL_ONES));
}

/// Where its registers were.
fn dies(machine: &Machine, verdict: &mut Verdict) -> Option<u64> {
    let Some((function, bar)) = find(machine) else {
        verdict.holds("gone-device-found", false);
        return None;
    };
    let base = bar.address();
    write32(base + SEQPACKET, 1);
    verdict.equal("gone-answers-before", u64::from(read32(base + SEQPACKET)), 1);
    line("ready");
    let read = |page: u64| read32(base + page) == ALL_ONES;
    verdict.holds("gone", (0..MINUTE).any(|_| read(SEQPACKET) || read(STREAM)));
    for page in VALUES {
        write32(base + page, 1);
        // The thread that withdraws the device may not have done it yet.
        let all_ones = (0..PATIENCE).any(|_| read32(base + page) == ALL_ONES);
        verdict.holds("gone-all-paths", all_ones);
    }
    verdict.holds("gone-configuration", (0..PATIENCE).any(|_| function.id() == ALL_ONES));
    Some(base)
}
