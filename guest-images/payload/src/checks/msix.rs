//! MSI-X: vectors arrive, masks hold them back, pending bits show it, and unmasking lets them through once.

use crate::apic;
use crate::interrupts::{FIRST_VECTOR, fired, settle, wait};
use crate::machine::Machine;
use crate::msix::Msix;
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, VENDOR};
use crate::virtio_blk::VirtioBlk;
use crate::virtqueue;

/// Windows in which something that must come may come; what must not come gets fewer.
const PATIENCE: u32 = 200_000;
const QUIET: u32 = 200;
const READ: u32 = 0;
/// The table entry used, and the device vectors it is pointed to.
const ENTRY: u16 = 0;
const FIRST: u8 = 0;
const SECOND: u8 = 1;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some(function) = machine.function(VENDOR, BLOCK) else {
        verdict.holds("msix-device-found", false);
        return;
    };
    let Some(msix) = Msix::of(function) else {
        verdict.holds("msix-capability", false);
        return;
    };
    verdict.equal("msix-starts-masked", u64::from(msix.read(ENTRY)[3]), 1);
    verdict.equal("msix-last-starts-masked", u64::from(msix.read(msix.vectors - 1)[3]), 1);
    msix.control(true, false);
    msix.route(ENTRY, FIRST);
    let [address, upper, data, control] = msix.read(ENTRY).map(u64::from);
    verdict.equal("msix-table-keeps-address", upper << 32 | address, 0xfee0_0000 | u64::from(apic::id()) << 12);
    verdict.equal("msix-table-keeps-data", control << 32 | data, 1 << 32 | u64::from(FIRST_VECTOR + FIRST));
    let blk = match VirtioBlk::start(function, ENTRY) {
        Ok(blk) => blk,
        Err(refused) => {
            verdict.equal(refused.0, refused.1, 0);
            return;
        }
    };

    held_back(&blk, &msix, "msix-vector-mask", verdict);
    let before = fired(FIRST);
    msix.mask(ENTRY, false);
    arrives_once(FIRST, before, "msix-vector-unmask", verdict);
    verdict.holds("msix-pending-cleared", !msix.pending(ENTRY));

    let before = fired(FIRST);
    blk.request(READ, 0);
    arrives_once(FIRST, before, "msix-unmasked", verdict);
    verdict.holds("msix-not-pending", !msix.pending(ENTRY));

    msix.control(true, true);
    held_back(&blk, &msix, "msix-function-mask", verdict);
    let before = fired(FIRST);
    msix.control(true, false);
    arrives_once(FIRST, before, "msix-function-unmask", verdict);

    msix.mask(ENTRY, true);
    msix.route(ENTRY, SECOND);
    held_back(&blk, &msix, "msix-masked-again", verdict);
    let before = [fired(FIRST), fired(SECOND)];
    msix.mask(ENTRY, false);
    arrives_once(SECOND, before[1], "msix-rerouted", verdict);
    verdict.equal("msix-old-route-quiet", u64::from(fired(FIRST)), u64::from(before[0]));
    verdict.holds("msix-device-resets", blk.reset());
    msix.mask(ENTRY, true);
    msix.control(false, false);
}

/// A request completes while the vector is masked: its pending bit is set and nothing arrives.
fn held_back(blk: &VirtioBlk, msix: &Msix, name: &str, verdict: &mut Verdict) {
    let before = fired(FIRST) + fired(SECOND);
    blk.request(READ, 0);
    wait(PATIENCE, virtqueue::idle);
    let pending = wait(PATIENCE / 10, || msix.pending(ENTRY));
    settle(QUIET);
    let quiet = fired(FIRST) + fired(SECOND) == before;
    verdict.equal(name, u64::from(virtqueue::idle()) << 2 | u64::from(pending) << 1 | u64::from(quiet), 7);
}

fn arrives_once(index: u8, before: u32, name: &str, verdict: &mut Verdict) {
    wait(PATIENCE, || fired(index) != before);
    settle(QUIET);
    verdict.equal(name, u64::from(fired(index).wrapping_sub(before)), 1);
}
