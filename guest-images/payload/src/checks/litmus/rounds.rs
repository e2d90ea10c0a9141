//! Rounds, as many as there is time for: two processors that wait for each other by turning in circles are slow on a machine that has
//! more to do than processors.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::second::{Second, ticks, wait_until};

/// At least, and at most.
const LEAST: u32 = 10;
pub const MOST: u32 = 4000;
/// Ticks of the time-stamp counter for those beyond the least: some ten milliseconds.
const TIME: u64 = 30_000_000;
static MORE_TIME: AtomicU64 = AtomicU64::new(1);

/// From now on there is so many times as much time.
pub fn take_more_time(times: u64) {
    MORE_TIME.store(times, Ordering::Relaxed);
}

/// The round, in a byte, that the first processor has reached, and that the second has.
static TOLD: AtomicU8 = AtomicU8::new(0);
static ANSWERED: AtomicU8 = AtomicU8::new(0);
/// The round that is none any more: one higher than its lowest bit.
static END: AtomicU8 = AtomicU8::new(0);

/// How many rounds there were, and in how many something was wrong.
#[derive(Clone, Copy, Default)]
pub struct Count {
    pub rounds: u32,
    pub wrong: u32,
}

/// Numbers from one.
pub struct Rounds {
    most: u32,
    start: u64,
    time: u64,
    done: u32,
}

impl Rounds {
    /// This many at most.
    pub fn up_to(most: u32) -> Self {
        Self { most, start: ticks(), time: TIME * MORE_TIME.load(Ordering::Relaxed), done: 0 }
    }
}

impl Iterator for Rounds {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let more = self.done < LEAST || self.done < self.most && ticks().saturating_sub(self.start) < self.time;
        self.done += u32::from(more);
        more.then_some(self.done)
    }
}

/// On one processor.
pub fn count(mut wrong: impl FnMut(u32) -> bool) -> Count {
    let mut count = Count::default();
    for round in Rounds::up_to(MOST) {
        count.rounds = round;
        count.wrong += u32::from(wrong(round));
    }
    count
}

/// One processor after the other: `first` on this one, then a flag, `second` on the other one, a flag, and `last` on this one.
pub fn relay(
    processor: &Second,
    mut first: impl FnMut(u32),
    mut second: impl FnMut(u32) -> bool + Send,
    mut last: impl FnMut(u32) -> bool,
) -> Count {
    reset();
    let mut wrong = 0;
    let mut theirs = || {
        for round in 1.. {
            let told = heard(&TOLD, round);
            if !told || is_end(round) {
                break;
            }
            wrong += u32::from(second(round));
            tell(&ANSWERED, round);
        }
    };
    let mut ours = processor.beside(&mut theirs, || {
        let mut done = 0;
        let count = count(|round| {
            first(round);
            tell(&TOLD, round);
            done = round;
            !heard(&ANSWERED, round) || last(round)
        });
        set_end(done + 1);
        tell(&TOLD, done + 1);
        count
    });
    ours.wrong += wrong;
    ours
}

/// Both processors at the same time, each with its number. Neither begins a round before the other has ended the last.
pub fn together(processor: &Second, turn: impl Fn(usize, u32) + Sync) -> Count {
    reset();
    let mut theirs = || {
        for round in 1.. {
            tell(&ANSWERED, round);
            if !reached(&TOLD, round) || is_end(round) {
                break;
            }
            turn(1, round);
        }
    };
    processor.beside(&mut theirs, || {
        let mut done = 0;
        let start = |round| {
            tell(&TOLD, round);
            reached(&ANSWERED, round)
        };
        let count = count(|round| {
            done = round;
            let started = start(round);
            turn(0, round);
            !started
        });
        set_end(done + 1);
        start(done + 1);
        count
    })
}

/// Runs `ours` here and `theirs` on the other processor, from the same moment on.
pub fn at_once<T>(processor: &Second, mut theirs: impl FnMut() + Send, ours: impl FnOnce() -> T) -> T {
    reset();
    let mut theirs = || {
        tell(&ANSWERED, 1);
        heard(&TOLD, 1);
        theirs();
    };
    processor.beside(&mut theirs, || {
        tell(&TOLD, 1);
        heard(&ANSWERED, 1);
        ours()
    })
}

fn reset() {
    [&TOLD, &ANSWERED, &END].iter().for_each(|flag| flag.store(0, Ordering::Relaxed));
}

fn tell(flag: &AtomicU8, round: u32) {
    flag.store(round.to_le_bytes()[0], Ordering::Release);
}

fn heard(flag: &AtomicU8, round: u32) -> bool {
    wait_until(|| flag.load(Ordering::Acquire) == round.to_le_bytes()[0])
}

/// The same, and the other processor can be one further.
fn reached(flag: &AtomicU8, round: u32) -> bool {
    wait_until(|| flag.load(Ordering::Acquire).wrapping_sub(round.to_le_bytes()[0]) < 2)
}

fn set_end(round: u32) {
    END.store(1 + (round & 1).to_le_bytes()[0], Ordering::Relaxed);
}

fn is_end(round: u32) -> bool {
    END.load(Ordering::Relaxed) == 1 + (round & 1).to_le_bytes()[0]
}
