//! How far a round of serving a server's requests got.

use std::time::Instant;

/// The work left after [`serve_step`](super::Client::serve_step).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that is known of: wait until a socket is readable.
    Idle,
    /// There may be more: call again at once, or when other work is done.
    Again,
    /// The server does not take the replies that it is owed: call again when a socket is writable, and at this moment at
    /// the latest. If it has taken nothing by then, that call fails.
    NoRoom(Instant),
}

impl Step {
    /// The more urgent of two rounds' steps.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Again, _) | (_, Self::Again) => Self::Again,
            (Self::NoRoom(a), Self::NoRoom(b)) => Self::NoRoom(a.min(b)),
            (Self::NoRoom(until), Self::Idle) | (Self::Idle, Self::NoRoom(until)) => Self::NoRoom(until),
            (Self::Idle, Self::Idle) => Self::Idle,
        }
    }
}
