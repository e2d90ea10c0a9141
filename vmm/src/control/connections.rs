//! Every connection to a device process, so that the end of the run can end every wait on one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use outrigger_protocol::foreign::ForeignFd;

use crate::attach::link::Link;

/// The connections of a run.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    ended: bool,
    opening: Vec<Weak<ForeignFd>>,
    open: Vec<Weak<Link>>,
}

impl Connections {
    /// Adds a socket on which a connection is about to be negotiated.
    pub fn add_opening(&self, stream: &Arc<ForeignFd>) {
        let mut state = self.lock();
        state.opening.push(Arc::downgrade(stream));
        if state.ended {
            stream.hang_up();
        }
    }

    /// Adds a connection.
    pub fn add(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        state.open.push(Arc::downgrade(link));
        if state.ended {
            link.end();
        }
    }

    /// Ends all connections without blame, and those that are added later. Never blocks.
    pub fn end_all(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.open.iter().filter_map(Weak::upgrade).for_each(|link| link.end());
        state.opening.iter().filter_map(Weak::upgrade).for_each(|stream| stream.hang_up());
    }

    /// Whether [`end_all`](Self::end_all) was called.
    #[must_use]
    pub fn are_ended(&self) -> bool {
        self.lock().ended
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_end_reaches_connections_of_before_and_of_later() {
        let connections = Connections::default();
        let (before, mut its_peer) = UnixStream::pair().unwrap();
        let before = Arc::new(ForeignFd::from(before));
        connections.add_opening(&before);
        connections.end_all();
        assert_eq!(its_peer.read(&mut [0]).unwrap(), 0);
        let (later, mut its_peer) = UnixStream::pair().unwrap();
        connections.add_opening(&Arc::new(ForeignFd::from(later)));
        assert_eq!(its_peer.read(&mut [0]).unwrap(), 0);
        assert!(connections.are_ended());
    }
}
