//! A bound on the log lines that a guest or a peer can cause at will.
//!
//! A limit belongs to a device and lives as long as the process: a reset of the device, another client or another guest
//! kernel does not renew it.

use std::fmt::Arguments;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 10;
/// After a burst, one line in this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// Permits ten lines at once and one more every five seconds. Says how many lines it left out.
#[derive(Debug)]
pub struct RateLimit(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    /// Lines that may be written now.
    tokens: u32,
    /// When the last token was added.
    filled: Option<Instant>,
    left_out: u64,
}

impl RateLimit {
    /// A limit that has not been used.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Bucket { tokens: BURST, filled: None, left_out: 0 }))
    }

    /// Logs a warning if the limit permits one. The arguments are formatted only then.
    pub fn warn(&self, line: Arguments<'_>) {
        match self.permit(Instant::now()) {
            Some(0) => log::warn!("{line}"),
            Some(left_out) => log::warn!("{line} ({left_out} lines left out before this one)"),
            None => {}
        }
    }

    /// Whether a line may be written now; if so, how many were left out since the last.
    fn permit(&self, now: Instant) -> Option<u64> {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = *bucket.filled.get_or_insert(now);
        let intervals = now.saturating_duration_since(filled).as_nanos() / INTERVAL.as_nanos();
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        bucket.tokens = bucket.tokens.saturating_add(intervals).min(BURST);
        // The rest of an interval counts for the next, unless the bucket is full anyway.
        bucket.filled = if bucket.tokens == BURST { Some(now) } else { filled.checked_add(INTERVAL * intervals) };
        match bucket.tokens.checked_sub(1) {
            Some(tokens) => {
                bucket.tokens = tokens;
                Some(std::mem::take(&mut bucket.left_out))
            }
            None => {
                bucket.left_out += 1;
                None
            }
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` lines at `now` are permitted, and what the permitted ones say was left out.
    fn permitted(limit: &RateLimit, now: Instant, count: usize) -> (usize, u64) {
        let answers: Vec<_> = (0..count).filter_map(|_| limit.permit(now)).collect();
        (answers.len(), answers.iter().sum())
    }

    #[test]
    fn a_burst_is_cut_and_counted() {
        let (limit, start) = (RateLimit::new(), Instant::now());
        assert_eq!(permitted(&limit, start, 10_000), (10, 0));
        assert_eq!(permitted(&limit, start + INTERVAL - Duration::from_millis(1), 10), (0, 0));
        assert_eq!(permitted(&limit, start + INTERVAL, 10), (1, 10_000));
        assert_eq!(permitted(&limit, start + 3 * INTERVAL, 10), (2, 9));
    }

    #[test]
    fn an_hour_of_flood_yields_a_bounded_number_of_lines() {
        let (limit, start) = (RateLimit::new(), Instant::now());
        let lines = (0..3600 * 50).filter(|tick| limit.permit(start + Duration::from_millis(20) * *tick).is_some());
        assert_eq!(lines.count(), 10 + 3600 / 5 - 1);
    }

    #[test]
    fn silence_permits_no_more_than_a_burst() {
        let (limit, start) = (RateLimit::new(), Instant::now());
        assert_eq!(permitted(&limit, start, 11), (10, 0));
        assert_eq!(permitted(&limit, start + 1000 * INTERVAL, 100), (10, 1));
    }
}
