//! A device with one word that it keeps (1af4:10f4), while other processes come to serve it.

use crate::machine::Machine;
use crate::memory::{map, read32, write32};
use crate::pci::MEMORY;
use crate::serial::{decimal, line, received, text};
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x10f4;

/// Writes the word and reads it back, until a `q` comes by the console.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let Some((function, bar)) = machine.function(VENDOR, DEVICE).and_then(|found| Some((found, found.bar(0)?))) else {
        verdict.holds("word-device-found", false);
        return;
    };
    function.command(MEMORY, 0);
    map(bar.address(), bar.size);
    line("ready");
    let mut written = 0u32;
    while received() != Some(b'q') {
        written += 1;
        write32(bar.address(), written);
        for _ in 0..8 {
            let read = read32(bar.address());
            if read != written {
                verdict.equal("word-kept", u64::from(read), u64::from(written));
                return;
            }
        }
    }
    text("words ");
    decimal(u64::from(written));
    line("");
    verdict.holds("word-kept", true);
}
