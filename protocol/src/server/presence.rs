//! Calls that a client can make block, and what ends them once it has left.
//!
//! An eventfd is shared with the client, flags and counter included: a client that clears O_NONBLOCK and fills the
//! counter stops a thread that writes to it, and one that empties a doorbell stops a thread that has just seen it ring.
//! While that client is there it stops nobody but its own device. Once it has left, the next one must not wait. So
//! such calls are made within [`Presence::call`], and a thread that otherwise sleeps until the client hangs up
//! interrupts them from then on (SIGURG, whose handler does nothing and restarts nothing), again and again until the
//! device has let go of the client. Emptying the counter from here would not do: a client may fill it at the same time.
//!
//! A call costs two stores that way, and no system call.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use outrigger_process::crew::{self, Role};

use crate::foreign::ForeignFd;

/// Ignored by default, and sent by the kernel only to those who ask for it.
const SIGNAL: Signal = Signal::SIGURG;
/// How soon a call that blocks again is interrupted again.
const AGAIN: Duration = Duration::from_millis(2);
/// How long a client waits for a thread that watches it. It is free as soon as an earlier client is gone.
const TURN: Duration = Duration::from_secs(2);

/// Whether one client is there.
#[derive(Debug)]
pub(super) struct Presence {
    /// Of this client alone; not zero.
    id: u64,
    has_left: AtomicBool,
    /// The device has let go of it.
    released: Mutex<bool>,
    changed: Condvar,
}

/// A thread that makes such calls.
#[derive(Debug)]
struct Caller {
    thread: Pthread,
    /// The client on which it may be blocked; zero: on none.
    client: AtomicU64,
}

/// Those that are alive.
static CALLERS: Mutex<Vec<Arc<Caller>>> = Mutex::new(Vec::new());

/// Takes the thread off the list before it ends.
struct Registered(Arc<Caller>);

thread_local! {
    static CALLER: Registered = Registered::new();
}

impl Registered {
    fn new() -> Self {
        // The thread may have inherited a mask with it.
        let mut signals = SigSet::empty();
        signals.add(SIGNAL);
        let _ = signals.thread_unblock();
        let caller = Arc::new(Caller { thread: pthread_self(), client: AtomicU64::new(0) });
        callers().push(Arc::clone(&caller));
        Self(caller)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        callers().retain(|caller| !Arc::ptr_eq(caller, &self.0));
    }
}

fn callers() -> MutexGuard<'static, Vec<Arc<Caller>>> {
    CALLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Presence {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, has_left: AtomicBool::new(false), released: Mutex::new(false), changed: Condvar::new() }
    }

    /// Makes a call that this client may make block. It fails with EINTR once the client has left, if it blocks then.
    ///
    /// Its descriptor has to be looked up within `call`: the thread that interrupts calls stays until it has seen none
    /// under way after the device had let go of the client and its descriptors.
    #[inline]
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        CALLER.with(|Registered(caller)| {
            // Sequentially consistent: whoever has let go of a descriptor, and sees no caller here, is seen by it.
            let outer = caller.client.swap(self.id, Ordering::SeqCst);
            let result = call();
            caller.client.store(outer, Ordering::Release);
            result
        })
    }

    /// Whether an interrupted call need not be made again.
    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Acquire)
    }

    /// Interrupts the calls on this client's descriptors; returns whether there was any.
    fn interrupt(&self) -> bool {
        let mut any = false;
        for caller in callers().iter().filter(|caller| caller.client.load(Ordering::SeqCst) == self.id) {
            // It has not ended: a thread takes itself off this list first.
            let _ = pthread_kill(caller.thread, SIGNAL);
            any = true;
        }
        any
    }

    fn released(&self) -> MutexGuard<'_, bool> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the device has let go of the client and nobody is in a call any more.
    fn interrupt_until_released(&self) {
        self.has_left.store(true, Ordering::Release);
        let mut released = self.released();
        while self.interrupt() || !*released {
            released = self.changed.wait_timeout(released, AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Sees to it that nobody stays in a call on the descriptors of a client that has left. Dropped when the device has let
/// go of the client.
#[derive(Debug)]
pub(super) struct Watch {
    presence: Arc<Presence>,
    stream: Arc<ForeignFd>,
}

impl Watch {
    /// Watches the client at the other end of `stream`.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(super) fn start(stream: &Arc<ForeignFd>, presence: &Arc<Presence>) -> io::Result<Self> {
        handle_signal()?;
        let watch = Self { presence: Arc::clone(presence), stream: Arc::clone(stream) };
        let deadline = Instant::now() + TURN;
        loop {
            let (stream, presence) = (Arc::clone(stream), Arc::clone(presence));
            let work = move || {
                wait_for_hang_up(&stream);
                drop(stream);
                presence.interrupt_until_released();
            };
            match crew::spawn(Role::HangUp, "hang-up", work) {
                // Those of earlier clients have left, and the threads that wait for that have yet to see it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => sleep(AGAIN),
                result => return result.map(|_| watch),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.presence.released() = true;
        self.presence.changed.notify_all();
        // If it was not the client that ended the connection.
        self.stream.hang_up();
    }
}

/// Waits until either side has ended the connection. What is still to be received does not matter.
fn wait_for_hang_up(stream: &ForeignFd) {
    let mut fds = [PollFd::new(stream.lend(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
    while matches!(poll(&mut fds, PollTimeout::NONE), Ok(0) | Err(Errno::EINTR)) {}
}

extern "C" fn nothing(_: libc::c_int) {}

fn handle_signal() -> io::Result<()> {
    static HANDLED: OnceLock<nix::Result<()>> = OnceLock::new();
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    let handled = HANDLED.get_or_init(|| unsafe { sigaction(SIGNAL, &action) }.map(drop));
    handled.map_err(Into::into)
}
