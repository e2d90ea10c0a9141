//! Two processors that access at the same time, synchronized at the start only. Each register is reached by one path
//! only, so it does not matter whether writes are waited for: a read by the path of a write comes after that write.

use core::sync::atomic::{AtomicBool, Ordering};

use super::rounds::{Count, MOST, Rounds, at_once, together};
use super::{Path, Seen, TICKET};
use crate::checks::paths::{VALUE, WRITES};
use crate::memory::{read32, write32};
use crate::second::{Second, wait_until};

/// Values of one byte, so that no reader meets half of one in mapped memory. The last comes when time is up.
const VALUES: u32 = 250;
const LAST: u32 = 255;
const RINGS: u32 = 500;
const EACH: u32 = 20;

/// Message passing by registers alone: one processor writes `data` and then `flag`, again and again; how often the other reads a newer
/// `flag` and then an older `data`.
pub fn flag_register(data: &Path, flag: &Path, second: &Second) -> Option<Seen> {
    if data.page == flag.page {
        return None;
    }
    let [of_data, of_flag] = clean([data, flag]);
    let mut wrong = 0;
    let follow = || {
        let finished = wait_until(|| {
            let seen = read32(of_flag);
            wrong += u32::from(read32(of_data) < seen);
            seen == LAST
        });
        wrong += u32::from(!finished);
    };
    let rounds = at_once(second, follow, || {
        let mut rounds = 0;
        for value in Rounds::up_to(VALUES) {
            write32(of_data, value);
            write32(of_flag, value);
            rounds = value;
        }
        write32(of_data, LAST);
        write32(of_flag, LAST);
        rounds
    });
    Some(Seen { count: Count { rounds, wrong }, promised: true })
}

/// Store buffering: each processor writes a register and reads the other's; how often both read what was there before. Each pair once.
pub fn both_write(one: &Path, other: &Path, second: &Second) -> Option<Seen> {
    static SAW: [[AtomicBool; MOST as usize]; 2] = [const { [const { AtomicBool::new(false) }; MOST as usize] }; 2];
    if one.page >= other.page {
        return None;
    }
    let registers = clean([one, other]);
    let mut count = together(second, |processor, round| {
        write32(registers[processor], round);
        let saw = read32(registers[1 - processor]) == round;
        SAW[processor][round as usize - 1].store(saw, Ordering::Relaxed);
    });
    let saw = |processor: usize, round: usize| SAW[processor][round].load(Ordering::Relaxed);
    let neither = (0..count.rounds as usize).filter(|round| !saw(0, *round) && !saw(1, *round));
    count.wrong += neither.map(|_| 1).sum::<u32>();
    Some(Seen { count, promised: true })
}

/// The registers of two pages, which are 0 then: a read waits for the posted writes of its path.
fn clean(pages: [&Path; 2]) -> [u64; 2] {
    let registers = pages.map(|path| path.page + VALUE);
    for register in registers {
        write32(register, 0);
        read32(register);
    }
    registers
}

/// Both processors read numbers of which each is given out once: wrong if there is one that neither got, or both, or later than a
/// higher one.
pub fn tickets(one: &Path, other: &Path, second: &Second) -> u32 {
    let draw = |register: u64| {
        let (mut sum, mut last, mut disorder) = (0, 0, 0);
        for _ in 0..EACH {
            let ticket = read32(register);
            disorder += u32::from(ticket <= last);
            last = ticket;
            sum += u64::from(ticket);
        }
        (sum, disorder)
    };
    let [ours, theirs] = [one, other].map(|path| path.page + TICKET);
    // Not the first, which is 0.
    read32(ours);
    let before = u64::from(read32(ours));
    let mut drawn = (0, 0);
    let (sum, disorder) = at_once(second, || drawn = draw(theirs), || draw(ours));
    let both = u64::from(EACH) * 2;
    let all_once =
        u64::from(read32(ours)) == before + both + 1 && sum + drawn.0 == both * before + both * (both + 1) / 2;
    disorder + drawn.1 + u32::from(!all_once)
}

/// Both processors write, and the device counts; wrong if the count is, or if what is there at last is not what was written last.
pub fn counts(one: &Path, other: &Path, second: &Second) -> u32 {
    let writes = || [one, other].map(|path| read32(path.page + WRITES));
    let write = |register: u64, processor: u32| (1..=EACH).for_each(|value| write32(register, value << 1 | processor));
    let before = writes();
    at_once(second, || write(other.page + VALUE, 1), || write(one.page + VALUE, 0));
    let shared = one.page == other.page;
    let wanted = if shared { EACH * 2 } else { EACH };
    let counted = writes().iter().zip(before).all(|(after, before)| after.wrapping_sub(before) == wanted);
    let last = [one, other].map(|path| read32(path.page + VALUE));
    let right = if shared { last[0] >> 1 == EACH } else { last == [EACH << 1, EACH << 1 | 1] };
    u32::from(!counted) + u32::from(!right)
}

/// Both processors ring: how many rings are too few or too many.
pub fn rings(bell: u64, second: &Second) -> u32 {
    let before = read32(bell + WRITES);
    let rung = || read32(bell + WRITES).wrapping_sub(before);
    let ring = || (0..RINGS).for_each(|value| write32(bell + VALUE, value));
    at_once(second, ring, ring);
    wait_until(|| rung() >= RINGS * 2);
    rung().abs_diff(RINGS * 2)
}
