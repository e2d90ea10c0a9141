//! How an attack ended: as the specification wants it, or with what was seen in its stead.

use crate::interrupts::{take_pending, window};
use crate::second::ticks;

/// A time, by the time-stamp counter and by the number of looks: where the counters of two processors are not in step, the one is not
/// enough.
struct Time {
    ticks: u64,
    looks: u32,
}

/// Some ten seconds on a machine that may be busy: within that time comes what must come.
const PATIENCE: Time = Time { ticks: 30_000_000_000, looks: 20_000 };
/// A few milliseconds: what must not come is not waited for longer.
const QUIET: Time = Time { ticks: 8_000_000, looks: 100 };

/// `Err`: the device did something else.
pub type Outcome = Result<(), Fault>;

/// A fact that is not as it should be.
pub struct Fault {
    /// The fact.
    pub what: &'static str,
    /// Its value.
    pub got: u64,
    /// The value it should have.
    pub wanted: u64,
}

/// A fact that is a number.
pub fn equal(what: &'static str, got: impl Into<u64>, wanted: impl Into<u64>) -> Outcome {
    let (got, wanted) = (got.into(), wanted.into());
    if got == wanted { Ok(()) } else { Err(Fault { what, got, wanted }) }
}

/// A fact that holds or does not.
pub fn holds(what: &'static str, fact: bool) -> Outcome {
    equal(what, fact, true)
}

/// Waits for what must come, interrupts included; whether it came.
pub fn soon(done: impl FnMut() -> bool) -> bool {
    within(PATIENCE, done)
}

/// Waits for what may come.
pub fn perhaps(done: impl FnMut() -> bool) -> bool {
    within(QUIET, done)
}

/// Gives the device time to do what it should not.
pub fn pause() {
    within(QUIET, || false);
    take_pending();
}

fn within(limit: Time, mut done: impl FnMut() -> bool) -> bool {
    let (start, mut looks) = (ticks(), 0);
    while looks < limit.looks || ticks().saturating_sub(start) < limit.ticks {
        if done() {
            return true;
        }
        window();
        looks += 1;
    }
    done()
}
