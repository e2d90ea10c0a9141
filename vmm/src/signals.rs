//! Signals as events of the main thread: those that end the run, and those by which a shell stops and continues it.
//!
//! They are blocked before any thread starts, so that every thread inherits the mask and only the signalfd sees them.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use outrigger_process::inherited::is_ignored;

use crate::events::{EventLoop, EventsError};
use crate::outcome::{Outcome, Stop};
use crate::terminal::Terminal;

/// Signals that end the run.
const END: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Signals of job control that the terminal's mode has to follow.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// Blocked so that using the terminal from the background is an error, not a stopped guest.
const BACKGROUND: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// Why signals cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SignalsError {
    /// The host refused the mask or the signalfd.
    #[error("cannot take over signals")]
    TakeOver(#[source] io::Error),
    /// The event loop refused the signalfd.
    #[error(transparent)]
    Watch(#[from] EventsError),
}

/// Signals that are blocked and wait to be watched.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and those it starts from now on; call it before any other thread exists.
    ///
    /// # Errors
    /// [`SignalsError::TakeOver`].
    pub fn block() -> Result<Self, SignalsError> {
        // What the caller had ignored stays so; blocked, it would come all the same.
        let watched: SigSet = END.into_iter().filter(|&signal| !is_ignored(signal)).chain(JOB_CONTROL).collect();
        let blocked: SigSet = watched.iter().chain(BACKGROUND).collect();
        let take_over = |errno: nix::errno::Errno| SignalsError::TakeOver(errno.into());
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).map_err(take_over)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&watched, flags).map(Signals).map_err(take_over)
    }

    /// Serves the signals in `events`: an end is requested of `stop`, `terminal` follows a stop and a continuation.
    ///
    /// # Errors
    /// [`SignalsError`].
    pub fn watch(
        self,
        events: &mut EventLoop,
        stop: Stop,
        terminal: Option<Arc<Terminal>>,
    ) -> Result<(), SignalsError> {
        let fd: OwnedFd = self.0.as_fd().try_clone_to_owned().map_err(SignalsError::TakeOver)?;
        events.add(fd, EpollFlags::EPOLLIN, move |_| {
            while let Ok(Some(information)) = self.0.read_signal() {
                let number = i32::try_from(information.ssi_signo).unwrap_or_default();
                if let Ok(signal) = Signal::try_from(number) {
                    serve(signal, &stop, terminal.as_deref());
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }
}

fn serve(signal: Signal, stop: &Stop, terminal: Option<&Terminal>) {
    match signal {
        Signal::SIGTSTP => {
            if let Some(terminal) = terminal {
                terminal.restore();
            }
            // Stops the whole process here, until SIGCONT. The guest's clock goes on.
            if let Err(errno) = raise(Signal::SIGSTOP) {
                log::warn!("cannot stop: {}", errno.desc());
            }
        }
        Signal::SIGCONT => {
            if let Some(terminal) = terminal {
                terminal.set_raw();
            }
        }
        _ => stop.request(Outcome::Interrupted(signal)),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::pthread::{pthread_kill, pthread_self};

    use super::*;

    #[test]
    fn a_signal_that_ends_the_run_is_told_by_the_outcome() {
        for signal in END {
            // Each in a thread of its own, whose mask and pending signals end with it.
            let outcome = std::thread::spawn(move || {
                let signals = Signals::block().unwrap();
                let (mut events, stop) = (EventLoop::new().unwrap(), Stop::new().unwrap());
                signals.watch(&mut events, stop.clone(), None).unwrap();
                pthread_kill(pthread_self(), signal).unwrap();
                events.run(&stop).unwrap();
                stop.outcome()
            });
            assert_eq!(outcome.join().unwrap(), Some(Outcome::Interrupted(signal)));
        }
    }
}
