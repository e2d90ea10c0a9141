//! Every connection to a device process, and every wait for one, so that the end of the run can end them all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use outrigger_protocol::foreign::ForeignFd;

use crate::attach::generations::Generations;
use crate::attach::link::Link;

/// The connections of a run.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    ended: bool,
    opening: Vec<Weak<ForeignFd>>,
    open: Vec<Weak<Link>>,
    generations: Vec<Weak<Generations>>,
}

impl Connections {
    /// Adds a socket on which a connection is about to be negotiated.
    pub fn add_opening(&self, stream: &Arc<ForeignFd>) {
        let mut state = self.lock();
        state.opening.retain(|stream| stream.strong_count() > 0);
        state.opening.push(Arc::downgrade(stream));
        if state.ended {
            stream.hang_up();
        }
    }

    /// Adds a connection.
    pub fn add(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        state.open.retain(|link| link.strong_count() > 0);
        state.open.push(Arc::downgrade(link));
        if state.ended {
            link.end();
        }
    }

    /// Adds a place where accesses wait for the next connection of a device.
    pub fn add_generations(&self, generations: &Arc<Generations>) {
        let mut state = self.lock();
        state.generations.push(Arc::downgrade(generations));
        if state.ended {
            generations.end();
        }
    }

    /// Ends all connections without blame, and those that are added later. Never blocks.
    pub fn end_all(&self) {
        let mut state = self.lock();
        state.ended = true;
        // First: an access that meets an ended link waits for no other.
        state.generations.iter().filter_map(Weak::upgrade).for_each(|generations| generations.end());
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
