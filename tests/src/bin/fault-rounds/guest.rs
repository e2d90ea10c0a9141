//! A guest of one round, and its device process.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;
use outrigger_tests::process::{Process, eventually};
use outrigger_tests::qemu::Server;

use crate::options::Options;

/// A process that hangs this long hangs for good.
const HANGS: Duration = Duration::from_secs(100);

/// A device process that listens on a socket of its own.
pub struct Device {
    server: Server,
    socket: String,
}

impl Device {
    /// The device of `devices/examples/paths.rs`.
    pub fn paths(options: &Options, socket: &Path) -> Self {
        Self::start(Command::new(&options.paths).arg(socket), socket)
    }

    /// The device that breaks after so many right answers.
    pub fn faulty(options: &Options, socket: &Path, fault: &str, right: u64) -> Self {
        let mut command = Command::new(&options.faulty);
        Self::start(command.arg(socket).arg(fault).arg(right.to_string()), socket)
    }

    fn start(command: &mut Command, socket: &Path) -> Self {
        Self { server: Server::spawn(command, socket), socket: socket.display().to_string() }
    }

    /// As it is named on the VMM's command line.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.server.process().signal(signal);
    }

    /// Waits until it has printed `word`.
    pub fn wait_for(&self, word: &str) {
        let said = eventually(HANGS, || self.server.process().stdout().contains(word));
        assert!(said, "the device never said {word:?}");
    }
}

/// A device that listened is killed; what it listened on is a file that it cannot take away then.
impl Drop for Device {
    fn drop(&mut self) {
        // It may have taken it away itself.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A VMM with `device` and the bare-metal payload, which runs `checks`.
pub fn boot(options: &Options, device: &Device, checks: &str) -> Process {
    let directory = Path::new(device.socket()).parent().expect("it is in a directory");
    let mut command = Command::new(&options.outrigger);
    command
        .args(["run", "--memory", "64M", "--cmdline", &format!("checks={checks}"), "--kernel"])
        .arg(&options.payload);
    command.args(["--cpus", if checks == "disabled" { "2" } else { "1" }]);
    command.args(["--device", &format!("socket={}", device.socket())]);
    // A place where it would be seen if something were left.
    command.current_dir(directory).env("TMPDIR", directory).env("HOME", directory);
    Process::start_with_input(&mut command, HANGS)
}

/// Sends the signal by which the VMM gets its own vCPUs out of the guest: to the thread of the first vCPU, or to the process.
pub fn kick(vmm: &Process, thread: bool) {
    let pid = vmm.pid().as_raw();
    let target = if thread { vcpu_thread(pid) } else { pid };
    // SAFETY: the calls take numbers only. The VMM is a child that was not waited for, so the number is still its own.
    let result = unsafe {
        match thread {
            true => libc::syscall(libc::SYS_tgkill, pid, target, libc::SIGRTMIN()),
            false => libc::kill(target, libc::SIGRTMIN()).into(),
        }
    };
    assert_eq!(result, 0, "a child that runs can be signalled");
}

fn vcpu_thread(pid: i32) -> i32 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the VMM runs");
    let vcpu = tasks
        .flatten()
        .find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == "vcpu0"));
    let name = vcpu.expect("a VMM with a guest has a thread for its vCPU").file_name();
    name.to_str().and_then(|name| name.parse().ok()).expect("threads have numbers")
}
