//! Errors between a client and its server.

use std::error::Error;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::capabilities::{CapabilitiesError, MAJOR};
use crate::codec::ReceiveError;
use crate::command::Command;

/// Why a call on a client failed. After anything but [`ClientError::Refused`], [`ClientError::Local`] and
/// [`ClientError::Unsent`] the connection is closed, and every later call is [`ClientError::Disconnected`] at once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection is gone.
    #[error("{0:?}: the server is gone")]
    Disconnected(Command),
    /// No reply, or no room to send, in time.
    #[error("{command:?}: no answer within {deadline:?}")]
    TimedOut {
        /// The command.
        command: Command,
        /// How long was waited.
        deadline: Duration,
    },
    /// The server answered with an error.
    #[error("{command:?}: the server answers {errno}")]
    Refused {
        /// The command.
        command: Command,
        /// The server's errno; `UnknownErrno` when it gave none.
        errno: Errno,
    },
    /// The server's answer makes no sense.
    #[error("{command:?}: the server's answer is malformed: {problem}")]
    Malformed {
        /// The command.
        command: Command,
        /// The problem with the answer.
        problem: &'static str,
    },
    /// The server's capabilities make no sense.
    #[error("the server's capabilities")]
    Capabilities(#[source] CapabilitiesError),
    /// The server speaks another protocol version.
    #[error("the server speaks protocol version {major}.{minor}, this client {MAJOR}")]
    Version {
        /// The server's major version.
        major: u16,
        /// The server's minor version.
        minor: u16,
    },
    /// No message could be received.
    #[error("{command:?}: receiving from the server")]
    Receive {
        /// The command.
        command: Command,
        /// Why.
        source: ReceiveError,
    },
    /// The socket failed.
    #[error("{command:?}: talking to the server")]
    Io {
        /// The command.
        command: Command,
        /// Why.
        source: io::Error,
    },
    /// This host, or this user, has too much of something: descriptors in flight on any sockets, memory. Nothing was
    /// sent, and nothing is wrong with the server.
    #[error("{command:?}: nothing could be sent")]
    Unsent {
        /// The command.
        command: Command,
        /// Why not.
        source: io::Error,
    },
    /// The call itself is beyond what the server negotiated; nothing was sent.
    #[error("{command:?}: {problem}: {value}, the server allows {limit}")]
    Local {
        /// The command.
        command: Command,
        /// Which limit.
        problem: &'static str,
        /// The value that the call needs.
        value: u64,
        /// The negotiated limit.
        limit: u64,
    },
}

impl ClientError {
    /// Whether the connection can no longer be used.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Local { .. } | Self::Unsent { .. })
    }
}

/// The cause that ended a connection, for whoever finds it closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server closed it.
    HungUp,
    /// The server did not answer, or made no room, in time.
    Silent,
    /// The server did what the protocol forbids, or the socket failed: the error and its causes.
    Broken(String),
}

impl From<&ClientError> for Fault {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::Disconnected(_) => Self::HungUp,
            ClientError::TimedOut { .. } => Self::Silent,
            error => Self::Broken(chain(error)),
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
