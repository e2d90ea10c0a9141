//! The whole host's costs: memory of its kernel, and time of its processor when nothing is being done.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::figure::Unit;

/// For what was begun before to come to its end.
const SETTLE: Duration = Duration::from_secs(3);
/// Long enough for what comes every few seconds to count; it costs next to nothing, as little is executed meanwhile.
const WATCH: Duration = Duration::from_secs(100);

/// Bytes in use that are neither files (guest RAM is one) nor processes' own: page tables, what KVM has, stacks, tables of all kinds.
pub fn kernel_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    apart_from_files_and_processes(&text).ok_or_else(|| io::Error::other("/proc/meminfo does not tell"))
}

fn apart_from_files_and_processes(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let others = kib("MemFree")? + kib("Buffers")? + kib("Cached")? + kib("AnonPages")?;
    Some(kib("MemTotal")?.saturating_sub(others) << 10)
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
    slept(&text).ok_or_else(|| io::Error::other("/proc/timer_list does not tell idle_sleeptime"))
}

/// Sum of all processors' `idle_sleeptime` (Linux, kernel/time/timer_list.c).
fn slept(timer_list: &str) -> Option<u64> {
    let times =
        timer_list.lines().filter_map(|line| line.trim().strip_prefix(".idle_sleeptime")?.trim().strip_prefix(':'));
    times.map(|time| time.split_whitespace().next()?.parse::<u64>().ok()).reduce(|sum, time| Some(sum? + time?))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_idle_times_add_up() {
        let cpu = "cpu: 0\n  .nohz_mode      : 2\n  .idle_entrytime : 5 nsecs\n  .idle_sleeptime : 1000 nsecs\n";
        assert_eq!(slept(&cpu.repeat(2)), Some(2000));
        assert_eq!(slept("  .idle_sleeptime : ?\n"), None);
        assert_eq!(slept(""), None);
    }

    #[test]
    fn files_and_processes_memory_is_not_the_kernels() {
        let meminfo =
            "MemTotal: 100 kB\nMemFree: 50 kB\nBuffers: 1 kB\nCached: 20 kB\nSwapCached: 0 kB\nAnonPages: 9 kB\n";
        assert_eq!(apart_from_files_and_processes(meminfo), Some(20 << 10));
        assert_eq!(apart_from_files_and_processes("MemTotal: 100 kB\n"), None);
        assert!(kernel_memory().unwrap() > 0);
    }
}
