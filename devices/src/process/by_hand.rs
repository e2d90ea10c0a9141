//! A device process that somebody has started by hand: it listens on a path, and serves one client after the other, until a signal
//! ends it.
//!
//! The process that was started binds the socket, and stays outside to remove it; its child serves, and is sealed
//! ([`outrigger_process::guardian`]).

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use log::{info, warn};
use nix::sys::signal::{SigSet, Signal};
use outrigger_process::crew::{self, Role};
use outrigger_process::guardian::go_on_in_child;
use outrigger_process::seal::Sandbox;
use outrigger_process::{inherited, output};
use outrigger_protocol::server::{Access, ListenError, Listener, Options};

use super::sealing::seal;
use super::{Refusal, Server, Steps, chain, host, usage};
use crate::sandbox::Clients;
use crate::transport::Iommu;

/// How long standard error may take to accept the last lines of a process that was told to end.
const LAST_LINES: Duration = Duration::from_millis(100);

/// Where a process listens, and for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub path: &'a Path,
    pub access: Access,
}

/// Only errors before the first client are returned, as one line each.
pub(super) fn listen<T, S: Server>(
    place: Place<'_>,
    sandbox: Sandbox,
    options: &Options,
    steps: Steps<impl FnOnce() -> Result<T, Refusal>, impl FnOnce(T, Iommu) -> Result<S, Refusal>>,
) -> Result<ExitCode, Refusal> {
    // Before there are threads, so that they all inherit it.
    let signals = block_signals().map_err(|error| host(format!("cannot block signals: {error}")))?;
    let callers = if sandbox == Sandbox::Off { Vec::new() } else { inherited::callers_files() };
    let opened = (steps.open)()?;
    // A path may have led to one of them; the device is open by one of its own.
    callers.into_iter().for_each(close_callers);
    let mut listener = Listener::bind_for(place.path, place.access).map_err(|error| cannot_listen(&error))?;
    let file = listener.take_path();
    let remove = || file.iter().for_each(|file| file.remove());
    let guardian = go_on_in_child(&signals, sandbox != Sandbox::Off, remove);
    let guardian =
        guardian.inspect_err(|_| remove()).map_err(|error| host(format!("cannot make a process: {error}")))?;
    // Any client may come.
    let mut server = (steps.make)(opened, Iommu::Possible)?;
    let options = Options { sandbox: seal(&server, sandbox, Clients::Many)?, ..options.clone() };
    guardian.check().map_err(host)?;
    end_by_signal(signals).map_err(|error| host(format!("cannot start a thread: {error}")))?;
    info!("listening on {}", place.path.display());
    loop {
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) => {
                warn!("cannot accept clients any more: {error}");
                return Ok(ExitCode::FAILURE);
            }
        };
        info!("a client is here");
        match server.serve(stream, &options) {
            Ok(()) => info!("the client has left"),
            Err(error) => warn!("the client is gone: {}", chain(&error)),
        }
    }
}

/// Closes a descriptor that the caller has left open.
fn close_callers(number: RawFd) {
    // SAFETY: nothing in this process has made it, nor uses it.
    unsafe { libc::close(number) };
}

fn cannot_listen(error: &ListenError) -> Refusal {
    let line = format!("--socket {}", chain(error));
    match error {
        ListenError::Owner(..) => host(line),
        _ => usage(line),
    }
}

fn block_signals() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    // A signal that the caller had ignored stays so; blocked, it would come all the same.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        if !inherited::is_ignored(signal) {
            signals.add(signal);
        }
    }
    signals.thread_block()?;
    Ok(signals)
}

fn end_by_signal(signals: SigSet) -> io::Result<()> {
    let wait = move || {
        let signal = signals.wait();
        info!("ending: {signal:?}");
        output::finish(LAST_LINES);
        // At once, whatever other threads are at. The kernel ends the workers' I/O, releases locks and takes the tap away.
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    };
    crew::spawn(Role::Signals, "signals", wait).map(drop)
}
