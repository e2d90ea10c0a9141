//! Log lines that a guest can cause at will, limited so that it cannot fill the log.

use std::time::{Duration, Instant};

/// One line per second, and how many were left out.
#[derive(Debug, Default)]
pub struct LogLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Whether a line may be written now; if so, how many were left out since the last.
    pub fn permit(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < Self::INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Warns, if it may.
    pub fn warn(&mut self, line: std::fmt::Arguments<'_>) {
        match self.permit() {
            Some(0) => log::warn!("{line}"),
            Some(suppressed) => log::warn!("{line} ({suppressed} similar lines left out)"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_yields_one_line() {
        let mut limit = LogLimit::default();
        assert_eq!(limit.permit(), Some(0));
        assert!((0..1000).all(|_| limit.permit().is_none()));
        limit.last = limit.last.and_then(|last| last.checked_sub(LogLimit::INTERVAL));
        assert_eq!(limit.permit(), Some(1000));
    }
}
