//! A connection to a server that somebody else runs: made within a deadline, and to a user who may be given guest RAM.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_socket, getsockopt, socket, sockopt,
};
use nix::unistd::{Uid, User, geteuid};

use crate::config::ServerUser;

const RETRY: Duration = Duration::from_millis(20);

/// A server that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// There is no such socket, or its server is gone.
    #[error("nobody listens on this socket; start the device process first")]
    NobodyListens,
    /// The system refuses.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The server's queue of connections stayed full.
    #[error("nobody accepted a connection within {} s", .0.as_secs())]
    NotAccepted(Duration),
    /// The server runs as a user who may not have guest RAM.
    #[error(
        "its server runs as user {server}, but the guest's memory is for {wanted} only{}",
        if *.is_default { format!("; add user={server} if you trust that user with it") } else { String::new() }
    )]
    Stranger {
        /// The user that runs the server.
        server: Name,
        /// The users that may.
        wanted: String,
        /// Whether the command line names no user.
        is_default: bool,
    },
}

/// Connects to the server at `path`, and sees who runs it before anything is sent. If the run ends first, `is_given_up` says
/// so.
///
/// # Errors
/// See [`ConnectError`].
pub(super) fn connect(
    path: &Path,
    server: ServerUser,
    deadline: Duration,
    is_given_up: impl Fn() -> bool,
) -> Result<UnixStream, ConnectError> {
    let stream = within(deadline, path, is_given_up)?;
    check(&stream, server, geteuid())?;
    Ok(stream)
}

/// Connects without waiting longer than `deadline` for a server whose queue of connections is full.
fn within(deadline: Duration, path: &Path, is_given_up: impl Fn() -> bool) -> Result<UnixStream, ConnectError> {
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?);
    let end = Instant::now() + deadline;
    loop {
        match connect_socket(stream.as_raw_fd(), &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::EAGAIN) if Instant::now() < end && !is_given_up() => thread::sleep(RETRY),
            Err(Errno::EAGAIN) => return Err(ConnectError::NotAccepted(deadline)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn failed(errno: Errno) -> ConnectError {
    match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => ConnectError::NobodyListens,
        errno => ConnectError::Connect(errno.into()),
    }
}

/// Refuses a peer who may not have guest RAM. The kernel remembers who called listen(2), whoever has the socket now
/// (`SO_PEERCRED`, unix(7)).
fn check(stream: &impl AsFd, server: ServerUser, ourselves: Uid) -> Result<(), ConnectError> {
    let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(failed)?;
    let user = Uid::from_raw(peer.uid());
    let (allowed, wanted) = match server {
        ServerUser::Any => return Ok(()),
        ServerUser::Only(only) => (user == only, Name(only).to_string()),
        ServerUser::Trusted if ourselves.is_root() => (user.is_root(), Name(ourselves).to_string()),
        ServerUser::Trusted => {
            (user.is_root() || user == ourselves, format!("{} and {}", Name(Uid::from_raw(0)), Name(ourselves)))
        }
    };
    if allowed {
        return Ok(());
    }
    Err(ConnectError::Stranger { server: Name(user), wanted, is_default: server == ServerUser::Trusted })
}

/// A user's name, or the number of one who has none.
#[derive(Debug)]
pub(super) struct Name(Uid);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match User::from_uid(self.0) {
            Ok(Some(user)) => f.write_str(&user.name),
            _ => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line with which a server of the user who runs this test is refused, if `ourselves` runs Outrigger.
    fn refusal(server: ServerUser, ourselves: u32) -> Option<String> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        check(&ours, server, Uid::from_raw(ourselves)).err().map(|error| error.to_string())
    }

    #[test]
    fn a_server_is_trusted_if_it_is_roots_our_own_or_named() {
        let user = geteuid().as_raw();
        let other = user + 4_000_000;
        assert_eq!(refusal(ServerUser::Trusted, user), None);
        assert_eq!(refusal(ServerUser::Only(Uid::from_raw(user)), other), None);
        assert_eq!(refusal(ServerUser::Any, other), None);
        let line = refusal(ServerUser::Only(Uid::from_raw(other)), user).unwrap();
        let name = Name(Uid::from_raw(user)).to_string();
        assert_eq!(line, format!("its server runs as user {name}, but the guest's memory is for {other} only"));
        // Every user who runs Outrigger trusts root.
        let refused = refusal(ServerUser::Trusted, other);
        assert_eq!(refused.is_none(), geteuid().is_root(), "{refused:?}");
    }
}
