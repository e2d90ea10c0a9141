//! The connection to the process that serves a device now, and the one place where its end is decided.
//!
//! Whoever finds out that the process can no longer be used calls [`Link::fail`]; the first cause stays. From then on
//! every call fails at once, every wait is over, and the thread that watches the sockets sees them hung up.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::command::Command;
use outrigger_protocol::ioregionfd::{AccessError, Requester};

/// Between two looks whether calls are over.
const RETIRE_PAUSE: Duration = Duration::from_micros(50);

/// A connection to a device process.
#[derive(Debug)]
pub struct Link {
    client: Arc<Client>,
    /// Calls under way.
    calls: AtomicUsize,
    /// How long the process may take to answer one message.
    deadline: Duration,
    /// The other sockets on which the process is asked: they end with the connection.
    requesters: Mutex<Vec<Arc<Requester>>>,
    lost: OnceLock<(Cause, Instant)>,
    /// The process has answered since somebody asked.
    answered: AtomicBool,
}

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
    /// Takes over a negotiated connection, on which an answer takes no longer than `deadline`.
    #[must_use]
    pub fn new(client: Client, deadline: Duration) -> Self {
        Self::on(Arc::new(client), deadline)
    }

    /// Takes over a connection whose last link was [retired](Self::retire).
    #[must_use]
    pub fn on(client: Arc<Client>, deadline: Duration) -> Self {
        let (calls, requesters, lost, answered) = Default::default();
        Self { client, calls, deadline, requesters, lost, answered }
    }

    /// How long the process may take to answer one message.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

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
            thread::sleep(RETIRE_PAUSE);
        }
    }

    /// Takes part in the link; none: it is lost.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        self.lost().is_none().then_some(entered)
    }

    /// Ends the link without blame.
    pub fn end(&self) {
        self.fail(Cause::Ended);
    }

    /// Fails the link if the process has closed the connection and nobody has noticed yet.
    pub fn check(&self) {
        let hung_up = |watched: outrigger_protocol::client::Watch<'_>| {
            let mut fds = [PollFd::new(watched.fd, PollFlags::from_bits_retain(libc::POLLRDHUP))];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        };
        if self.lost().is_none() && self.client.watch().any(hung_up) {
            self.fail(Cause::HungUp);
        }
    }

    /// Makes a call on the connection. An error after which the connection cannot be used fails the link.
    ///
    /// # Errors
    /// The call's.
    pub fn call<T>(&self, call: impl FnOnce(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let result = self.post(call);
        if !result.as_ref().is_err_and(ClientError::is_fatal) {
            self.answered.store(true, Ordering::Relaxed);
        }
        result
    }

    /// The same for a call that waits for no answer.
    ///
    /// # Errors
    /// The call's.
    pub fn post<T>(&self, call: impl FnOnce(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let Some(_entered) = self.enter() else { return Err(ClientError::Disconnected(Command::RegionRead)) };
        call(&self.client).inspect_err(|error| {
            if error.is_fatal() {
                self.fail(error.into());
            }
        })
    }

    /// Whether the process has answered since this was last asked.
    pub fn take_answered(&self) -> bool {
        self.answered.swap(false, Ordering::Relaxed)
    }

    /// The connection, to be polled; calls go through [`call`](Self::call).
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Adds a socket that ends with the link.
    pub(super) fn add_requester(&self, requester: &Arc<Requester>) {
        self.requesters.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(requester));
        if self.lost().is_some() {
            requester.close();
        }
    }
}

/// A call under way, until this is dropped.
pub(super) struct Entered<'a>(&'a Link);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl From<&ClientError> for Cause {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::Disconnected(_) => Self::HungUp,
            ClientError::TimedOut { .. } => Self::Silent,
            error => Self::Broken(chain(error)),
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

/// What the process did, after its name.
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use outrigger_protocol::ioregionfd::{Size, SocketType};

    use super::super::testing::{self, Nothing};
    use super::*;

    fn requester() -> (Arc<Requester>, OwnedFd) {
        let (ours, theirs) = SocketType::Seqpacket.pair().unwrap();
        (Arc::new(Requester::new(Arc::new(ours.into()), Duration::from_secs(10)).unwrap()), theirs)
    }

    #[test]
    fn the_first_cause_stays_and_ends_every_socket() {
        let link = testing::link(Nothing);
        let (before, _its_peer) = requester();
        link.add_requester(&before);
        link.fail(Cause::Silent);
        link.end();
        assert_eq!(link.lost(), Some(&Cause::Silent));
        assert!(link.call(Client::device_info).is_err_and(|error| error.is_fatal()));
        let (later, _its_peer) = requester();
        link.add_requester(&later);
        for requester in [before, later] {
            assert!(matches!(requester.read(0, 0, Size::of(4).unwrap()), Err(AccessError::Broken)));
        }
    }

    #[test]
    fn a_retired_link_takes_no_calls_and_its_connection_goes_on() {
        let link = testing::link(Nothing);
        link.retire();
        assert_eq!(link.lost(), Some(&Cause::Replaced));
        assert!(link.call(Client::device_info).is_err_and(|error| error.is_fatal()));
        let next = Link::on(link.client().clone(), link.deadline());
        next.call(Client::device_info).unwrap();
    }

    #[test]
    fn what_a_device_refuses_is_not_its_death() {
        let link = testing::link(Nothing);
        assert!(link.call(|client| client.region_read(0, 1 << 40, &mut [0])).is_err());
        link.check();
        assert_eq!(link.lost(), None);
        link.call(Client::device_info).unwrap();
    }
}
