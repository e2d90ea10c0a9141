//! The file of a socket: made for those who may connect and no others, and removed if it is still the one that was made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, open};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat};
use nix::unistd::{fchownat, geteuid};

use super::{Access, ListenError};

/// How long to wait for another server that is looking at the same directory.
const TURN: Duration = Duration::from_secs(1);
/// How long to wait for what a process that has ended still holds.
const END: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(2);
const LONGEST_RETRY: Duration = Duration::from_millis(100);

/// Where a socket was bound, and which file that is.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    removed: AtomicBool,
}

impl SocketPath {
    /// Removes the socket, unless something else has taken its place: another server's socket, or a file.
    pub fn remove(&self) {
        if self.removed.swap(true, Ordering::SeqCst) {
            return;
        }
        // Others who take turns cannot put something else there between the look and the removal.
        let _turn = lock_directory(&self.path, TURN / 10);
        remove_only(&self.path, self.file);
    }
}

/// The file that is at `path`, be it a link.
fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}

/// Removes what is at `path` if it is this file.
fn remove_only(path: &Path, file: (u64, u64)) {
    if file_at(path).is_ok_and(|there| there == file) {
        let _ = fs::remove_file(path);
    }
}

/// Has `listen` make the socket where nothing is, or a socket that no server listens on.
pub(super) fn bind(
    path: &Path,
    listen: impl FnOnce(&Path) -> Result<UnixListener, ListenError>,
) -> Result<(UnixListener, SocketPath), ListenError> {
    let failed = |source| ListenError::Io { path: path.into(), source };
    let _turn = lock_directory(path, TURN);
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(path.into())),
        Ok(_) if is_alive(path).map_err(failed)? => return Err(ListenError::InUse(path.into())),
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = listen(path)?;
    let file = file_at(path).map_err(failed)?;
    Ok((listener, SocketPath { path: path.into(), file, removed: AtomicBool::new(false) }))
}

/// Why `bind` has failed where nothing was.
pub(super) fn cannot_bind(path: &Path, error: io::Error) -> ListenError {
    match error.kind() {
        // By somebody who takes no turns.
        io::ErrorKind::AddrInUse => ListenError::InUse(path.into()),
        _ => ListenError::Io { path: path.into(), source: error },
    }
}

/// Makes a socket for those who have `access`. The kernel gives the file in the directory the mode that the socket itself has, less
/// the umask (Linux, `net/unix/af_unix.c`, `unix_bind_bsd`), so others do not find it open for a moment; and nobody is let in
/// before it listens.
pub(super) fn listen_for(path: &Path, access: Access) -> Result<UnixListener, ListenError> {
    let failed = |error: Errno| cannot_bind(path, error.into());
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    fchmod(&socket, Mode::from_bits_truncate(access.mode)).map_err(failed)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?).map_err(failed)?;
    let made = file_at(path).map_err(|error| cannot_bind(path, error))?;
    let usable = give(path, access).and_then(|()| listen(&socket, Backlog::MAXCONN).map_err(failed));
    // Not what somebody else has put there meanwhile.
    usable.inspect_err(|_| remove_only(path, made))?;
    Ok(UnixListener::from(socket))
}

/// Adds the mode's bits that the umask has taken, and changes the owner: of the file that was just made. Where others may write the
/// directory, something else may be there by now, such as a link to a file of somebody's: that is left alone.
fn give(path: &Path, access: Access) -> Result<(), ListenError> {
    let failed = |error: Errno| ListenError::Io { path: path.into(), source: error.into() };
    let mode = Mode::from_bits_truncate(access.mode);
    let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let found = fstat(&file).map_err(failed)?;
    let narrowed = Mode::from_bits_truncate(found.st_mode) != mode;
    let owner = access.owner.filter(|owner| owner.as_raw() != found.st_uid);
    if !narrowed && owner.is_none() {
        return Ok(());
    }
    let is_socket = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK;
    if !is_socket || found.st_nlink != 1 || found.st_uid != geteuid().as_raw() {
        return Err(failed(Errno::EBUSY));
    }
    if narrowed {
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        fchmodat(AT_FDCWD, same.as_str(), mode, FchmodatFlags::FollowSymlink).map_err(failed)?;
    }
    let given = owner.map_or(Ok(()), |_| fchownat(&file, "", owner, None, AtFlags::AT_EMPTY_PATH));
    given.map_err(|error| ListenError::Owner(path.into(), error.into()))
}

/// Whether a server listens on a socket. One whose backlog is full does. One whose process has ended does not, though others may hold
/// the socket for a moment: a child that is about to die with it.
fn is_alive(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let end = Instant::now() + END;
    let mut pause = RETRY;
    loop {
        let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
            Ok(()) if Instant::now() < end && !is_running(getsockopt(&probe, sockopt::PeerCredentials)?.pid()) => {}
            Ok(()) | Err(Errno::EAGAIN) => return Ok(true),
            Err(Errno::ECONNREFUSED) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        // Each look is a client to a server that lives on after the process which has begun to listen.
        sleep(pause);
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

/// Whether the process that called listen(2) is there. One of which nothing is known is.
fn is_running(process: libc::pid_t) -> bool {
    if process <= 0 {
        return true;
    }
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        // Ended, and nobody has waited for it.
        Ok(stat) => !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
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
        sleep(RETRY);
    }
}
