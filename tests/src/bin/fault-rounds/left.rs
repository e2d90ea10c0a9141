//! Leftovers when all rounds are over: none.

use std::fs::read_dir;
use std::path::Path;

use nix::sys::prctl::set_child_subreaper;
use nix::unistd::Pid;
use outrigger_tests::leftovers::{LIMIT, children, open_files, sockets};
use outrigger_tests::process::eventually;

/// Counts of this process's resources before the first round.
pub struct Before {
    files: usize,
    threads: usize,
}

impl Before {
    /// Looks, and from now on takes charge of each process whose parent ends before it.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn take() -> Self {
        set_child_subreaper(true).expect("every Linux has it");
        Self { files: files(), threads: threads() }
    }

    /// Resources that were not there before; they may take their time to go.
    pub fn compare(&self) -> Vec<String> {
        let left = || {
            let children =
                children(Pid::this()).into_iter().map(|child| format!("process {} ({})", child.pid, child.name));
            let counts = [("file descriptors", self.files, files()), ("threads", self.threads, threads())];
            let counts = counts.into_iter().filter(|(_, before, now)| before != now);
            children.chain(counts.map(|(what, before, now)| format!("{what}: {before} before, {now} now"))).collect()
        };
        finally(left)
    }
}

/// Files in a directory and sockets with its path. A device removes its own when it ends; a killed one's are removed with its round.
pub fn left_in(directory: &Path) -> Vec<String> {
    finally(|| {
        let files = read_dir(directory).into_iter().flatten().flatten();
        let files = files.map(|file| format!("file {}", file.path().display()));
        let sockets = sockets(&directory.display().to_string());
        files.chain(sockets.into_iter().map(|path| format!("socket {path}"))).collect()
    })
}

/// The leftovers that are still there after their time to go.
fn finally(left: impl Fn() -> Vec<String>) -> Vec<String> {
    let mut last = Vec::new();
    eventually(LIMIT, || {
        last = left();
        last.is_empty()
    });
    last
}

fn files() -> usize {
    open_files(Pid::this()).len()
}

fn threads() -> usize {
    read_dir("/proc/self/task").map_or(0, Iterator::count)
}
