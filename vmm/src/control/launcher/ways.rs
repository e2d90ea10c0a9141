//! The namespaces that a device process starts in.
//!
//! Only the maker of a process can put it into a new PID namespace (pid_namespaces(7)), so this layer of the sandbox is the launcher's:
//! the process sees none but its own children, and those end with it. It takes `CAP_SYS_ADMIN`.

use nix::sched::CloneFlags;
use outrigger_process::seal::Sandbox;

/// A way to start a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// In a PID namespace of its own.
    OwnProcesses,
    /// In the namespaces of this process.
    Plain,
}

impl Way {
    pub(super) fn namespaces(self) -> CloneFlags {
        match self {
            Self::OwnProcesses => CloneFlags::CLONE_NEWPID,
            Self::Plain => CloneFlags::empty(),
        }
    }
}

/// The ways to start a program, best first.
pub(super) fn ways(sandbox: Sandbox) -> &'static [Way] {
    match sandbox {
        Sandbox::Off => &[Way::Plain],
        Sandbox::On | Sandbox::Require => &[Way::OwnProcesses, Way::Plain],
    }
}
