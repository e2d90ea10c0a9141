//! A device process from its arguments to its end.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::{info, warn};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use outrigger_process::crew::Role;
use outrigger_process::launch::{self, EXIT_HOST, EXIT_USAGE};
use outrigger_process::options::one_line;
use outrigger_process::seal::filter::{self, Filter};
use outrigger_process::seal::{self, Missing, Sandbox};
use outrigger_process::{crew, heap, inherited, output};
use outrigger_protocol::capabilities::DEFAULT_MAX_DATA_XFER_SIZE;
use outrigger_protocol::server::{Listener, Options, ServeError, serve};

use crate::crew::{Needs, enlist};
use crate::sandbox::{self, Kind, Profile};
use crate::transport::{Iommu, PciFunction, VirtioDevice};

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

/// How the client reaches the device.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Endpoint {
    /// Listen on this path; serve one client after the other
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Serve the client at the other end of this inherited socket, whose guest has no IOMMU; exit when it leaves
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,
}

/// How the device is served.
#[derive(Clone, Debug, clap::Args)]
pub struct Service {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Most data in one message, 1 to 1048576; matters where the client does not share its memory
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_DATA_XFER_SIZE,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(DEFAULT_MAX_DATA_XFER_SIZE)))]
    max_data_xfer_size: u32,
}

impl Service {
    /// Whether the client at the other end of an inherited socket is the only one.
    #[must_use]
    pub fn has_one_client(&self) -> bool {
        self.endpoint.fd.is_some()
    }
}

/// Reads the command line; what is wrong with it is told in one line. Help and version go to standard output.
pub fn parse<A: clap::Parser>(program: &str) -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // The first paragraph says what is wrong; what clap puts below is in the help.
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let words: Vec<_> = first.split_whitespace().collect();
        let _ = writeln!(io::stderr(), "{program}: {} (see {program} --help)", words.join(" "));
        ExitCode::from(EXIT_USAGE)
    })
}

/// Runs the process of a virtio device: the whole of `main` after parsing its arguments.
pub fn run<D: VirtioDevice, E: StartError>(
    program: &'static str,
    service: &Service,
    open: impl FnOnce() -> Result<D, E>,
) -> ExitCode {
    start(program, service, |iommu| {
        let device = open().map_err(refusal)?;
        device.prepare().map_err(host)?;
        PciFunction::new(device, iommu).map_err(|error| host(format!("cannot have an eventfd per queue: {error}")))
    })
}

/// The same for a device that serves its clients in its own way.
pub fn run_server<S: Server, E: StartError>(
    program: &'static str,
    service: &Service,
    open: impl FnOnce() -> Result<S, E>,
) -> ExitCode {
    start(program, service, |_| open().map_err(refusal))
}

fn start<S: Server>(
    program: &'static str,
    service: &Service,
    open: impl FnOnce(Iommu) -> Result<S, Refusal>,
) -> ExitCode {
    heap::share();
    output::init(program);
    // Until it is sealed it has no second thread.
    output::hold();
    let options = Options { max_data_xfer_size: service.max_data_xfer_size, ..Options::default() };
    let prepared = inherited::normalize().map_err(|error| host(format!("cannot set signals and limits: {error}")));
    let result = prepared.and_then(|()| match &service.endpoint {
        Endpoint { socket: Some(path), .. } => listen(path, &options, open),
        Endpoint { fd: Some(fd), .. } => inherited(*fd, &options, open),
        _ => Err(usage("--socket PATH or --fd N is missing")),
    });
    let status = result.unwrap_or_else(|(message, status)| {
        output::tell(one_line(&message));
        ExitCode::from(status)
    });
    output::finish(LAST_LINES);
    status
}

/// Only errors before the first client are returned, as one line each.
fn listen<S: Server>(
    path: &Path,
    options: &Options,
    open: impl FnOnce(Iommu) -> Result<S, Refusal>,
) -> Result<ExitCode, Refusal> {
    // Before there are threads, so that they all inherit it.
    let signals = block_signals().map_err(|error| host(format!("cannot block signals: {error}")))?;
    // Any client may come.
    let mut server = open(Iommu::Possible)?;
    let listener = Listener::bind(path).map_err(|error| usage(format!("--socket {}", chain(&error))))?;
    let listener = Arc::new(listener);
    make_threads(&server, true, None)?;
    remove_socket_on_signal(Arc::clone(&listener), signals)
        .map_err(|error| host(format!("cannot start a thread: {error}")))?;
    info!("listening on {}", path.display());
    loop {
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) => {
                warn!("cannot accept clients any more: {error}");
                return Ok(ExitCode::FAILURE);
            }
        };
        info!("a client is here");
        match server.serve(stream, options) {
            Ok(()) => info!("the client has left"),
            Err(error) => warn!("the client is gone: {}", chain(&error)),
        }
    }
}

