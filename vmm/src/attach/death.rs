//! How it is decided that the process that serves a device is dead to us: the one place.
//!
//! Every caller that finds the process unusable calls [`Link::fail`]; the first cause stays. From then on every call
//! fails at once, every wait is over, and the thread that watches the sockets sees them hung up.

use std::error::Error;
use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{ClientError, Fault, Step, Watch};
use outrigger_protocol::ioregionfd::AccessError;

use super::link::Link;

/// Between two looks whether calls are over.
const RETIRE_PAUSE: Duration = Duration::from_micros(50);

/// Why a link is no more.
#[derive(Debug, PartialEq, Eq)]
pub enum Cause {
    /// This side ended it. Nothing is wrong with the device.
    Ended,
    /// This side ended it, since another process is to serve the device.
    Replaced,
    /// The process closed a socket, or is gone.
    HungUp,
    /// The process did not answer, or did not take what it was sent, in time.
    Silent,
    /// The process was stopped for longer than it may take to answer.
    Stopped,
    /// The process did what the protocol forbids, or the socket failed.
    Broken(String),
    /// The process took memory away that the guest sees.
    TookMemory(String),
    /// KVM gave up an ioregionfd: the process hung up, answered wrongly, or too late. KVM does not say which.
    GivenUpByKvm,
}

impl Link {
    /// Why the link is no more; `None` while it holds.
    #[must_use]
    pub fn lost(&self) -> Option<&Cause> {
        self.lost.get().map(|(cause, _)| cause)
    }

    /// Since when the link is no more.
    #[must_use]
    pub fn lost_at(&self) -> Option<Instant> {
        self.lost.get().map(|(_, at)| *at)
    }

    /// Ends the link, and with it every wait for the process. Never blocks.
    pub fn fail(&self, cause: Cause) {
        // A connection that this side has closed for a fault looks like one that the process has hung up.
        let fault = self.client.fault().filter(|_| cause == Cause::HungUp);
        let cause = fault.map_or(cause, |fault| fault.clone().into());
        // An error says that there was a cause already.
        let _ = self.lost.set((cause, Instant::now()));
        self.client.close();
        self.requesters.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|requester| requester.close());
    }

    /// Ends the link, since another process is to serve the device, and keeps the connection for what remains to be said.
    /// Waits until no access is under way any more.
    pub fn retire(&self) {
        let _ = self.lost.set((Cause::Replaced, Instant::now()));
        // Ordered after the above: a call that is not seen here sees that the link is lost.
        while self.calls.load(Ordering::SeqCst) > 0 && !self.client.is_closed() {
            // An access by ioregionfd may wait for the process, and the process for its DMA by message, which this thread
            // serves. An error is that of a connection that is closed now.
            if self.client.serve_step().is_ok_and(|step| step != Step::Again) {
                thread::sleep(RETIRE_PAUSE);
            }
        }
    }

    /// Ends the link without blame.
    pub fn end(&self) {
        self.fail(Cause::Ended);
    }

    /// Fails the link if the process has closed the connection and nobody has noticed yet.
    pub fn check(&self) {
        let hung_up = |watched: Watch<'_>| {
            let mut fds = [PollFd::new(watched.fd, PollFlags::from_bits_retain(libc::POLLRDHUP))];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        };
        if self.lost().is_none() && self.client.watch().any(hung_up) {
            self.fail(Cause::HungUp);
        }
    }
}

impl From<&ClientError> for Cause {
    fn from(error: &ClientError) -> Self {
        Fault::from(error).into()
    }
}

impl From<Fault> for Cause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::HungUp => Self::HungUp,
            Fault::Silent => Self::Silent,
            Fault::Broken(how) => Self::Broken(how),
        }
    }
}

impl From<&AccessError> for Cause {
    fn from(error: &AccessError) -> Self {
        match error {
            AccessError::Broken | AccessError::HungUp => Self::HungUp,
            AccessError::TimedOut(_) => Self::Silent,
            error => Self::Broken(format!("ioregionfd: {}", chain(error))),
        }
    }
}

/// The process's act, to follow its name.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("was let go"),
            Self::Replaced => f.write_str("was replaced"),
            Self::HungUp => f.write_str("closed the connection"),
            Self::Silent => f.write_str("stopped answering"),
            Self::Stopped => f.write_str("was stopped"),
            Self::Broken(how) => write!(f, "broke the protocol: {how}"),
            Self::TookMemory(how) => write!(f, "took memory away that the guest sees: {how}"),
            Self::GivenUpByKvm => f.write_str("closed its ioregionfd, stopped answering on it or answered wrongly"),
        }
    }
}

/// An error and all its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
