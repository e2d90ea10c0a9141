//! A request to a disk, where its parts lie, and how it ended (virtio 1.2, 5.2.6).

use super::arena::{CANARY_BYTE, READABLE, WRITABLE, put8, put32, put64};
use super::outcome::{Fault, Outcome, equal, holds};
use super::queue::{Buffer, chain};
use super::target::Target;
use super::works::SECTOR;
use crate::memory::{read8, read32, read64};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
pub const OK: u8 = 0;
pub const FAILED: u8 = 1;
pub const UNSUPPORTED: u8 = 2;
pub const WITHIN: &str = "virtio 1.2, 5.2.6.1 and 2.7.8.2: within the disk; no more is claimed than was written";
pub const WHOLE_SECTORS: &str = "virtio 1.2, 5.2.6.1: whole sectors";
pub const UNKNOWN: &str = "virtio 1.2, 5.2.6.2: VIRTIO_BLK_S_UNSUPP";
pub const ANY_LAYOUT: &str = "virtio 1.2, 2.7.4.1: any framing";
pub const OPEN: &str = "left open: answered one way or the other";

pub const HEADER: u32 = 16;
/// The data of a read, and the status after it.
pub const DATA: u64 = WRITABLE;
pub const STATUS: u64 = WRITABLE + 0x2ff0;
/// The data of a write.
pub const SENT: u64 = READABLE + 0x200;
/// Sectors that the test expects to change, and what they are filled with.
pub const SCRATCH: u64 = 8;
pub const FILLING: u32 = 0x3c3c_3c3c;

/// How a request ended.
pub struct Answer {
    pub status: u8,
    pub length: u32,
}

pub fn begin(target: &mut Target) -> Outcome {
    target.start()?;
    data(FILLING);
    Ok(())
}

pub fn capacity(target: &Target) -> u64 {
    read64(target.config)
}

pub fn header(kind: u32, sector: u64) {
    put32(READABLE, kind);
    put32(READABLE + 4, 0);
    put64(READABLE + 8, sector);
}

/// Two sectors of this are what is written.
pub fn data(word: u32) {
    for at in (0..1024).step_by(8) {
        put64(SENT + at, u64::from(word) << 32 | u64::from(word));
    }
}

/// A request with a header before `data` and a status after it.
pub fn request(target: &mut Target, kind: u32, sector: u64, data: &[Buffer]) -> Result<Answer, Fault> {
    header(kind, sector);
    put8(STATUS, CANARY_BYTE);
    let mut buffers = [(READABLE, HEADER, false); 6];
    let count = data.len() + 2;
    buffers[1..count - 1].copy_from_slice(data);
    buffers[count - 1] = (STATUS, 1, true);
    for &(address, length, _) in buffers[..count].iter().filter(|buffer| buffer.2) {
        target.arena.offer(address, length.into());
    }
    let queue = target.queue();
    chain(queue.descriptors, 0, &buffers[..count]);
    queue.enter(0);
    queue.show();
    target.ring(0);
    let used = target.used(0)?;
    equal("used chain", used.head, 0u32)?;
    Ok(Answer { status: read8(STATUS), length: used.length })
}

/// The same; and what the device says it wrote, it wrote.
pub fn ask(target: &mut Target, kind: u32, sector: u64, data: &[Buffer]) -> Result<Answer, Fault> {
    for &(address, length, _) in
        data.iter().filter(|buffer| buffer.2 && buffer.0 < target.end_of_ram && buffer.1 <= 1024)
    {
        (address..address + u64::from(length)).for_each(|at| put8(at, CANARY_BYTE));
    }
    let answer = request(target, kind, sector, data)?;
    holds("a status", answer.status <= UNSUPPORTED)?;
    let mut claimed = u64::from(answer.length);
    let written = data.iter().filter(|buffer| buffer.2).map(|buffer| (buffer.0, u64::from(buffer.1)));
    for (address, length) in written {
        let here = claimed.min(length);
        let in_ram = address < target.end_of_ram && length <= 0x10_0000;
        holds("what is claimed to be written", here == 0 || in_ram)?;
        holds("what is claimed to be written", (address..address + here).all(|at| read8(at) != CANARY_BYTE))?;
        claimed -= here;
    }
    holds("no more is claimed than there is", claimed <= 1)?;
    Ok(answer)
}

/// The request fails, and claims nothing that it did not do.
pub fn fails(target: &mut Target, kind: u32, sector: u64, data: &[Buffer]) -> Outcome {
    equal("status", ask(target, kind, sector, data)?.status, FAILED)
}

/// A chain that reads sector 0 to [`DATA`].
pub fn reads(target: &mut Target, buffers: &[Buffer], status: u64) -> Outcome {
    target.request(0, 0, buffers);
    equal("used length", target.used(0)?.length, SECTOR + 1)?;
    equal("status", read8(status), OK)?;
    equal("first word", read32(DATA), 0x5eed_0000u32)?;
    equal("last word", read32(DATA + 508), 0x5eed_007fu32)
}

pub fn reads_pattern(target: &mut Target) -> Outcome {
    header(IN, 0);
    reads(target, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (STATUS, 1, true)], STATUS)
}

/// Fills sectors with a word.
pub fn fill(target: &mut Target, sector: u64, count: u64, word: u32) -> Outcome {
    data(word);
    for sector in sector..sector + count {
        let answer = ask(target, OUT, sector, &[(SENT, SECTOR, false)])?;
        equal("status of a write", answer.status, OK)?;
        equal("used length of a write", answer.length, 1u32)?;
    }
    Ok(())
}

/// A sector is full of this word.
pub fn holds_filling(target: &mut Target, sector: u64, word: u32) -> Outcome {
    equal("status of a read", ask(target, IN, sector, &[(DATA, SECTOR, true)])?.status, OK)?;
    for at in [0, 4, 252, 504, 508] {
        equal("content of a sector", read32(DATA + at), word)?;
    }
    Ok(())
}
