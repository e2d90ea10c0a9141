//! A write, and after it an access by the same path or another: on the same processor, or on another one that has seen
//! a flag in memory. All accesses are to the word that the paths share, so the second shows whether the first came
//! before it.

use super::rounds::{count, relay};
use super::{COMMON, Path, Seen};
use crate::checks::paths::{VALUE, WRITES};
use crate::memory::{read32, write32};
use crate::second::{Second, wait_until};

/// Write and read; write and write.
pub fn alone(first: &Path, then: &Path) -> Option<Seen> {
    let (from, to) = (first.page + COMMON, then.page + COMMON);
    let seen = count(|round| {
        let value = round * 3;
        write32(from, value);
        let not_read = read32(to) != value;
        write32(from, value + 1);
        write32(to, value + 2);
        let not_last = read32(to) != value + 2;
        // A write under way arrives before the next round: reads wait for posted writes of their path.
        read32(from);
        not_read || not_last
    });
    Some(Seen { count: seen, promised: first.comes_before(then) })
}

/// Write, and after a flag another processor's read and write; after its answer a read.
pub fn with_flag(first: &Path, then: &Path, second: &Second) -> Option<Seen> {
    let (from, to) = (first.page + COMMON, then.page + COMMON);
    let follow = |round: u32| {
        let not_read = read32(to) != round * 2;
        write32(to, round * 2 + 1);
        let not_last = read32(to) != round * 2 + 1;
        not_read || not_last
    };
    let seen = relay(second, |round| write32(from, round * 2), follow, |round| read32(from) != round * 2 + 1);
    Some(Seen { count: seen, promised: first.comes_before(then) })
}

/// Write, and a doorbell rung by the same processor, then by another one after a flag: the device looks at the word when it is woken.
/// Takes each path once, as `first`.
pub fn doorbell(first: &Path, then: &Path, bell: u64, second: &Second) -> Option<Seen> {
    if first.page != then.page {
        return None;
    }
    let common = first.page + COMMON;
    let rung = |value: u32| {
        let before = read32(bell + WRITES);
        write32(bell + VALUE, 0);
        let woken = wait_until(|| read32(bell + WRITES) != before);
        !woken || read32(bell + VALUE) != value
    };
    let own = count(|round| {
        write32(common, round * 2);
        let wrong = rung(round * 2);
        read32(common);
        wrong
    });
    let write = |round| write32(common, round * 2 + 1);
    let mut seen = relay(second, write, |round| rung(round * 2 + 1), |round| read32(common) != round * 2 + 1);
    seen.rounds += own.rounds;
    seen.wrong += own.wrong;
    Some(Seen { count: seen, promised: !first.posted })
}
