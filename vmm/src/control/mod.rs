//! The thread that owns signals and the end of the run, and does nothing else.
//!
//! It waits for nobody: it shuts sockets down, signals processes, and ends this one when the time is up, whatever the
//! other threads are waiting for.
//!
//! | moment | what it does |
//! |---|---|
//! | a device process stops, goes on or ends | lets the device's own thread know |
//! | a signal that ends the run, Ctrl-A x, or a stop by the control socket | requests the end, ends every connection, SIGTERM to every device process |
//! | [`TERM`] later | SIGKILL to every device process that is left |
//! | [`LIMIT`] after the signal, or a second SIGTERM or SIGINT | ends this process |
//!
//! In the good case the main thread has ended the process before. Before the guest runs there is nothing to finish, so
//! all of it goes faster.

pub mod api;
pub(crate) mod connections;
pub(crate) mod launcher;
pub mod outcome;
pub(crate) mod processes;
pub(crate) mod signals;

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use outrigger_process::output;
use outrigger_process::seal::{self, Capability};
use outrigger_protocol::server::Listener;

use crate::config::Config;
use crate::console::terminal::Terminal;
use crate::control::connections::Connections;
use crate::control::launcher::Launcher;
use crate::control::outcome::{Outcome, STATUS_FAILED, Stop};
use crate::control::processes::Processes;
use crate::control::signals::{Signals, SignalsError};

/// How long device processes may take to end after SIGTERM.
pub const TERM: Duration = Duration::from_millis(300);
/// When a run ends at the latest, counted from the signal.
const LIMIT: Duration = Duration::from_millis(900);
/// The same before the guest runs.
const LIMIT_AT_START: Duration = Duration::from_millis(300);
/// How long the last lines may take to be written.
const LAST_LINES: Duration = Duration::from_millis(50);
/// How often an end that the guest asked for is looked at: the user may ask as well.
const TICK: Duration = Duration::from_millis(100);
/// The capabilities of root that this process and all its threads keep. Device processes are started by the launcher, which has all.
const KEPT: [Capability; 5] = [
    // Kernel, initial RAM disk, the console's file, sockets: the user names them, whoever's they are.
    Capability::CAP_DAC_OVERRIDE,
    // A socket of an earlier run is removed from a directory like /tmp, whoever's it is.
    Capability::CAP_FOWNER,
    // Device processes have another user.
    Capability::CAP_KILL,
    // Guest RAM is mapped for physical devices, beyond the limit of locked memory.
    Capability::CAP_IPC_LOCK,
    // Descriptors are sent however many of this user's a server has left unreceived (Linux, net/unix, `too_many_unix_fds`): one that
    // does so holds up no other device.
    Capability::CAP_SYS_RESOURCE,
];
/// A few frames and a line of text.
const STACK: usize = 64 << 10;

