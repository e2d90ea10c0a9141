//! A socket path on which clients are accepted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::libc;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};

use crate::foreign::ForeignFd;
use crate::socket::is_local;

/// How long to wait for another server that is looking at the same directory.
const TURN: Duration = Duration::from_secs(1);
/// How long to wait when the system has no descriptor for a client.
const SHORTAGE: Duration = Duration::from_millis(50);

/// A socket path on which clients are accepted, one at a time. When dropped, the socket is removed if it is still the
/// one that was bound here.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    place: SocketPath,
}

/// Where a socket was bound, and which file that is.
#[derive(Debug)]
struct SocketPath {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    removed: AtomicBool,
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
        Self::bind_by(path, |path| UnixListener::bind(path))
    }

    /// The same for clients of this user only, and of root: the socket's mode is 0600, whatever the umask, and has never
    /// been wider.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind_private(path: &Path) -> Result<Self, ListenError> {
        Self::bind_by(path, listen_privately)
    }

    fn bind_by(path: &Path, bind: impl FnOnce(&Path) -> io::Result<UnixListener>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io { path: path.into(), source };
        let _turn = lock_directory(path, TURN);
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(path.into())),
            Ok(_) if is_alive(path).map_err(failed)? => return Err(ListenError::InUse(path.into())),
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = bind(path).map_err(|error| match error.kind() {
            // By somebody who takes no turns.
            io::ErrorKind::AddrInUse => ListenError::InUse(path.into()),
            _ => failed(error),
        })?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let file = (metadata.dev(), metadata.ino());
        let place = SocketPath { path: path.into(), file, removed: AtomicBool::new(false) };
        Ok(Self { listener, place })
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
        self.place.remove();
    }
}

/// Readable when a client is there.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl SocketPath {
    fn remove(&self) {
        if self.removed.swap(true, Ordering::SeqCst) {
            return;
        }
        // Others who take turns cannot put something else there between the look and the removal.
        let _turn = lock_directory(&self.path, TURN / 10);
        let here = fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.file);
        if here {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.place.remove();
        // Clients whose turn never came may have sent descriptors, which are closed with the socket.
        if let Ok(listener) = self.listener.try_clone() {
            drop(ForeignFd::from(OwnedFd::from(listener)));
        }
    }
}

/// Makes a socket for this user alone. The kernel gives the file in the directory the mode that the socket itself has, less
/// the umask (Linux, `net/unix/af_unix.c`, `unix_bind_bsd`), so nobody else finds it open for a moment.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let owner = Mode::S_IRUSR | Mode::S_IWUSR;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&socket, owner)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // A umask may have taken from the owner, too.
    let usable = fchmodat(AT_FDCWD, path, owner, FchmodatFlags::NoFollowSymlink);
    usable.and_then(|()| listen(&socket, Backlog::MAXCONN)).inspect_err(|_| _ = fs::remove_file(path))?;
    Ok(UnixListener::from(socket))
}

/// Whether a server listens on a socket. One whose backlog is full does.
fn is_alive(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes a turn at the directory that `path` is in: a lock on the directory itself leaves no file behind. `None`: it
/// cannot be locked, or another process has had it for too long, and is not waited for any longer.
fn lock_directory(path: &Path, patience: Duration) -> Option<Flock<File>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory).ok()?;
    let end = Instant::now() + patience;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Some(locked),
            Err((back, Errno::EAGAIN | Errno::EINTR)) if Instant::now() < end => file = back,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
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
        let _listener = Listener::bind_private(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind_private(&path), Err(ListenError::InUse(_))));
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
        assert!(start.elapsed() < TURN);
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
