//! A run: from a checked configuration to the guest's end.

use std::error::Error;
use std::io;

use outrigger_process::output;

use outrigger_process::options::one_line;

use crate::attach::watch::WatchError;
use crate::builder::{BuildError, Machine};
use crate::config::{Config, UsageError};
use crate::console::{Console, ConsoleError};
use crate::events::{EventLoop, EventsError};
use crate::outcome::{Outcome, STATUS_FAILED, STATUS_HOST, STATUS_USAGE, Stop};
use crate::signals::{Signals, SignalsError};

/// Why there is no run, or it ended other than by its guest's or user's wish.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file named on the command line cannot be used.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The console cannot be connected.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// Signals cannot be taken over.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// The machine cannot be made or started.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The event loop cannot be made, or failed.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// A device cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// No eventfd for [`Stop`].
    #[error("cannot prepare for the end of the run")]
    Stop(#[source] io::Error),
}

impl RunError {
    /// The exit status that says whose fault it is.
    pub fn status(&self) -> u8 {
        match self {
            RunError::Usage(_) | RunError::Console(ConsoleError::Create { .. }) => STATUS_USAGE,
            // Descriptors, threads, memory: each is the host's to give.
            RunError::Console(ConsoleError::Connect(_))
            | RunError::Signals(_)
            | RunError::Stop(_)
            | RunError::Watch(_) => STATUS_HOST,
            RunError::Events(EventsError::Wait(_)) => STATUS_FAILED,
            RunError::Events(_) => STATUS_HOST,
            RunError::Build(error) => error.status(),
        }
    }

    /// Whether a device process has told the user already.
    pub fn is_told(&self) -> bool {
        matches!(self, RunError::Build(BuildError::Peripheral(error)) if error.is_told())
    }

    /// The error and all its causes in one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(&format!(": {error}"));
            cause = error.source();
        }
        one_line(&line)
    }
}

/// Boots the guest and stays until it ends. When this returns, whatever it started has ended, and the terminal is as it
/// was before.
///
/// Call it before the process has any other thread: the signals that end a run are blocked in this one and in those it
/// starts.
///
/// # Errors
/// [`RunError`], whose [`status`](RunError::status) tells a user's mistake from a host's lack.
pub fn run(config: &Config) -> Result<Outcome, RunError> {
    config.check_files()?;
    let signals = Signals::block()?;
    let stop = Stop::new().map_err(RunError::Stop)?;
    let mut events = EventLoop::new()?;
    let mut console = Console::open(&config.console)?;
    signals.watch(&mut events, stop.clone(), console.terminal().cloned())?;
    let mut machine = Machine::build(config, console.serial(), stop.clone())?;

    machine.peripherals.watch(&mut events, &stop)?;
    if config.show_devices {
        output::print(format_args!("{}", machine.peripherals.describe()));
    }

    console.start(&stop)?;
    let ran = machine.start().map_err(RunError::from).and_then(|()| Ok(events.run(&stop)?));
    // Says so to threads that still run after an error; otherwise the run's outcome is known already.
    let failed = || Outcome::Failed { report: "the run failed".to_owned() };
    stop.request(failed());
    machine.peripherals.notice_deaths(&stop);
    machine.stop();
    if config.stats {
        output::print(format_args!("{}", machine.stats()));
    }
    console.finish();
    ran.map(|()| stop.outcome().unwrap_or_else(failed))
}
