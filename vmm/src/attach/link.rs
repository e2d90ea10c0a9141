//! The connection to the process that serves a device now. Where its end is decided: [`super::death`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use outrigger_protocol::capabilities::SandboxReport;
use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::command::Command;
use outrigger_protocol::ioregionfd::Requester;

use super::death::Cause;
use crate::machine::kvm_vfio::Tie;

/// A connection to a device process.
#[derive(Debug)]
pub struct Link {
    pub(super) client: Arc<Client>,
    /// Calls under way.
    pub(super) calls: AtomicUsize,
    /// How long the process may take to answer one message.
    deadline: Duration,
    /// The other sockets on which the process is asked: they end with the connection.
    pub(super) requesters: Mutex<Vec<Arc<Requester>>>,
    pub(super) lost: OnceLock<(Cause, Instant)>,
    /// The process has answered since somebody asked.
    answered: AtomicBool,
    /// KVM knows of the physical device that the process has.
    tie: Mutex<Option<Tie>>,
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
        let (calls, requesters, lost, answered, tie) = Default::default();
        Self { client, calls, deadline, requesters, lost, answered, tie }
    }

    /// The same for a physical device that KVM knows of.
    #[must_use]
    pub fn tied(self, tie: Option<Tie>) -> Self {
        Self { tie: Mutex::new(tie), ..self }
    }

    /// Whether this is a physical device that KVM knows of.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.tie.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes over from `predecessor` that KVM knows of the physical device, which stays open.
    pub(super) fn take_tie(&self, predecessor: &Self) {
        let tie = predecessor.tie.lock().unwrap_or_else(PoisonError::into_inner).take();
        if tie.is_some() {
            *self.tie.lock().unwrap_or_else(PoisonError::into_inner) = tie;
        }
    }

    /// Lets KVM forget the physical device, which nobody else here has open any more.
    pub(super) fn untie(&self) {
        self.tie.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// How far the process says that it has sealed itself.
    #[must_use]
    pub fn sandbox(&self) -> Option<&SandboxReport> {
        self.client.server_capabilities().outrigger_sandbox.as_ref()
    }

    /// How long the process may take to answer one message.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Takes part in the link; none: it is lost.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        self.lost().is_none().then_some(entered)
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use outrigger_protocol::ioregionfd::{AccessError, Size, SocketType};

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
