//! `scripts/qemu-vfio-user`: a guest in QEMU 11, whose PCI devices are our device processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::leftovers::{Seen, children};
use crate::process::{Ended, Process, eventually, run};
use crate::{binaries, repository};

/// How long a guest may take: ten times what it does on an idle machine.
const GUEST_LIMIT: Duration = Duration::from_secs(240);
const SERVER_LIMIT: Duration = Duration::from_secs(900);

/// A device process started by hand, listening on a socket.
pub struct Server {
    process: Process,
    socket: PathBuf,
}

impl Server {
    /// Starts the program `name` with `--socket` and `arguments`, and waits until its socket is there.
    #[track_caller]
    pub fn start(name: &str, socket: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binaries::path(name));
        Self::spawn(command.arg("--socket").arg(socket).args(arguments), socket)
    }

    /// Starts `command`, which is to listen on `socket`, and waits until that is there.
    #[track_caller]
    pub fn spawn(command: &mut Command, socket: &Path) -> Self {
        let process = Process::start(command, SERVER_LIMIT);
        let there = eventually(Duration::from_secs(30), || {
            listening(socket) || !Path::new(&format!("/proc/{}", process.pid())).exists()
        });
        if !there || !listening(socket) {
            process.signal(nix::sys::signal::Signal::SIGKILL);
            panic!("{command:?} does not listen on {}:\n{}", socket.display(), process.finish());
        }
        Self { process, socket: socket.to_owned() }
    }

    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process that serves, a child of [`process`](Self::process) where that is one of ours.
    ///
    /// # Panics
    /// If it has no child.
    pub fn serving(&self) -> Seen {
        let mut child = None;
        eventually(Duration::from_secs(30), || {
            child = children(self.process.pid()).pop();
            child.is_some()
        });
        child.unwrap_or_else(|| panic!("nobody serves {}:\n{}", self.socket.display(), self.process.stderr()))
    }

    /// Waits for its end and gives back what it said.
    #[track_caller]
    pub fn finish(self) -> Ended {
        self.process.finish()
    }

    /// Ends it with SIGTERM and gives back what it said.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        self.process.finish()
    }
}

/// Whether somebody listens there; a path is there a moment before (`__SO_ACCEPTCON` in /proc/net/unix is the flag).
fn listening(socket: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.display().to_string();
    table.lines().any(|line| line.ends_with(&path) && line.split_whitespace().nth(3) == Some("00010000"))
}

/// Boots `kernel` and `initrd` with `servers` as PCI devices, and waits until QEMU ends. `options` go to the script.
#[track_caller]
pub fn boot(kernel: &Path, initrd: &Path, servers: &[&Server], options: &[&str]) -> Ended {
    let mut command = Command::new(repository::file("scripts/qemu-vfio-user"));
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    command.args(["-t", &GUEST_LIMIT.as_secs().to_string()]);
    for server in servers {
        command.arg("--socket").arg(server.socket());
    }
    // Last, as they may end in arguments for QEMU.
    command.args(options);
    // The first run also downloads QEMU.
    run(&mut command, GUEST_LIMIT + Duration::from_secs(300))
}
