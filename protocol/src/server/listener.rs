//! A socket path on which clients are accepted.

mod place;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;

use crate::foreign::ForeignFd;
use crate::socket::is_local;

pub use place::SocketPath;

/// How long to wait when the system has no descriptor for a client.
const SHORTAGE: Duration = Duration::from_millis(50);

/// A socket path on which clients are accepted, one at a time. When dropped, the socket is removed if it is still the
/// one that was bound here.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    /// None: another process removes it.
    place: Option<SocketPath>,
}

/// Who may connect. The mode and the owner are those of the socket's file, and the kernel looks at them when a client connects: who may
/// not write the file cannot even wait there (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, whatever the umask.
    pub mode: u32,
    /// The user who is given the file; none: it stays with the one who makes it.
    pub owner: Option<Uid>,
}

impl Access {
    /// This user, and root.
    pub const PRIVATE: Self = Self { mode: 0o600, owner: None };
}

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another server is there.
    #[error("{0}: another server listens here")]
    InUse(PathBuf),
    /// Something that is no socket is there, and is left alone.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// The file cannot be given to another user.
    #[error("{0}: cannot be given to another user")]
    Owner(PathBuf, #[source] io::Error),
    /// The system refuses.
    #[error("{path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Listener {
    /// Listens on `path`. A stale socket that no server listens on is replaced; servers that start at the same time take
    /// turns, so that none removes what another has just bound. Never waits for another server's attention: one that is
    /// busy with its clients is as alive as one that accepts.
    ///
    /// The caller decides who may connect, by its umask and by the directory.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let listen = |path: &Path| UnixListener::bind(path).map_err(|error| place::cannot_bind(path, error));
        place::bind(path, listen).map(Self::from)
    }

    /// The same for clients of this user only, and of root: the socket's mode is 0600, whatever the umask, and has never
    /// been wider.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind_private(path: &Path) -> Result<Self, ListenError> {
        Self::bind_for(path, Access::PRIVATE)
    }

    /// The same for those who have `access`, and root; nobody else has had it for a moment.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind_for(path: &Path, access: Access) -> Result<Self, ListenError> {
        place::bind(path, |path| place::listen_for(path, access)).map(Self::from)
    }

    /// Waits for a client, and for the system to have a descriptor for it.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self) -> io::Result<UnixStream> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                // The client left before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An earlier client's descriptors may still have to be closed.
                Err(error) if is_local(&error) => std::thread::sleep(SHORTAGE),
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the socket now, unless something else has taken its place: another server's socket, or a file.
    pub fn remove(&self) {
        if let Some(place) = &self.place {
            place.remove();
        }
    }

    /// Leaves it to the caller to remove the socket, as to another process, if this one is about to give up all paths.
    pub fn take_path(&mut self) -> Option<SocketPath> {
        self.place.take()
    }
}

impl From<(UnixListener, SocketPath)> for Listener {
    fn from((listener, place): (UnixListener, SocketPath)) -> Self {
        Self { listener, place: Some(place) }
    }
}

/// Readable when a client is there.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
        // Clients whose turn never came may have sent descriptors, which are closed with the socket.
        if let Ok(listener) = self.listener.try_clone() {
            drop(ForeignFd::from(OwnedFd::from(listener)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::time::Instant;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

    use super::*;

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let stale = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        drop(stale);
        let listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_private_socket_is_its_owners_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        // The umask is one of the process, and other tests make files: so each is tried in a process of its own.
        for umask in ["0", "0077", "0177", "0777"] {
            let command = format!("umask {umask}; exec \"$0\" --exact --ignored --nocapture {PRIVATELY}");
            let mut shell = std::process::Command::new("/bin/sh");
            shell.args(["-c", &command]).arg(std::env::current_exe().unwrap()).env("SOCKET", &path);
            let output = shell.output().unwrap();
            assert!(output.status.success(), "umask {umask}: {}", String::from_utf8_lossy(&output.stdout));
            assert!(!path.exists());
        }
    }

    const PRIVATELY: &str = "server::listener::tests::a_private_socket_of_this_process";

    #[test]
    #[ignore = "run by the test above, under several umasks"]
    fn a_private_socket_of_this_process() {
        let path = PathBuf::from(std::env::var_os("SOCKET").unwrap());
        let mode = || fs::symlink_metadata(&path).unwrap().mode() & 0o7777;
        let listener = Listener::bind_private(&path).unwrap();
        assert_eq!(mode(), 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind_private(&path), Err(ListenError::InUse(_))));
        drop(listener);
        for wanted in [0o660, 0o666, 0o777] {
            let _listener = Listener::bind_for(&path, Access { mode: wanted, owner: None }).unwrap();
            assert_eq!(mode(), wanted);
        }
    }

    #[test]
    fn a_socket_is_given_to_a_user() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let access = Access { mode: 0o600, owner: Some(Uid::from_raw(12345)) };
        let result = Listener::bind_for(&path, access);
        if nix::unistd::geteuid().is_root() {
            let found = fs::symlink_metadata(&path).unwrap();
            assert_eq!((found.uid(), found.mode() & 0o7777), (12345, 0o600));
        } else {
            assert!(matches!(result, Err(ListenError::Owner(..))), "{result:?}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn another_process_can_remove_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut listener = Listener::bind(&path).unwrap();
        let place = listener.take_path().unwrap();
        drop(listener);
        assert!(path.exists());
        place.remove();
        assert!(!path.exists());
    }

    /// As the child of a server that was killed has its socket, until it dies as well.
    #[test]
    fn a_socket_whose_server_has_ended_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for is_let_go in [true, false] {
            let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            nix::sys::socket::bind(bound.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            let mut server = std::process::Command::new(std::env::current_exe().unwrap());
            server.args(["--exact", "--ignored", "--nocapture", LISTENS]).stdin(bound.try_clone().unwrap());
            assert!(server.output().unwrap().status.success());
            drop(server);
            UnixStream::connect(&path).expect("the socket listens, though its server has ended");
            let others = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(if is_let_go { 100 } else { 5000 }));
                drop(bound);
            });
            let result = Listener::bind(&path);
            if is_let_go {
                result.expect("it is waited for");
            } else {
                assert!(matches!(result, Err(ListenError::InUse(_))), "{result:?}");
            }
            drop(others);
            let _ = fs::remove_file(&path);
        }
    }

    const LISTENS: &str = "server::listener::tests::a_process_that_listens_and_ends";

    #[test]
    #[ignore = "run by the test above, with a socket as its standard input"]
    fn a_process_that_listens_and_ends() {
        nix::sys::socket::listen(&std::io::stdin(), nix::sys::socket::Backlog::MAXCONN).unwrap();
    }

    #[test]
    fn a_server_whose_backlog_is_full_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let busy = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        nix::sys::socket::bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let start = Instant::now();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        assert!(start.elapsed() < Duration::from_millis(500));
    }

    #[test]
    fn what_took_the_place_of_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("socket"), directory.path().join("moved"));
        let listener = Listener::bind(&path).unwrap();
        fs::rename(&path, &moved).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(listener);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        let first = Listener::bind(&path).unwrap();
        fs::rename(&path, &moved).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn of_servers_that_start_at_once_over_a_stale_socket_one_stays_reachable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let started: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(started.iter().filter(|result| result.is_ok()).count(), 1, "{started:?}");
            UnixStream::connect(&path).unwrap();
            drop(started);
            assert!(!path.exists());
        }
    }
}