/// No control thread.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no launcher.
    #[error("cannot start the process that starts device processes")]
    Launcher(#[source] io::Error),
    /// Privileges cannot be given up.
    #[error("cannot give up capabilities")]
    Privileges(#[source] io::Error),
    /// Signals cannot be taken over.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// No thread or no eventfd.
    #[error("cannot start the thread that ends the run")]
    Start(#[source] io::Error),
}

/// Handles for the control thread, and for all who take part in the run's end.
#[derive(Clone)]
pub struct Control {
    /// The wish to end the run.
    pub stop: Stop,
    /// Every connection to a device process.
    pub connections: Connections,
    /// Every device process that this one has started.
    pub processes: Processes,
    /// Has them started.
    pub launcher: Launcher,
    terminal: Arc<OnceLock<Arc<Terminal>>>,
    guest_runs: Arc<AtomicBool>,
    socket: Arc<OnceLock<Arc<Listener>>>,
}

impl Control {
    /// Makes the run's launcher, gives up privileges but [`KEPT`], takes over signals and starts the thread. Call it before the process has any other thread.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn start(config: &Config) -> Result<Self, ControlError> {
        let launcher = Launcher::begin(config).map_err(ControlError::Launcher)?;
        seal::keep_only(&KEPT).map_err(ControlError::Privileges)?;
        let signals = Signals::block()?;
        let control = Self { launcher, ..Self::without_thread().map_err(ControlError::Start)? };
        let own = control.clone();
        let thread = thread::Builder::new().name("control".into()).stack_size(STACK);
        thread.spawn(move || own.run(&signals)).map_err(ControlError::Start)?;
        Ok(control)
    }

    /// The same without thread and launcher, for a caller whose signals are its own.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn without_thread() -> io::Result<Self> {
        Ok(Self {
            stop: Stop::new()?,
            connections: Connections::default(),
            processes: Processes::default(),
            launcher: Launcher::default(),
            terminal: Arc::default(),
            guest_runs: Arc::default(),
            socket: Arc::default(),
        })
    }

    /// The terminal to restore when the run ends, and around a stop from the shell.
    pub fn set_terminal(&self, terminal: Arc<Terminal>) {
        // There is one terminal in a run.
        let _ = self.terminal.set(terminal);
    }

    /// From now on there is a guest, whose devices may have something to finish.
    pub fn guest_runs(&self) {
        self.guest_runs.store(true, Ordering::SeqCst);
    }

    /// Whether [`guest_runs`](Self::guest_runs) was called.
    pub(crate) fn does_guest_run(&self) -> bool {
        self.guest_runs.load(Ordering::SeqCst)
    }

    /// The control socket, to be removed however the run ends.
    pub(crate) fn set_socket(&self, listener: Arc<Listener>) {
        // There is one in a run.
        let _ = self.socket.set(listener);
    }

    fn run(&self, signals: &Signals) {
        let mut ending: Option<Ending> = None;
        loop {
            let now = Instant::now();
            if ending.is_none() && self.stop.is_users() {
                ending = Some(self.begin_end(now));
            }
            if let Some(ending) = &mut ending {
                self.go_on(ending, now);
            }
            self.wait(signals, ending.as_ref(), now);
            for signal in signals.read() {
                match signal {
                    Signal::SIGTSTP => signals.stop_process(self.terminal.get()),
                    Signal::SIGCHLD => self.processes.notice(),
                    Signal::SIGCONT => self.terminal.get().into_iter().for_each(|terminal| terminal.set_raw()),
                    Signal::SIGTERM | Signal::SIGINT if ending.is_some() => self.end_process(),
                    signal => {
                        self.stop.request(Outcome::Interrupted(signal));
                        // A second one that is there already counts as one.
                        ending.get_or_insert_with(|| self.begin_end(Instant::now()));
                    }
                }
            }
        }
    }

    fn wait(&self, signals: &Signals, ending: Option<&Ending>, now: Instant) {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = match ending {
            Some(ending) => ending.next().saturating_duration_since(now) + Duration::from_millis(1),
            None if self.stop.requested() => TICK,
            None => {
                fds.push(PollFd::new(self.stop.as_fd(), PollFlags::POLLIN));
                Duration::MAX
            }
        };
        // Fails with EINTR only; what has come is found all the same.
        let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::NONE));
    }

    fn begin_end(&self, now: Instant) -> Ending {
        self.connections.end_all();
        self.processes.begin_end();
        self.processes.signal_all(Signal::SIGTERM);
        // A process that is stopped does not take it otherwise.
        self.processes.signal_all(Signal::SIGCONT);
        let (term, limit) = match self.does_guest_run() {
            true => (TERM, LIMIT),
            false => (LIMIT_AT_START / 3, LIMIT_AT_START),
        };
        Ending { kill: Some(now + term), limit: now + limit }
    }

    fn go_on(&self, ending: &mut Ending, now: Instant) {
        if ending.kill.take_if(|kill| *kill <= now).is_some() {
            self.processes.signal_all(Signal::SIGKILL);
        }
        if ending.limit <= now {
            self.processes.name_the_rest();
            self.end_process();
        }
    }

    /// Ends this process without waiting for any other thread. The kernel ends its children.
    fn end_process(&self) -> ! {
        self.processes.signal_all(Signal::SIGKILL);
        if let Some(terminal) = self.terminal.get() {
            terminal.restore();
        }
        self.remove_socket();
        output::finish(LAST_LINES);
        let status = self.stop.outcome().map_or(STATUS_FAILED, |outcome| outcome.status());
        // SAFETY: ends the process; nothing of it is used afterwards.
        unsafe { libc::_exit(status.into()) }
    }
}

impl Control {
    /// Removes the control socket on a thread of its own: the file system may be one that does not answer.
    fn remove_socket(&self) {
        let Some(listener) = self.socket.get().cloned() else { return };
        let (removing, removed) = channel::<()>();
        let body = move || {
            let _removing = removing;
            listener.remove();
        };
        if thread::Builder::new().name("remove".into()).stack_size(STACK).spawn(body).is_ok() {
            // Nothing is ever sent: it is the sender that goes.
            let _ = removed.recv_timeout(LAST_LINES);
        }
    }
}

/// An end that the user has asked for.
struct Ending {
    /// When the device processes that are left are killed.
    kill: Option<Instant>,
    limit: Instant,
}

impl Ending {
    fn next(&self) -> Instant {
        self.kill.unwrap_or(self.limit)
    }
}
