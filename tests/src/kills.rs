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
    [entries("fd"), entries("task"), mappings(&maps)]
}

/// How many mappings `maps` has (proc_pid_maps(5)) but for stacks, each of which is behind a guard page: glibc keeps those of threads that
/// have ended, so they grow with the most threads that there were at one time, on a busy machine by dozens.
fn mappings(maps: &str) -> usize {
    let mut behind_guard = false;
    let counts = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let permissions = words.get(1).filter(|_| words.get(4) == Some(&"0") && words.len() == 5);
        let is_guard = permissions.is_some_and(|permissions| permissions.starts_with("---"));
        let is_stack = behind_guard && permissions == Some(&"rw-p");
        behind_guard = is_guard;
        !is_guard && !is_stack
    };
    maps.lines().filter(counts).count()
}

/// Sees to it that a process holds no more than before. Threads that close things come and go.
///
/// # Panics
/// When it does.
#[track_caller]
pub fn expect_no_growth(before: [usize; 3], after: [usize; 3]) {
    let most = before.map(|count| count + 8);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_not_counted_and_all_else_is() {
        let maps = "55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
7f00a0000000-7f00a0001000 ---p 00000000 00:00 0 
7f00a0001000-7f00a0201000 rw-p 00000000 00:00 0 
7f00a0201000-7f00a0202000 ---p 00000000 00:00 0 
7f00a0202000-7f00a0402000 rw-p 00000000 00:00 0 
7f00a0402000-7f00a0502000 rw-p 00000000 00:00 0 
7f00a0600000-7f00a0700000 rw-s 00000000 00:01 1234                       /memfd:guest (deleted)
7f00a0700000-7f00a0701000 ---p 00001000 fe:00 99                         /lib/libc.so.6
7f00a0701000-7f00a0702000 rw-p 00001000 fe:00 99                         /lib/libc.so.6
";
        assert_eq!(mappings(maps), 5);
    }
}