fn inherited<S: Server>(
    fd: RawFd,
    options: &Options,
    open: impl FnOnce(Iommu) -> Result<S, Refusal>,
) -> Result<ExitCode, Refusal> {
    let stream = inherited_socket(fd).map_err(|error| usage(format!("--fd {fd}: {error}")))?;
    // The VMM decides when this process ends, by closing the socket: an interrupt typed at their common terminal is
    // for it alone.
    // SAFETY: ignoring a signal runs no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGINT, nix::sys::signal::SigHandler::SigIgn) }
        .map_err(|error| host(format!("cannot ignore SIGINT: {error}")))?;
    seal::end_by_sigterm().map_err(|error| host(format!("cannot handle SIGTERM: {error}")))?;
    let sandbox = launch::sandbox().map_err(usage)?.unwrap_or(Sandbox::Off);
    let mut server = open(Iommu::Absent)?;
    seal(&server, sandbox)?;
    match server.serve(stream, options) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            warn!("the client is gone: {}", chain(&error));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Gives up all but the device, which is open, if `sandbox` says so, and makes all threads that this process will ever have.
fn seal<S: Server>(server: &S, sandbox: Sandbox) -> Result<(), Refusal> {
    let profile = match (sandbox, server.profile()) {
        (Sandbox::Off, _) | (Sandbox::On, None) => return make_threads(server, false, None).map(drop),
        (Sandbox::Require, None) => {
            return Err(host("sandbox=require: this program opens files while it serves, and cannot seal itself"));
        }
        (Sandbox::On | Sandbox::Require, Some(profile)) => profile,
    };
    let cannot = |error| host(format!("cannot seal itself: {error}"));
    let mut missing = seal::confine(profile.file_size).map_err(cannot)?;
    filter::name_refused_calls().map_err(cannot)?;
    // From here on a thread can start no other, so this one's filter is the last.
    missing.extend(make_threads(server, false, Some(profile.kind))?);
    missing.extend(missing_filter(sandbox::serving(profile.kind)));
    match (missing.is_empty(), sandbox) {
        (true, _) => {}
        (false, Sandbox::Require) => return Err(host(format!("sandbox=require: {}", seal::line(&missing)))),
        (false, _) => warn!("{}", seal::line(&missing)),
    }
    Ok(())
}

/// Installs a filter on the calling thread; returns what is missing if that fails.
fn missing_filter(filter: io::Result<Filter>) -> Option<Missing> {
    filter.and_then(|filter| filter.install()).err().map(|error| Missing::new("a filter of system calls", error))
}

/// Makes all threads that this process will ever have, each with the filter of its role if they are those of a `sealed`
/// device. Returns what is missing of those.
fn make_threads<S: Server>(server: &S, has_signals: bool, sealed: Option<Kind>) -> Result<Option<Missing>, Refusal> {
    let missing = Arc::new(Mutex::new(None));
    let found = Arc::clone(&missing);
    let prepare = move |role| {
        S::prepare_thread(role)?;
        if let Some(lack) = sealed.and_then(|kind| missing_filter(sandbox::thread(kind, role))) {
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(lack);
        }
        Ok(())
    };
    let made = enlist(server.needs(), has_signals).and_then(|()| crew::close(prepare));
    made.map_err(|error| host(format!("cannot make its threads: {error}")))?;
    output::release();
    Ok(missing.lock().unwrap_or_else(PoisonError::into_inner).take())
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

fn block_signals() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    // A signal that the caller had ignored stays so; blocked, it would come all the same.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        if !inherited::is_ignored(signal) {
            signals.add(signal);
        }
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
    Ok(signals)
}

fn remove_socket_on_signal(listener: Arc<Listener>, signals: SigSet) -> io::Result<()> {
    let wait = move || {
        let signal = signals.wait();
        info!("ending: {signal:?}");
        listener.remove();
        output::finish(Duration::from_millis(100));
        // At once, whatever other threads are at. The kernel ends the workers' I/O, releases locks and takes the tap away.
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    };
    crew::spawn(Role::Signals, "signals", wait).map(drop)
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
