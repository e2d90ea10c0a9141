//! Common parts of the conformance tests: a small device behind the server, and a peer that speaks raw bytes.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::missing_panics_doc, clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

pub mod device;
pub mod held;
pub mod hostile;
pub mod journal;
pub mod memory;
pub mod migration;
pub mod raw;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{self, Client};
use outrigger_protocol::server::{Options, ServeError, serve};

use device::{State, TestDevice};

/// Longer than anything here takes on a busy machine, and short enough to notice a hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a thread: one device, one client after the other.
pub struct Server {
    pub state: Arc<Mutex<State>>,
    streams: Option<Sender<UnixStream>>,
    results: Receiver<Result<(), ServeError>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with_deadline(PATIENCE)
    }

    pub fn with_deadline(deadline: Duration) -> Self {
        Self::with_options(Options { deadline, ..Options::default() })
    }

    pub fn with_options(options: Options) -> Self {
        Self::with_device(options, TestDevice::new)
    }

    /// A device that migrates, and logs its DMA.
    pub fn migrating() -> Self {
        Self::with_device(Options::default(), |state| TestDevice::migrating(state, true))
    }

    /// A device that keeps a journal.
    pub fn journaled() -> Self {
        Self::with_device(Options::default(), TestDevice::journaled)
    }

    pub fn with_device(options: Options, device: impl FnOnce(Arc<Mutex<State>>) -> TestDevice) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (streams, incoming) = channel::<UnixStream>();
        let (outgoing, results) = channel();
        let mut device = device(state.clone());
        let thread = std::thread::spawn(move || {
            for stream in incoming {
                let _ = outgoing.send(serve(&mut device, stream, &options));
            }
        });
        Self { state, streams: Some(streams), results, thread: Some(thread) }
    }

    /// A new client's end of a connection; it is served when the one before has left.
    pub fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.streams.as_ref().unwrap().send(theirs).unwrap();
        ours
    }

    /// Waits for a client on a path, and serves it.
    pub fn accept(&self, listener: &outrigger_protocol::server::Listener) {
        self.streams.as_ref().unwrap().send(listener.accept().unwrap()).unwrap();
    }

    /// How the next connection ended.
    pub fn ended(&self) -> Result<(), ServeError> {
        self.results.recv_timeout(PATIENCE).expect("the server lets go of the connection")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.streams = None;
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(result, Some(Ok(()))), "the server panicked");
        }
    }
}

/// Runs `body` while somebody serves the device's requests, as a VMM's event loop does.
pub fn watched<T>(client: &Client, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let events = |requests| if requests { PollFlags::POLLIN } else { PollFlags::empty() };
                let watched: Vec<_> = client.watch().collect();
                let mut fds: Vec<_> = watched.iter().map(|w| PollFd::new(w.fd, events(w.requests))).collect();
                if poll(&mut fds, PollTimeout::from(5u8)).unwrap() > 0 && client.serve_ready().is_err() {
                    return;
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        done.store(true, Ordering::SeqCst);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether something is to be received (the end included), now or `within` this time.
pub fn readable(fd: &OwnedFd, within: Duration) -> bool {
    let timeout = PollTimeout::try_from(within).unwrap();
    poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(fd), PollFlags::POLLIN)], timeout).unwrap() == 1
}

/// An anonymous file of `size` bytes.
pub fn memfd(size: u64) -> OwnedFd {
    let fd = nix::sys::memfd::memfd_create("test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, i64::try_from(size).unwrap()).unwrap();
    fd
}

/// Whether two descriptors name the same file.
pub fn same_file(a: &impl AsRawFd, b: &impl AsRawFd) -> bool {
    let stat = |fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
    use std::os::unix::fs::MetadataExt;
    let (a, b) = (stat(a.as_raw_fd()), stat(b.as_raw_fd()));
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Our client, with no memory to share.
pub fn client(stream: UnixStream) -> Client {
    Client::new(stream, memory::GuestMemory::new(0), &client::Options { deadline: PATIENCE, ..Default::default() })
        .unwrap()
}

/// The number behind a descriptor that the peer sent.
pub fn number(fd: &outrigger_protocol::foreign::ForeignFd) -> std::os::fd::RawFd {
    fd.lend().as_raw_fd()
}
