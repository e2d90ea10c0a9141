//! A device process from its arguments to its end.

mod arguments;
mod by_hand;
mod sealing;

use std::fmt::Display;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use log::warn;
use nix::sys::signal::Signal;
use outrigger_process::crew::Role;
use outrigger_process::launch::{self, EXIT_HOST, EXIT_USAGE};
use outrigger_process::options::one_line;
use outrigger_process::seal::{self, Sandbox};
use outrigger_process::{heap, inherited, output};
use outrigger_protocol::server::{Options, ServeError, serve};

use crate::crew::Needs;
use crate::sandbox::{Clients, Profile};
use crate::transport::{Iommu, PciFunction, VirtioDevice};

pub use arguments::{Endpoint, SealedService, Service, parse};
use by_hand::{Place, listen};
use sealing::seal;

/// How long standard error may take to accept the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Why a device could not be opened, in one line for the user.
pub trait StartError: Display {
    /// Whether the user asked for something sensible that this host does not give.
    fn is_lack_of_host(&self) -> bool;
}

/// A device that a process serves to its clients, one after the other.
pub trait Server: 'static {
    /// The threads that it needs.
    fn needs(&self) -> Needs;

    /// The profile under which it is sealed; none: it opens files while it serves.
    fn profile(&self) -> Option<Profile> {
        None
    }

    /// Makes what belongs to a thread of this role. Runs on each of them, once, before anybody is served.
    ///
    /// # Errors
    /// The host lacks something.
    fn prepare_thread(_role: Role) -> io::Result<()> {
        Ok(())
    }

    /// Serves one client until it leaves.
    fn serve(&mut self, stream: UnixStream, options: &Options) -> Result<(), ServeError>;
}

impl<D: VirtioDevice> Server for PciFunction<D> {
    fn needs(&self) -> Needs {
        PciFunction::needs(self)
    }

    fn profile(&self) -> Option<Profile> {
        PciFunction::profile(self)
    }

    fn prepare_thread(role: Role) -> io::Result<()> {
        if role == Role::Queue { D::prepare_thread() } else { Ok(()) }
    }

    fn serve(&mut self, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
        serve(self, stream, options)
    }
}

/// A process that does not start: the line for the user, and the exit status.
type Refusal = (String, u8);

/// Runs the process of a virtio device: the whole of `main` after parsing its arguments.
pub fn run<D: VirtioDevice, E: StartError>(
    program: &'static str,
    SealedService { service, sandbox }: &SealedService,
    open: impl FnOnce() -> Result<D, E>,
) -> ExitCode {
    let make = |device: D, iommu| {
        device.prepare().map_err(host)?;
        PciFunction::new(device, iommu).map_err(|error| host(format!("cannot have an eventfd per queue: {error}")))
    };
    start(program, service, *sandbox, Steps { open: || open().map_err(refusal), make })
}

/// The same for a device that serves its clients in its own way, and is not sealed with --socket.
pub fn run_server<S: Server, E: StartError>(
    program: &'static str,
    service: &Service,
    open: impl FnOnce() -> Result<S, E>,
) -> ExitCode {
    start(program, service, Sandbox::Off, Steps { open: || open().map_err(refusal), make: |server, _| Ok(server) })
}

/// From nothing to a device that can be served.
struct Steps<O, M> {
    /// Opens what the options name.
    open: O,
    /// Makes the rest, in the process that will serve: a ring is not there in a child.
    make: M,
}

/// `sandbox` is for --socket; with --fd, the environment says so.
fn start<T, S: Server>(
    program: &'static str,
    service: &Service,
    sandbox: Sandbox,
    steps: Steps<impl FnOnce() -> Result<T, Refusal>, impl FnOnce(T, Iommu) -> Result<S, Refusal>>,
) -> ExitCode {
    heap::share();
    output::init(program);
    // Until it is sealed it has no second thread.
    output::hold();
    let options = service.options();
    let prepared = inherited::normalize().map_err(|error| host(format!("cannot set signals and limits: {error}")));
    let result = prepared.and_then(|()| match &service.endpoint {
        Endpoint { socket: Some(path), .. } => {
            listen(Place { path, access: service.access() }, sandbox, &options, steps)
        }
        Endpoint { fd: Some(fd), .. } => inherited(*fd, &options, steps),
        _ => Err(usage("--socket PATH or --fd N is missing")),
    });
    let status = result.unwrap_or_else(|(message, status)| {
        output::tell(one_line(&message));
        ExitCode::from(status)
    });
    output::finish(LAST_LINES);
    status
}

fn inherited<T, S: Server>(
    fd: RawFd,
    options: &Options,
    steps: Steps<impl FnOnce() -> Result<T, Refusal>, impl FnOnce(T, Iommu) -> Result<S, Refusal>>,
) -> Result<ExitCode, Refusal> {
    let stream = inherited_socket(fd).map_err(|error| usage(format!("--fd {fd}: {error}")))?;
    // The VMM decides when this process ends, by closing the socket: an interrupt typed at their common terminal is
    // for it alone.
    // SAFETY: ignoring a signal runs no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGINT, nix::sys::signal::SigHandler::SigIgn) }
        .map_err(|error| host(format!("cannot ignore SIGINT: {error}")))?;
    seal::end_by_sigterm().map_err(|error| host(format!("cannot handle SIGTERM: {error}")))?;
    let sandbox = launch::sandbox().map_err(usage)?.unwrap_or(Sandbox::Off);
    let mut server = (steps.make)((steps.open)()?, Iommu::Absent)?;
    let options = Options { sandbox: seal(&server, sandbox, Clients::One)?, ..options.clone() };
    match server.serve(stream, &options) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            warn!("the client is gone: {}", chain(&error));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn refusal(error: impl StartError) -> Refusal {
    if error.is_lack_of_host() { host(error) } else { usage(error) }
}

fn usage(message: impl Display) -> Refusal {
    (message.to_string(), EXIT_USAGE)
}

fn host(message: impl Display) -> Refusal {
    (message.to_string(), EXIT_HOST)
}

/// Takes over a descriptor that was inherited.
fn inherited_socket(fd: RawFd) -> io::Result<UnixStream> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    if fd < 0 || (fd > 2 && !Path::new(&format!("/proc/self/fd/{fd}")).exists()) {
        return Err(io::Error::other("is not open"));
    }
    // SAFETY: the descriptor is open (0 to 2 always are: the standard library sees to it at start-up), it was inherited
    // as nothing in this process has opened descriptors yet, and the user gave it to us by its number.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let kind = getsockopt(&owned, sockopt::SockType).map_err(|error| match error {
        nix::errno::Errno::ENOTSOCK => io::Error::other("is not a socket"),
        other => other.into(),
    })?;
    if kind != SockType::Stream {
        return Err(io::Error::other("is not a stream socket"));
    }
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(owned.into())
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
