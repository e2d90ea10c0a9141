//! Counts of this process's resources, and numbers to make it hold things at random.

use std::time::{Duration, Instant};

/// Counted for the whole process: a test that compares must be alone in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub fds: usize,
    pub threads: usize,
    /// Of shared memory; those of the heap and of thread stacks come and go.
    pub mappings: usize,
}

pub fn held() -> Held {
    let entries = |path| std::fs::read_dir(path).unwrap().count();
    // Those that close what a peer sent come and go.
    let closing =
        |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "closing\n");
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter(|task| !closing(&task.as_ref().unwrap().path()));
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:").count();
    Held { fds: entries("/proc/self/fd"), threads: tasks.count(), mappings }
}

/// The same, once what is closed elsewhere is closed.
pub fn settled() -> Held {
    loop {
        let before = held();
        std::thread::sleep(Duration::from_millis(300));
        if held() == before {
            return before;
        }
    }
}

/// The process must hold what it held before. A thread that was joined is in procfs for another moment.
#[track_caller]
pub fn assert_held(before: Held) {
    let start = Instant::now();
    while held() != before && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(held(), before);
}

/// Numbers that follow from a seed (Knuth's MMIX generator).
pub struct Numbers(pub u64);

impl Numbers {
    /// From `OUTRIGGER_SEED`, or different each time; printed, for a failure to be seen again.
    pub fn seeded() -> Self {
        let seed = match std::env::var("OUTRIGGER_SEED") {
            Ok(seed) => seed.parse().expect("OUTRIGGER_SEED is a number"),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into(),
        };
        eprintln!("OUTRIGGER_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}
