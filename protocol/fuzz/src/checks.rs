//! Checks after every input: nothing is left behind, nothing took too long or too much memory.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::allocations;

/// Counts of this process's descriptors, threads, and mappings of shared files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    fds: usize,
    threads: usize,
    mappings: usize,
}

fn held() -> Held {
    let entries = |path| std::fs::read_dir(path).expect("procfs is there").count();
    let maps = std::fs::read("/proc/self/maps").expect("procfs is there");
    let mappings = maps.windows(7).filter(|name| *name == b"/memfd:").count();
    Held { fds: entries("/proc/self/fd"), threads: threads(), mappings }
}

/// Without those that close foreign descriptors, which wait for more for a while and then end.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs is there").flatten();
    tasks.filter(|task| std::fs::read(task.path().join("comm")).is_ok_and(|name| name != b"closing\n")).count()
}

/// The counts once they have stayed the same for a while: a thread that was joined is in procfs for another moment.
fn settled() -> Held {
    let mut last = held();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        match held() {
            now if now == last => return now,
            now => last = now,
        }
    }
}

thread_local! {
    static BASELINE: Cell<Option<Held>> = const { Cell::new(None) };
}

/// The most that an input may make the side under attack hold at once, and in one piece, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At once.
    pub total: usize,
    /// In one piece.
    pub piece: usize,
    /// From beginning to end.
    pub time: Duration,
}

/// Runs one input and panics if it breaks a rule.
pub fn checked(limits: Limits, input: impl Fn()) {
    if BASELINE.get().is_none() {
        // Things made once are made now.
        input();
        BASELINE.set(Some(settled()));
    }
    let (start, mark) = (Instant::now(), allocations::mark());
    input();
    let elapsed = start.elapsed();
    let (total, piece) = allocations::since(mark);
    if std::env::var_os("OUTRIGGER_FUZZ_PEAKS").is_some() {
        // To set the limits by.
        eprintln!("peak {total} {piece} {elapsed:?}");
    }
    assert!(elapsed <= limits.time, "an input took {elapsed:?}");
    assert!(total <= limits.total, "{total} bytes were held at once; {} are within the limits", limits.total);
    assert!(piece <= limits.piece, "{piece} bytes were allocated at once; {} are within the limits", limits.piece);
    let before = BASELINE.get().expect("set above");
    // A thread that was joined is in procfs for another moment.
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let after = held();
        if after == before {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {before:?}, then {after:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
