//! A server's requests while no call is under way, served by the thread that watches the connection.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::TryLockError;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use super::{Client, ClientError, Step};
use crate::command::Command;

/// How often [`Client::serve_ready`] looks again at a server that does not take its replies.
const PAUSE: Duration = Duration::from_millis(1);

/// A socket to poll for [`Client::serve_step`].
#[derive(Debug)]
pub struct Watch<'a> {
    /// The socket.
    pub fd: BorrowedFd<'a>,
    /// Whether the server's requests come here; otherwise only a hang-up is of interest.
    pub requests: bool,
}

impl Client {
    /// The sockets to poll, by level or by edge, to call [`Client::serve_step`] when one is readable or hung up. With a
    /// twin socket the main one carries replies only, so that only its hang-up is of interest.
    pub fn watch(&self) -> impl Iterator<Item = Watch<'_>> {
        let main = Watch { fd: self.main_stream.lend(), requests: self.twin.is_none() };
        let twin = self.twin.as_ref().map(|twin| Watch { fd: twin.stream.lend(), requests: true });
        [Some(main), twin].into_iter().flatten()
    }

    /// An eventfd to poll besides, by edge: it becomes readable when a call leaves something to [`Client::serve_step`]
    /// that no socket tells of. It is never read.
    pub fn left_over(&self) -> BorrowedFd<'_> {
        self.left_over.as_fd()
    }

    /// Serves some of what the server has sent while no call was under way, and sends what it is owed; never waits. An
    /// error says that the server is gone or was cut off: so is one that has taken none of its replies for the length of
    /// the deadline. One that takes them may ask without a pause for as long as it likes.
    ///
    /// While a call holds or wants the connection this leaves it alone: that call serves what comes, on the twin socket as
    /// well once it has waited for some milliseconds.
    pub fn serve_step(&self) -> Result<Step, ClientError> {
        if self.is_closed() {
            return Err(ClientError::Disconnected(Command::DmaRead));
        }
        let twin = match &self.twin {
            Some(twin) => self.closing(twin.serve_step())?,
            None => Step::Idle,
        };
        if twin == Step::Again {
            // The main socket's turn comes when the twin has been emptied: it has nothing but leftovers of a call.
            return Ok(twin);
        }
        self.unserved.store(true, Ordering::SeqCst);
        Ok(twin.and(self.serve_unserved()?))
    }

    /// Calls [`Client::serve_step`] until nothing is left, however long that takes: for a thread with nothing else to do.
    pub fn serve_ready(&self) -> Result<(), ClientError> {
        loop {
            match self.serve_step()? {
                Step::Idle => return Ok(()),
                Step::Again => {}
                Step::NoRoom(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Serves a round if something is marked unserved.
    ///
    /// 1. A thread that cannot have the connection, or gives way, leaves the mark to the call that has or wants it.
    /// 2. A call looks at the mark after giving the connection back.
    pub(super) fn serve_unserved(&self) -> Result<Step, ClientError> {
        while self.unserved.load(Ordering::SeqCst) {
            // The mark is set before the lock is tried, here; the lock is free before the mark is read, in `locked`.
            fence(Ordering::SeqCst);
            if self.callers.load(Ordering::SeqCst) > 0 {
                return Ok(Step::Idle);
            }
            let mut main = match self.main.try_lock() {
                Ok(main) => main,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(Step::Idle),
            };
            self.unserved.store(false, Ordering::SeqCst);
            let served = main.serve_step();
            drop(main);
            let step = self.closing(served)?;
            if step != Step::Idle {
                return Ok(step);
            }
            fence(Ordering::SeqCst);
        }
        Ok(Step::Idle)
    }

    /// Leaves what is left to whoever polls.
    pub(super) fn leave_over(&self) {
        // Fails only with EAGAIN at 2^64-2, and then it is readable already.
        let _ = self.left_over.write(1);
    }
}
