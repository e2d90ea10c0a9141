//! The promised order of accesses by different paths, on one processor and on two (docs/PROTOCOL.md, "Order"): litmus tests
//! with the device that has the same registers on every path (`devices/examples/paths.rs`).
//!
//! Each line of output is a fact for one first access, with any second: violations among all rounds, which must be none. Pairs without
//! a promise are tried as well, and the times that the second overtook are counted; whether it can depends on the machine.

mod race;
mod relay;
mod rounds;

use self::rounds::Count;
use super::paths::{self, COMMON, TICKET, find};
use crate::machine::Machine;
use crate::second::Second;
use crate::serial::{decimal, line, text};
use crate::verdict::Verdict;

/// A page, by the path that it offers.
#[derive(Clone, Copy)]
struct Path {
    name: &'static str,
    /// Its physical address.
    page: u64,
    /// The carrier of its accesses, one after another.
    channel: Channel,
    /// Whether writes are not waited for.
    posted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Channel {
    Connection,
    Descriptor(u8),
    Memory,
}

impl Path {
    /// Whether a write by this path is promised to come before an access by `second` that begins when the write has returned.
    fn comes_before(&self, second: &Self) -> bool {
        !self.posted || self.channel == second.channel
    }

    fn is_memory(&self) -> bool {
        self.channel == Channel::Memory
    }
}

const PATHS: usize = 8;

/// All paths of the device at `base`. `posted`: the client uses none of its ioregionfds, so they are messages, and posted.
fn paths(base: u64, posted: bool) -> [Path; PATHS] {
    use Channel::{Connection, Descriptor, Memory};
    let all = [
        ("message", paths::MESSAGE, Connection, false),
        ("stream", paths::STREAM, Descriptor(1), false),
        ("seqpacket", paths::SEQPACKET, Descriptor(2), false),
        ("stream-posted", paths::STREAM_POSTED, Descriptor(3), true),
        ("seqpacket-posted", paths::SEQPACKET_POSTED, Descriptor(4), true),
        ("mapped", paths::MAPPED, Memory, false),
        ("stream-second", paths::STREAM_SECOND, Descriptor(1), true),
        ("seqpacket-second", paths::SEQPACKET_SECOND, Descriptor(2), true),
    ];
    all.map(|(name, page, channel, waits_not)| {
        let by_message = posted && channel != Memory;
        let channel = if by_message { Connection } else { channel };
        Path { name, page: base + page, channel, posted: by_message || waits_not }
    })
}

/// The promises of a client that uses at least one of the device's ioregionfds, itself or by KVM, or no memory and no ioeventfd of its.
pub fn check(machine: &Machine, verdict: &mut Verdict) {
    run(machine, verdict, false);
}

/// The same for a minute, to find what is rare.
pub fn check_long(machine: &Machine, verdict: &mut Verdict) {
    rounds::take_more_time(30);
    run(machine, verdict, false);
}

/// Those of a client that uses mapped memory and ioeventfds, but none of the ioregionfds: it posts messages.
pub fn check_posted(machine: &Machine, verdict: &mut Verdict) {
    run(machine, verdict, true);
}

fn run(machine: &Machine, verdict: &mut Verdict, posted: bool) {
    let Some((_, bar)) = find(machine) else {
        verdict.holds("litmus-found", false);
        return;
    };
    let Some(second) = Second::start() else {
        verdict.holds("litmus-two-processors", false);
        return;
    };
    let doorbell = bar.address() + paths::DOORBELL;
    let paths = paths(bar.address(), posted);
    each_first("one-processor", &paths, verdict, relay::alone);
    each_first("flag", &paths, verdict, |first, then| relay::with_flag(first, then, &second));
    each_first("flag-register", &paths, verdict, |data, flag| race::flag_register(data, flag, &second));
    each_first("both-write", &paths, verdict, |one, other| race::both_write(one, other, &second));
    each_first("doorbell", &paths, verdict, |first, then| relay::doorbell(first, then, doorbell, &second));
    let each = |test: fn(&Path, &Path, &Second) -> u32| {
        let registers = || paths.iter().filter(|path| !path.is_memory());
        let pairs = registers().flat_map(|one| registers().map(move |other| (one, other)));
        let pairs = pairs.filter(|(one, other)| one.page <= other.page);
        pairs.map(|(one, other)| test(one, other, &second)).sum::<u32>()
    };
    verdict.equal("litmus-reads-none-lost-none-twice", u64::from(each(race::tickets)), 0);
    verdict.equal("litmus-writes-none-lost-none-twice", u64::from(each(race::counts)), 0);
    verdict.equal("litmus-rings-none-lost-none-twice", u64::from(race::rings(doorbell, &second)), 0);
}

/// A test's count with a pair of paths.
struct Seen {
    count: Count,
    /// Whether nothing may be wrong.
    promised: bool,
}

/// Runs a test with all pairs that it takes, and makes a fact of each path as the first.
fn each_first(name: &str, paths: &[Path], verdict: &mut Verdict, test: impl Fn(&Path, &Path) -> Option<Seen>) {
    let mut rounds = 0;
    for first in paths {
        let [mut promised, mut other] = [Count::default(); 2];
        for then in paths {
            let Some(seen) = test(first, then) else { continue };
            let sum = if seen.promised { &mut promised } else { &mut other };
            sum.rounds += seen.count.rounds;
            sum.wrong += seen.count.wrong;
            if seen.promised && seen.count.wrong > 0 {
                say(&["   ", first.name, ", then ", then.name, ": wrong "], seen.count.wrong);
            }
        }
        if promised.rounds > 0 {
            verdict.equal_parts(&["litmus-", name, "-", first.name], u64::from(promised.wrong), 0);
        }
        if other.rounds > 0 {
            text("   not promised: ");
            text(first.name);
            text(" overtaken ");
            decimal(u64::from(other.wrong));
            say(&[" times of "], other.rounds);
        }
        rounds += promised.rounds;
    }
    say(&["   rounds of litmus-", name, ": "], rounds);
}

fn say(words: &[&str], number: u32) {
    words.iter().for_each(|word| text(word));
    decimal(u64::from(number));
    line("");
}
