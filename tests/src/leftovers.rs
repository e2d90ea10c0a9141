//! Leftovers of a VMM: processes, sockets, interfaces, files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;

use crate::process::eventually;

/// How long things may take to go away. They go at once; the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A process, which is not mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub pid: Pid,
    /// Its name, at most 15 characters.
    pub name: String,
    started: u64,
}

impl Seen {
    fn at(pid: i32) -> Option<(Self, i32)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let name = head.split_once('(')?.1.to_owned();
        if fields.first() == Some(&"Z") {
            return None;
        }
        let seen = Self { pid: Pid::from_raw(pid), name, started: fields.get(19)?.parse().ok()? };
        Some((seen, fields.get(1)?.parse().ok()?))
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        Self::at(self.pid.as_raw()).is_some_and(|(now, _)| now == *self)
    }
}

/// The process that starts a VMM's device processes.
const LAUNCHER: &str = "launcher";

/// The processes that `parent` has as children, but for a VMM's launcher.
pub fn children(parent: Pid) -> Vec<Seen> {
    all_children(parent).into_iter().filter(|child| child.name != LAUNCHER).collect()
}

/// A VMM's launcher.
pub fn launcher(vmm: Pid) -> Option<Seen> {
    all_children(vmm).into_iter().find(|child| child.name == LAUNCHER)
}

fn all_children(parent: Pid) -> Vec<Seen> {
    let entries = fs::read_dir("/proc").expect("every Linux has /proc");
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Seen::at).filter(|(_, by)| *by == parent.as_raw()).map(|(seen, _)| seen).collect()
}

/// Fails the test unless all of `processes` end.
#[track_caller]
pub fn expect_ended(processes: &[Seen]) {
    let ended = eventually(LIMIT, || !processes.iter().any(Seen::alive));
    let left: Vec<_> = processes.iter().filter(|process| process.alive()).collect();
    assert!(ended, "processes live on: {left:?}");
}

/// Fails the test unless the network interface `name` goes away.
#[track_caller]
pub fn expect_no_interface(name: &str) {
    let path = Path::new("/sys/class/net").join(name);
    assert!(eventually(LIMIT, || !path.exists()), "the interface {name} is left");
}

/// Fails the test unless `directory` becomes empty.
#[track_caller]
pub fn expect_empty(directory: &Path) {
    let list = || -> Vec<_> {
        fs::read_dir(directory).expect("the test made it").flatten().map(|entry| entry.path()).collect()
    };
    assert!(eventually(LIMIT, || list().is_empty()), "files are left: {:?}", list());
}

/// Paths and abstract names of all sockets that contain `words`.
pub fn sockets(words: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").expect("every Linux has Unix sockets");
    table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|name| name.contains(words))
        .map(str::to_owned)
        .collect()
}

/// The files behind a process's descriptors, as /proc shows them.
pub fn open_files(pid: Pid) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}
