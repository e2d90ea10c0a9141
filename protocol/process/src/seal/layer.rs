//! The layers by name, and those that a host does not permit.

use std::fmt;
use std::io;

/// One layer of the [sandbox](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Few descriptors, no long files, no core dump.
    Limits,
    /// A user namespace that maps this user only.
    UserNamespace,
    /// No other process can be seen.
    PidNamespace,
    /// No network.
    NetworkNamespace,
    /// No message queue or shared memory of others.
    IpcNamespace,
    /// A host name of its own.
    UtsNamespace,
    /// A hierarchy of control groups of its own.
    CgroupNamespace,
    /// An empty root that cannot be written.
    MountNamespace,
    /// Nobody, if root starts it.
    User,
    /// None in any set, and `no_new_privs`.
    NoCapabilities,
    /// No path, port, signal or abstract socket.
    Landlock,
    /// Closed to debuggers.
    NoDump,
    /// The system calls of each thread.
    Filter,
}

impl Layer {
    /// All of them, in the order in which they are put on.
    pub const ALL: [Self; 13] = [
        Self::Limits,
        Self::UserNamespace,
        Self::PidNamespace,
        Self::NetworkNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::MountNamespace,
        Self::User,
        Self::NoCapabilities,
        Self::Landlock,
        Self::NoDump,
        Self::Filter,
    ];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::UserNamespace => "a user namespace",
            Self::PidNamespace => "a PID namespace",
            Self::NetworkNamespace => "a network namespace",
            Self::IpcNamespace => "an IPC namespace",
            Self::UtsNamespace => "a UTS namespace",
            Self::CgroupNamespace => "a cgroup namespace",
            Self::MountNamespace => "a mount namespace",
            Self::User => "an unprivileged user",
            Self::NoCapabilities => "no capabilities",
            Self::Landlock => "Landlock",
            Self::NoDump => "no dump",
            Self::Filter => "a filter of system calls",
        }
    }
}

/// A layer that this host does not permit.
#[derive(Debug)]
pub struct Missing {
    layer: Layer,
    error: io::Error,
}

impl Missing {
    /// `layer`, for the reason that the host gives.
    #[must_use]
    pub fn new(layer: Layer, error: io::Error) -> Self {
        Self { layer, error }
    }

    /// The layer.
    #[must_use]
    pub fn layer(&self) -> Layer {
        self.layer
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.layer.name(), self.error)
    }
}

/// All layers that are missing, in one line.
#[must_use]
pub fn line(missing: &[Missing]) -> String {
    let layers: Vec<String> = missing.iter().map(ToString::to_string).collect();
    format!("the sandbox is incomplete, as this host does not permit: {}", layers.join("; "))
}
