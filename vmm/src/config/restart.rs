//! `restart=N/SECONDS|off` and `deadline=SECONDS`: how often, and how fast, what serves a device may be replaced when it
//! fails.

use std::fmt;
use std::time::Duration;

use outrigger_process::options::number;

/// Most restarts in one window. Each is remembered for as long.
const MOST_RESTARTS: u64 = 10_000;
/// Longest window, a day.
const LONGEST_WINDOW: u64 = 86_400;
const SHORTEST_DEADLINE: Duration = Duration::from_millis(100);
const LONGEST_DEADLINE: Duration = Duration::from_secs(600);

/// Whether what serves a device is succeeded when it fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Restart {
    /// As [`Budget::default`] says, if the device process accepts the journal, so that the guest does not notice;
    /// otherwise not.
    #[default]
    IfUnnoticed,
    /// Never: the guest loses the device.
    Off,
    /// This often, whatever the guest notices.
    Within(Budget),
}

/// How many restarts a device has in a window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Attempts that fail count as well.
    pub restarts: u16,
    /// In any time of this length.
    pub window: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { restarts: 5, window: Duration::from_secs(60) }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} restarts in {} s", self.restarts, self.window.as_secs())
    }
}

impl Restart {
    /// Reads `restart=`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let budget = text.split_once('/').and_then(|(restarts, window)| {
            let restarts = number(restarts, 1, MOST_RESTARTS).ok()?;
            let window = number(window.strip_suffix('s').unwrap_or(window), 1, LONGEST_WINDOW).ok()?;
            Some(Budget { restarts: u16::try_from(restarts).ok()?, window: Duration::from_secs(window) })
        });
        budget.map(Self::Within).ok_or_else(|| {
            format!(
                "must be off or N/SECONDS like 5/60s, N from 1 to {MOST_RESTARTS}, SECONDS from 1 to {LONGEST_WINDOW}, \
                 not '{text}'"
            )
        })
    }
}

/// How long a device process has for any answer, where `deadline=` gives nothing.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a restart may take at least, and any answer in it: a program starts, its storage is asked, and what the kernel is at
/// for the predecessor ends. To give that up is to lose the device.
pub(super) const SHORTEST_RESTART: Duration = Duration::from_secs(10);

/// Reads `deadline=`.
pub(super) fn parse_deadline(text: &str) -> Result<Duration, String> {
    let all = 0..=u64::from(u32::MAX);
    let count = |digits| number(digits, *all.start(), *all.end()).ok();
    let deadline = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => count(digits).map(Duration::from_millis),
        (None, digits) => count(digits.unwrap_or(text)).map(Duration::from_secs),
    };
    let deadline = deadline.filter(|deadline| (SHORTEST_DEADLINE..=LONGEST_DEADLINE).contains(deadline));
    deadline.ok_or_else(|| format!("must be a time between 100ms and 600s, like 10s or 500ms, not '{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_with_and_without_a_unit() {
        let within = |restarts, seconds| Ok(Restart::Within(Budget { restarts, window: Duration::from_secs(seconds) }));
        assert_eq!(Restart::parse("5/60s"), within(5, 60));
        assert_eq!(Restart::parse("10000/86400"), within(10_000, 86_400));
        assert_eq!(Restart::parse("off"), Ok(Restart::Off));
        for text in ["on", "5", "0/1", "5/0", "10001/1", "5/86401", "5/60m", "5/60ss", "/", "5/", "-1/5", "5/1/1"] {
            assert!(Restart::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deadlines_are_seconds_or_milliseconds() {
        assert_eq!(parse_deadline("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_deadline("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_deadline("500ms"), Ok(Duration::from_millis(500)));
        for text in ["0", "99ms", "601s", "600001ms", "1m", "s", "ms", "1.5s", "-1", "18446744073709551615"] {
            assert!(parse_deadline(text).is_err(), "{text}");
        }
    }
}
