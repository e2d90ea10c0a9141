//! Device processes that are killed, again and again, under a guest that verifies what they do.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leftovers::{Seen, children};
use crate::process::Process;
use crate::random::Random;

/// As many restarts as the options know.
pub const UNLIMITED: &str = "restart=10000/1s";
/// No process may be missing for longer. More than any restart may take.
const MISSING: Duration = Duration::from_secs(20);
/// When a successor serves, on a machine that is busy.
const SERVING: Duration = Duration::from_millis(700);
/// In the names of the threads of queues: `blk-q0`.
const QUEUE: &str = "-q";
/// For so long one successor after the other is killed before it serves the device; then one may.
const HURRIED: Duration = Duration::from_secs(2);
/// Words of which each block of the payload's `verified-disk` has one, over and over: the block's number and its generation.
const SECTOR: usize = 512;
const BLOCKS: usize = 256;

/// Kills the device processes of one VMM at random moments.
pub struct Killer {
    vmm: Pid,
    random: Random,
    /// The longest time between two kills.
    pause: Duration,
    /// Since when a device is not served, by the name of its program.
    unserved: HashMap<String, Instant>,
    /// How many were killed.
    pub kills: usize,
}

impl Killer {
    /// For the VMM `vmm`; says by which seed.
    pub fn new(vmm: &Process, pause: Duration) -> Self {
        let (random, seed) = Random::fresh();
        println!("seed {seed}");
        Self { vmm: vmm.pid(), random, pause, unserved: HashMap::new(), kills: 0 }
    }

    /// Waits for a while, and kills one of the processes that are there. A successor that has only begun is as good as any, but not
    /// again and again: on a busy machine none would serve before the restart's deadline.
    ///
    /// # Panics
    /// When there is none any more, or the VMM has ended.
    pub fn kill_one(&mut self, vmm: &Process) {
        // Mostly short, so that successors die at each step of taking over; a quarter of the longest on average.
        let longest = self.random.time(self.pause);
        sleep(self.random.time(longest));
        let start = Instant::now();
        let mut victim = self.victim(vmm);
        while self.is_hurried(&victim) && start.elapsed() < MISSING {
            sleep(Duration::from_millis(1));
            victim = self.victim(vmm);
        }
        // It may have ended by itself when it saw that it was of no use.
        if kill(victim.pid, Signal::SIGKILL).is_ok() {
            self.kills += 1;
        }
    }

    /// The same while a VMM starts or ends, where there may be none.
    pub fn kill_any(&mut self) {
        sleep(self.random.time(self.pause));
        if let Some(victim) = self.devices().pop()
            && kill(victim.pid, Signal::SIGKILL).is_ok()
        {
            self.kills += 1;
        }
    }

    /// Stops one of the processes, with SIGSTOP, once it has had the time to take its place: one that is stopped before uses up the
    /// deadline of the restart.
    ///
    /// # Panics
    /// As [`Killer::kill_one`].
    pub fn stop_one(&mut self, vmm: &Process) {
        sleep(SERVING + self.random.time(self.pause));
        let victim = self.victim(vmm);
        if kill(victim.pid, Signal::SIGSTOP).is_ok() {
            self.kills += 1;
        }
        let start = Instant::now();
        while victim.alive() {
            assert!(start.elapsed() < MISSING, "a process that is stopped is left; the VMM said:\n{}", vmm.stderr());
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether its device needs this process: none of those before it has served it for a while.
    fn is_hurried(&mut self, victim: &Seen) -> bool {
        if serves(victim) {
            self.unserved.remove(&victim.name);
            return false;
        }
        self.unserved.entry(victim.name.clone()).or_insert_with(Instant::now).elapsed() > HURRIED
    }

    /// Those that are there, in any order.
    fn devices(&mut self) -> Vec<Seen> {
        let mut devices = children(self.vmm);
        devices.retain(|device| device.name.starts_with("outrigger-"));
        self.random.shuffle(&mut devices);
        devices
    }

    fn victim(&mut self, vmm: &Process) -> Seen {
        let start = Instant::now();
        loop {
            match self.devices().pop() {
                Some(victim) => return victim,
                None => {
                    assert!(start.elapsed() < MISSING, "no process takes the place; the VMM said:\n{}", vmm.stderr())
                }
            }
            sleep(Duration::from_millis(1));
        }
    }
}

/// Whether a process has a thread for a queue, and so serves the device to its driver.
fn serves(device: &Seen) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", device.pid)).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.into_iter().any(|name| name.contains(QUEUE))
}

/// A process's descriptors, threads and mappings, counted.
pub fn held(pid: Pid) -> [usize; 3] {
    let entries = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    [entries("fd"), entries("task"), maps.lines().count()]
}

/// Sees to it that a process holds no more than before. Threads that close things come and go; of those that have ended glibc keeps the
/// stacks and arenas, with two mappings each, so these grow with the most that there were at one time.
///
/// # Panics
/// When it does.
#[track_caller]
pub fn expect_no_growth(before: [usize; 3], after: [usize; 3]) {
    let most = [before[0] + 8, before[1] + 8, before[2] + 20];
    let grows = after.iter().zip(most).any(|(after, most)| *after > most);
    assert!(!grows, "descriptors, threads and mappings: {after:?}; before: {before:?}");
}

/// Checks the image that the payload's `verified-disk` has left: each block is of one generation, and where it belongs.
///
/// # Panics
/// When one is not.
pub fn expect_whole_blocks(image: &Path) {
    let content = fs::read(image).expect("the test made it");
    let mut written = 0;
    for (number, block) in content.chunks_exact(SECTOR).take(BLOCKS).enumerate() {
        let words: Vec<_> = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8"))).collect();
        assert!(words.iter().all(|word| *word == words[0]), "block {number} is torn: {words:x?}");
        assert!(words[0] == 0 || words[0] >> 32 == number as u64, "block {number} holds another: {:x}", words[0]);
        written += usize::from(words[0] != 0);
    }
    assert!(written > 0, "nothing was written");
    assert!(content[SECTOR * BLOCKS..].iter().all(|&byte| byte == 0), "a block that nobody wrote has changed");
}
