//! Signals as events of the main thread: those that end the run, and those by which a shell stops and continues it.
//!
//! They are blocked before any thread starts, so that every thread inherits the mask and only the signalfd sees them.
//! A process started by this one inherits the mask too: [`unblock`] is for the moment between fork and exec.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::libc;
use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

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
        let watched: SigSet = END.into_iter().chain(JOB_CONTROL).collect();
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

/// Unblocks all signals in the calling thread: for a child process between fork and exec. Async-signal-safe.
///
/// # Errors
/// The host's; there is none for a valid set.
pub fn unblock() -> io::Result<()> {
    let none = SigSet::empty();
    // SAFETY: the set is valid for reads, and no previous mask is asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ref(), std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
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

    #[test]
    fn a_child_can_have_its_signals_back() {
        std::thread::spawn(|| {
            let _signals = Signals::block().unwrap();
            assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
            unblock().unwrap();
            assert_eq!(SigSet::thread_get_mask().unwrap().iter().count(), 0);
        })
        .join()
        .unwrap();
    }
}
