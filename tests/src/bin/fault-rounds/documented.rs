//! The documented ends of a run whose device fails, and whether one ended so.

use std::time::Duration;

use outrigger_tests::process::Ended;

/// The time that a device has for an answer (docs/ARCHITECTURE.md, "What holds everywhere", 2).
pub const DEADLINE: Duration = Duration::from_secs(10);
/// For anything that does not wait for a deadline. It takes some milliseconds, but machines are busy, emulated ones
/// above all.
pub const PROMPT: Duration = Duration::from_secs(8);
/// One deadline, and not one for each access.
const ONE_DEADLINE: Duration = Duration::from_secs(19);
/// Clocks of hosts count in ticks, and the fault is seen a little after it happened.
const EARLY: Duration = Duration::from_millis(100);

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documented {
    /// The device is cut off at once: the guest reads all-ones and goes on, the user is told once, the exit status says so.
    CutOff,
    /// The same when the device's time is over.
    CutOffAtDeadline,
    /// Nothing has happened.
    Unharmed,
    /// The VMM ends at once with this status, of a signal. The device is not to blame.
    EndedBySignal(i32),
}

impl Documented {
    /// Whether a run with the device at `socket` ended so, `time` after the fault.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn check(self, ended: &Ended, socket: &str, time: Duration) {
        let (status, named) = match self {
            Self::CutOff | Self::CutOffAtDeadline => (6, 1),
            Self::Unharmed => (0, 0),
            Self::EndedBySignal(status) => (status, 0),
        };
        ended.expect_code(status);
        if !matches!(self, Self::EndedBySignal(_)) {
            ended.expect_stdout("payload: passed\n");
        }
        let times = ended.stderr.matches(socket).count();
        assert_eq!(times, named, "so often is the device named; output:\n{ended}");
        assert!(named > 0 || ended.stderr.is_empty(), "there is nothing to tell; output:\n{ended}");
        let (from, to) = match self {
            Self::CutOffAtDeadline => (DEADLINE - EARLY, ONE_DEADLINE),
            Self::CutOff | Self::EndedBySignal(_) => (Duration::ZERO, PROMPT),
            Self::Unharmed => (Duration::ZERO, Duration::MAX),
        };
        assert!(from <= time && time < to, "{time:?} after the fault and not {from:?} to {to:?}; output:\n{ended}");
    }
}
