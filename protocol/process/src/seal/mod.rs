//! The layers that a device process puts around itself once its device is open: one that is taken over has that device.
//!
//! [`confine`] is to be called by the only thread of a process, after it has opened what its options name: threads that it
//! starts afterwards inherit all of it. Each layer holds by itself; a kernel, or a container around this process, that does
//! not permit one of them leaves the others in force.
//!
//! | module | layers |
//! |---|---|
//! | `namespaces` | user, mount (an empty root that cannot be written), network, IPC, UTS and cgroup namespaces; that of processes is made by whoever starts this one ([`crate::fork::sibling`], [`crate::guardian`]) |
//! | `user` | an unprivileged user, no capability in any set, `no_new_privs`; death with the parent, which a change of user undoes |
//! | `landlock` | no path, no port, no signal and no abstract socket beyond this process |
//! | [`filter`] | the system calls of each kind of thread |
//! | `limits` | few descriptors, no core dump, no look from outside into memory; an empty environment |

pub mod filter;
mod landlock;
mod layer;
mod limits;
pub(crate) mod namespaces;
mod user;

use std::ffi::c_int;
use std::io;
use std::str::FromStr;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Uid;

pub use self::namespaces::map as map_user;
pub use self::user::{has_privileges, is_privileged, keep_only};
use crate::inherited;
use crate::links::{self, Reach};
pub use caps::Capability;

pub use layer::{Layer, Missing, line};

/// Whether a process seals itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the host permits; what is missing is said in one line.
    #[default]
    On,
    /// Completely, or the process does not start.
    Require,
    /// Not at all: for debugging.
    Off,
}

impl Sandbox {
    /// As it is written in an option.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Require => "require",
            Self::Off => "off",
        }
    }
}

impl FromStr for Sandbox {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "on" => Ok(Self::On),
            "require" => Ok(Self::Require),
            "off" => Ok(Self::Off),
            _ => Err("must be on, require or off"),
        }
    }
}

/// Puts the layers around this process that the [module](self) describes; returns those that are missing. No file can
/// become longer than `file_size`, but for the one that standard error may be.
///
/// # Errors
/// There is a second thread, which would stay outside; or the parent has died meanwhile.
pub fn confine(file_size: u64) -> io::Result<Vec<Missing>> {
    if threads()? != 1 {
        return Err(io::Error::other("a second thread would stay outside"));
    }
    let parent = user::Parent::of_this_process()?;
    let mut missing = Vec::new();
    let mut layer = |layer: Layer, result: io::Result<()>| {
        if let Err(error) = result {
            missing.push(Missing::new(layer, error));
        }
    };
    layer(Layer::Limits, limits::lower(file_size));
    // Root makes the others as root, and gives up its user before this one. Any other user makes them as the owner of this one.
    let was_root = Uid::effective().is_root();
    if !was_root {
        layer(Layer::UserNamespace, namespaces::own_user());
    }
    // The parent puts it there.
    let is_first = std::process::id() == 1;
    layer(Layer::PidNamespace, if is_first { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) });
    namespaces::leave_others(&mut layer);
    // Where there is no mount namespace, `/proc` is still there.
    links::keep(Reach::Host)?;
    layer(Layer::User, user::change());
    if was_root {
        layer(Layer::UserNamespace, namespaces::own_user());
    }
    layer(Layer::NoCapabilities, user::drop_capabilities());
    layer(Layer::Landlock, landlock::restrict());
    limits::forget_environment();
    // Last: a change of user or capabilities sets both back.
    layer(Layer::NoDump, limits::forbid_dumps());
    parent.die_with_it()?;
    Ok(missing)
}

/// Ends by SIGTERM from now on, as the first process of a PID namespace, too, which ignores a signal that it does not handle.
///
/// # Errors
/// The system does not take the handler, which is not expected.
pub fn end_by_sigterm() -> io::Result<()> {
    if inherited::is_ignored(Signal::SIGTERM) {
        return Ok(());
    }
    extern "C" fn end(signal: c_int) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(128 + signal) }
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing but end the process.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    Ok(())
}

pub(crate) fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}
