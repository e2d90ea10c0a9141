//! A device whose registers are I/O ports (`tests/src/bin/port-registers.rs`): the first half of them is offered as an ioregionfd.

use crate::machine::Machine;
use crate::pci::IO;
use crate::port::{read8, read16, read32, write8, write16, write32};
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1af4;
const PORTS: u16 = 0x10f2;

/// The half that goes by message starts here.
const HALF: u16 = 0x10;
/// Tells by which path it was asked.
const PATH: u16 = 4;
const BY_IOREGIONFD: u64 = 0x0f0f;
const BY_MESSAGE: u64 = 0x3e3e;
const ALL_ONES: u64 = 0xffff_ffff;
const ELSEWHERE: u16 = 0xc000;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let device = machine.function(VENDOR, PORTS);
    let Some((function, bar)) = device.and_then(|function| Some((function, function.bar(0)?))) else {
        verdict.holds("ports-found", false);
        return;
    };
    verdict.holds("ports-bar", bar.io);
    function.command(IO, 0);
    let port = u16::try_from(bar.address()).unwrap_or(0);
    for (half, path) in [(port, u64::from(read32(port + PATH))), (port + HALF, BY_MESSAGE)] {
        // Which of the two it is depends on what is allowed; what is not, is checked from outside.
        verdict.holds("ports-path-known", path == BY_IOREGIONFD || path == BY_MESSAGE);
        verdict.equal("ports-path", u64::from(read32(half + PATH)), path);
        write32(half, 0x1234_5678);
        verdict.equal("ports-double-word", u64::from(read32(half)), 0x1234_5678);
        verdict.equal("ports-part", u64::from(read16(half)), 0x5678);
        write16(half, 0xbeef);
        verdict.equal("ports-word", u64::from(read32(half)), 0xbeef);
        write8(half, 0xa5);
        verdict.equal("ports-byte", u64::from(read8(half)), 0xa5);
    }
    let path = read32(port + PATH);
    bar.move_to(ELSEWHERE.into());
    let both = |at: u16| [read32(at), read32(at + HALF)].map(u64::from);
    verdict.holds("ports-moved", both(ELSEWHERE) == [0xa5; 2] && read32(ELSEWHERE + PATH) == path);
    verdict.holds("ports-old-place-empty", both(port) == [ALL_ONES; 2]);
    function.command(0, IO);
    verdict.holds("ports-disabled", both(ELSEWHERE) == [ALL_ONES; 2]);
    function.command(IO, 0);
    verdict.holds("ports-enabled-again", both(ELSEWHERE) == [0xa5; 2]);
}
