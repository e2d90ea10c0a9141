//! Signals as events of the [control thread](crate::control): those that end the run, those by which a shell stops and
//! continues it, and the one that tells of a child.
//!
//! They are blocked before any thread starts, so that every thread inherits the mask and only the signalfd sees them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use outrigger_process::inherited::is_ignored;

use crate::console::terminal::Terminal;

/// Signals that end the run.
const END: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Signals of job control that the terminal's mode has to follow.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// A device process has stopped, gone on or ended.
const CHILD: Signal = Signal::SIGCHLD;

/// Blocked so that using the terminal from the background is an error, not a stopped guest.
const BACKGROUND: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// The host refused the mask or the signalfd.
#[derive(Debug, thiserror::Error)]
#[error("cannot take over signals")]
pub struct SignalsError(#[source] io::Error);

/// Signals that are blocked and wait to be watched.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and those it starts from now on; call it before any other thread exists.
    ///
    /// # Errors
    /// [`SignalsError`].
    pub fn block() -> Result<Self, SignalsError> {
        // Signals that the caller had ignored stay so; blocked, they would come all the same.
        let watched: SigSet =
            END.into_iter().filter(|&signal| !is_ignored(signal)).chain(JOB_CONTROL).chain([CHILD]).collect();
        let blocked: SigSet = watched.iter().chain(BACKGROUND).collect();
        let take_over = |errno: nix::errno::Errno| SignalsError(errno.into());
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).map_err(take_over)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&watched, flags).map(Signals).map_err(take_over)
    }

    /// Takes the signals that have come.
    pub fn read(&self) -> impl Iterator<Item = Signal> + '_ {
        std::iter::from_fn(|| self.0.read_signal().ok().flatten())
            .filter_map(|information| Signal::try_from(i32::try_from(information.ssi_signo).ok()?).ok())
    }

    /// Stops the whole process until SIGCONT, with `terminal` as it was before. The guest's clock goes on.
    pub fn stop_process(&self, terminal: Option<&Arc<Terminal>>) {
        if let Some(terminal) = terminal {
            terminal.restore();
        }
        if let Err(errno) = raise(Signal::SIGSTOP) {
            log::warn!("cannot stop: {}", errno.desc());
        }
    }
}

/// Readable when a signal has come.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::pthread::{pthread_kill, pthread_self};
    use nix::sys::signal::SigHandler;

    use super::*;

    #[test]
    fn a_signal_that_ends_the_run_is_read_and_does_not_end_the_process() {
        for signal in END {
            // Each in a thread of its own, whose mask and pending signals end with it.
            let read = std::thread::spawn(move || {
                // Tests that run in the background of a script have some ignored.
                // SAFETY: the default, and the signal is blocked before it comes.
                unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.unwrap();
                let signals = Signals::block().unwrap();
                pthread_kill(pthread_self(), signal).unwrap();
                signals.read().collect::<Vec<_>>()
            });
            assert_eq!(read.join().unwrap(), [signal]);
        }
    }
}
