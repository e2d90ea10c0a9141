//! Accepting connections: from root and from the user who runs Outrigger, a bounded number at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use nix::unistd::{Uid, geteuid};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::server::Listener;
use outrigger_protocol::socket::{Outgoing, wait_for};

use super::ServedRun;
use super::http::{Answer, Connection, LINGER, Refusal};

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 16;
/// Most connections that were turned away and are still open.
const MAX_TURNED_AWAY: usize = 16;
/// Stack of these threads in bytes. Pages that they do not touch cost nothing.
const STACK: usize = 128 << 10;

/// Starts the thread that accepts.
pub(super) fn start(listener: Arc<Listener>, run: Arc<ServedRun>) -> io::Result<()> {
    let thread = thread::Builder::new().name("control socket".into()).stack_size(STACK);
    thread.spawn(move || accept(&listener, &run)).map(drop)
}

fn accept(listener: &Listener, run: &Arc<ServedRun>) {
    let open = Arc::new(AtomicUsize::new(0));
    let mut turned_away = TurnedAway::default();
    loop {
        turned_away.wait(listener);
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) => return log::warn!("the control socket is served no longer: {error}"),
        };
        // Closing it closes what else the client has sent.
        let stream = Arc::new(ForeignFd::from(stream));
        let served = admit(&stream, &open).and_then(|place| serve(stream.clone(), run.clone(), place));
        if let Err(refusal) = served {
            turned_away.add(stream, refusal);
        }
    }
}

/// Connections that were told why they are not served. They stay open for a moment: a client that has not sent its
/// request yet would take one that is closed for a failure, and never read.
#[derive(Default)]
struct TurnedAway(VecDeque<(Instant, Arc<ForeignFd>)>);

impl TurnedAway {
    /// Tells a client why it is not served, without waiting for it: the answer fits in the socket's buffer.
    fn add(&mut self, stream: Arc<ForeignFd>, refusal: Refusal) {
        let answer = Answer::from(refusal).to_bytes(true, true);
        // A client that has gone needs no answer.
        let _ = Outgoing::new([&answer, &[], &[]], &[]).send(stream.lend(), Instant::now());
        let _ = shutdown(stream.lend().as_raw_fd(), Shutdown::Write);
        self.0.push_back((Instant::now() + LINGER, stream));
        if self.0.len() > MAX_TURNED_AWAY {
            self.close_first();
        }
    }

    /// Waits for the next client, and closes those whose moment has passed meanwhile.
    fn wait(&mut self, listener: &Listener) {
        while let Some((end, _)) = self.0.front() {
            // An error that is not the time's is found by whoever accepts.
            match wait_for(listener.as_fd(), PollFlags::POLLIN, *end) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.close_first(),
                _ => return,
            }
        }
    }

    fn close_first(&mut self) {
        if let Some((_, stream)) = self.0.pop_front() {
            // One that is still sending notices, and reads.
            stream.hang_up();
        }
    }
}

/// A connection among those that may be open at the same time.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn admit(stream: &ForeignFd, open: &Arc<AtomicUsize>) -> Result<Place, Refusal> {
    let peer = getsockopt(&stream.lend(), sockopt::PeerCredentials);
    let user = peer.map_err(|errno| Refusal::new(403, format!("who asks is not known: {}", errno.desc())))?.uid();
    if !may_connect(Uid::from_raw(user), geteuid()) {
        return Err(Refusal::new(403, "only root and the user who runs Outrigger may ask"));
    }
    // Only this thread adds.
    let place = Place(open.clone());
    if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
        return Err(Refusal::new(503, format!("{MAX_CONNECTIONS} connections are open already")));
    }
    Ok(place)
}

fn may_connect(user: Uid, ourselves: Uid) -> bool {
    user.is_root() || user == ourselves
}

/// Starts the thread of a connection.
fn serve(stream: Arc<ForeignFd>, run: Arc<ServedRun>, place: Place) -> Result<(), Refusal> {
    let body = move || {
        let _place = place;
        // Fails for what is no socket.
        if let Ok(connection) = Connection::new(stream) {
            connection.serve(&*run);
        }
    };
    let thread = thread::Builder::new().name("control client".into()).stack_size(STACK);
    let started = thread.spawn(body).map(drop);
    started.map_err(|error| Refusal::new(503, format!("no thread for another connection: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_user_who_runs_outrigger_may_ask() {
        let (root, ours, other) = (Uid::from_raw(0), Uid::from_raw(1000), Uid::from_raw(1001));
        assert!(may_connect(ours, ours) && may_connect(root, ours) && may_connect(root, root));
        assert!(!may_connect(other, ours) && !may_connect(ours, root));
    }
}
