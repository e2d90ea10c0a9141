//! Why the guest cannot have a device, and whose fault that is.

use std::io;
use std::process::ExitStatus;

use outrigger_process::launch::{EXIT_HOST, EXIT_USAGE};

use super::connect::ConnectError;
use crate::attach::AttachError;
use crate::attach::serving::ServiceError;
use crate::control::launcher::SpawnError;
use crate::control::outcome::{STATUS_HOST, STATUS_USAGE};
use crate::control::processes::ending;
use crate::machine::kvm_vfio::TieError;

/// A device that the guest cannot have.
#[derive(Debug, thiserror::Error)]
#[error("{label}: {problem}")]
pub struct PeripheralError {
    pub(super) label: String,
    pub(super) problem: Problem,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{}", chain(.0))]
    Spawn(SpawnError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error("{}", chain(.0))]
    Attach(AttachError),
    #[error("{}", chain(.0))]
    Service(ServiceError),
    #[error("{}", chain(.0))]
    Tie(TieError),
    /// Its successor would not have the device.
    #[error(
        "restart: a physical device can be restarted only by the outrigger that opened it, and not by iommufd \
         (--vfio ADDRESS,iommu=container); leave restart out"
    )]
    NoRestart,
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The process has said itself what is wrong.
    #[error("its process {} before it served the device", ending(*.0))]
    Exited(ExitStatus),
    /// The process before it cannot be got rid of.
    #[error("process {0} was killed and is held by the kernel, in I/O perhaps")]
    Predecessor(u32),
    #[error("cannot make a journal: {0}")]
    Journal(io::Error),
    /// A process that is no successor of the one before; the text goes on after its name.
    #[error("its process {0}")]
    Other(String),
}

impl From<AttachError> for Problem {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl PeripheralError {
    /// The exit status that says whose fault it is.
    #[must_use]
    pub fn status(&self) -> u8 {
        match &self.problem {
            Problem::Spawn(SpawnError::Start { .. }) => STATUS_USAGE,
            Problem::Spawn(_) => STATUS_HOST,
            Problem::Connect(_) => STATUS_USAGE,
            // The command line names no device process, or not one that can be used.
            Problem::Attach(AttachError::Client(_) | AttachError::Device(_) | AttachError::Bar(_)) => STATUS_USAGE,
            Problem::Attach(_) | Problem::Service(_) | Problem::Thread(_) => STATUS_HOST,
            // The device program's own word; another status is that of a program that is none.
            Problem::Exited(status) if has_told(*status) => {
                status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(STATUS_USAGE)
            }
            Problem::Exited(_) | Problem::Other(_) => STATUS_USAGE,
            Problem::NoRestart => STATUS_USAGE,
            Problem::Tie(TieError::Unbound(error)) if error.is_in_use() => STATUS_USAGE,
            Problem::Journal(_) | Problem::Predecessor(_) | Problem::Tie(_) => STATUS_HOST,
        }
    }

    /// Whether the user has been told already, by the device process itself.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.problem.is_told()
    }
}

impl Problem {
    /// Whether every other process would fail likewise.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Spawn(error) if error.is_final())
    }

    /// Whether the device process itself has told the user.
    pub(super) fn is_told(&self) -> bool {
        matches!(self, Self::Exited(status) if has_told(*status))
    }
}

/// Whether a device program ends with this status after it has told the user why.
fn has_told(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| [EXIT_USAGE, EXIT_HOST].map(i32::from).contains(&code))
}

/// An error and all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use outrigger_iommufd::{BindError, Step};

    use super::*;

    #[test]
    fn a_device_in_use_is_the_users_to_free() {
        let begin = "x: dma=vmm: the device's file cannot be bound to an iommufd: ";
        for (step, errno, status, end) in [
            (Step::Bind, Errno::EINVAL, STATUS_USAGE, "in use by another process"),
            (Step::Bind, Errno::EBUSY, STATUS_USAGE, "in use by another process"),
            (Step::Bind, Errno::ENOTTY, STATUS_HOST, "VFIO_DEVICE_BIND_IOMMUFD: Not a typewriter"),
            (Step::Attach, Errno::EBUSY, STATUS_HOST, "VFIO_DEVICE_ATTACH_IOMMUFD_PT: Device or resource busy"),
        ] {
            let problem = Problem::Tie(TieError::Unbound(BindError { step, errno }));
            let error = PeripheralError { label: "x".to_owned(), problem };
            assert_eq!((error.status(), error.to_string()), (status, format!("{begin}{end}")));
        }
    }
}
