//! What the whole host spends: memory of its kernel, and time of its processor when nothing is being done.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::figure::Unit;

/// For what was begun before to come to its end.
const SETTLE: Duration = Duration::from_secs(3);
/// Costs next to nothing, as nothing is executed meanwhile.
const WATCH: Duration = Duration::from_secs(20);

/// Bytes in use that are neither files (guest RAM is one) nor processes' own: page tables, what KVM has, stacks, tables of all kinds.
pub fn kernel_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/meminfo does not tell {name}")))
    };
    let others = kib("MemFree")? + kib("Buffers")? + kib("Cached")? + kib("AnonPages")?;
    Ok(kib("MemTotal")?.saturating_sub(others) << 10)
}

/// Microseconds in each second in which the processor has something to do, interrupts included.
pub fn busy() -> io::Result<f64> {
    sleep(SETTLE);
    let (start, idle) = (Instant::now(), idle()?);
    sleep(WATCH);
    let (elapsed, idle) = (start.elapsed().as_nanos(), self::idle()? - idle);
    let busy = u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_sub(idle);
    Ok(Unit::MicrosecondsPerSecond.per(busy, WATCH.as_secs()))
}

/// Nanoseconds that the processors have been idle.
fn idle() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/timer_list")?;
    let times = text.lines().filter_map(|line| line.trim().strip_prefix(".idle_sleeptime")?.trim().strip_prefix(':'));
    let times: Vec<u64> = times.filter_map(|time| time.split_whitespace().next()?.parse().ok()).collect();
    if times.is_empty() {
        Err(io::Error::other("/proc/timer_list does not tell idle_sleeptime"))
    } else {
        Ok(times.iter().sum())
    }
}
