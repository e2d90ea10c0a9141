//! The namespaces that a device process starts in.
//!
//! Only the maker of a process can put it into a new PID namespace (pid_namespaces(7)), so this layer of the sandbox is the launcher's:
//! the process sees none but its own children, and those end with it. It takes `CAP_SYS_ADMIN`, which a user without privileges has
//! in a user namespace.

use std::io;
use std::path::Path;

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use outrigger_process::seal::{self, Sandbox};

/// A way to start a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// In a PID namespace of its own.
    OwnProcesses,
    /// The same, in a user namespace that has this user and this group and no other.
    OwnUser(Uid, Gid),
    /// In the namespaces of this process.
    Plain,
}

impl Way {
    pub(super) fn namespaces(self) -> CloneFlags {
        match self {
            Self::OwnProcesses => CloneFlags::CLONE_NEWPID,
            Self::OwnUser(..) => CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID,
            Self::Plain => CloneFlags::empty(),
        }
    }

    /// Completes the namespaces, in the new process.
    pub(super) fn arrive(self) -> io::Result<()> {
        match self {
            Self::OwnUser(user, group) => seal::map_user(user, group),
            Self::OwnProcesses | Self::Plain => Ok(()),
        }
    }
}

/// The ways to start the program at `path`, best first.
pub(super) fn ways(sandbox: Sandbox, path: &Path) -> Vec<Way> {
    match sandbox {
        Sandbox::Off => vec![Way::Plain],
        // In a user namespace privileges would count for nothing outside of it: those that this process has, or the program is given
        // by its file, it may need to open its device.
        _ if seal::is_privileged() || seal::has_privileges(path) => vec![Way::OwnProcesses, Way::Plain],
        _ => vec![Way::OwnProcesses, Way::OwnUser(Uid::effective(), Gid::effective()), Way::Plain],
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_with_privileges_keeps_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let has_after = |mode| {
            std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            seal::has_privileges(file.path())
        };
        assert_eq!([0o755, 0o4755, 0o2755].map(has_after), [false, true, true]);
        assert!(!seal::has_privileges(Path::new("/nowhere")));
        assert_eq!(ways(Sandbox::Off, file.path()), [Way::Plain]);
        assert_eq!(ways(Sandbox::On, file.path()), [Way::OwnProcesses, Way::Plain]);
    }
}
