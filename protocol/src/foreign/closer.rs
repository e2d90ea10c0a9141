//! Threads that close what may take long to close, so that nobody else has to wait for it.
//!
//! One thread is enough as long as closing takes no time. When one takes longer than [`PATIENCE`], another goes on with
//! the rest, up to [`MOST_THREADS`], or to those that the process has for it ([`crew`]); after that, what is dropped stays
//! open until one of them is through. A peer can keep a thread here for as long as it likes (a FUSE file that its daemon
//! does not flush; SO_LINGER, set again between the two system calls below), so what one peer owes is counted, and a peer
//! that owes too much is cut off by [`crate::socket::Socket::receive`]. None of this holds up the end of the process: the
//! kernel does not linger for a process that exits, but it does wait for the flush of a FUSE file.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use outrigger_process::crew::{self, Role};

/// How many threads may be stuck in `close` at most.
const MOST_THREADS: usize = 64;
/// How long one `close` may take before another thread goes on with the rest.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long threads wait for something to close before they end.
const IDLE: Duration = Duration::from_millis(200);

/// How many descriptors of one peer are still to be closed.
#[derive(Debug, Default)]
pub(crate) struct Debt(AtomicUsize);

impl Debt {
    pub(crate) fn owed(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

struct Waiting {
    fd: OwnedFd,
    debt: Option<Arc<Debt>>,
}

struct State {
    waiting: VecDeque<Waiting>,
    /// How many were closed since the beginning.
    closed: u64,
    workers: usize,
    /// Of them: those that wait for work.
    idle: usize,
    /// The thread that sees to it that there is a worker which is not stuck.
    overseen: bool,
}

static STATE: Mutex<State> =
    Mutex::new(State { waiting: VecDeque::new(), closed: 0, workers: 0, idle: 0, overseen: false });
/// There is something to close, or something was closed.
static CHANGED: Condvar = Condvar::new();

/// Closes a descriptor, elsewhere and soon.
pub(super) fn close(fd: OwnedFd, debt: Option<Arc<Debt>>) {
    if let Some(debt) = &debt {
        debt.0.fetch_add(1, Ordering::Relaxed);
    }
    let mut state = state();
    state.waiting.push_back(Waiting { fd, debt });
    if !state.overseen {
        // If the system has no thread for us now, the next descriptor brings another attempt.
        state.overseen = spawn(oversee).is_ok();
    }
    drop(state);
    CHANGED.notify_all();
}

fn spawn(work: fn()) -> io::Result<()> {
    crew::spawn(Role::Closing, "closing", work).map(drop)
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits while `condition` holds, at most for `time`.
fn wait_while(
    state: MutexGuard<'static, State>,
    time: Duration,
    condition: impl Fn(&State) -> bool,
) -> MutexGuard<'static, State> {
    let waited = CHANGED.wait_timeout_while(state, time, |state| condition(state));
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// Starts a worker whenever something waits and none of those that are there gets on.
fn oversee() {
    let mut state = state();
    let mut stuck = false;
    loop {
        state = wait_while(state, IDLE, |state| state.waiting.is_empty());
        if state.waiting.is_empty() {
            state.overseen = false;
            return;
        }
        let needed = state.workers == 0 || stuck;
        // On failure: again after a pause.
        if needed && state.idle == 0 && state.workers < MOST_THREADS && spawn(work).is_ok() {
            state.workers += 1;
        }
        let closed = state.closed;
        state = wait_while(state, PATIENCE, |state| !state.waiting.is_empty());
        stuck = !state.waiting.is_empty() && state.closed == closed;
    }
}

fn work() {
    let mut state = state();
    loop {
        let Some(Waiting { fd, debt }) = state.waiting.pop_front() else {
            // The overseer waits for this.
            CHANGED.notify_all();
            state.idle += 1;
            state = wait_while(state, IDLE, |state| state.waiting.is_empty());
            state.idle -= 1;
            if state.waiting.is_empty() {
                state.workers -= 1;
                return;
            }
            continue;
        };
        drop(state);
        // Unsent bytes are sent all the same. Fails for anything but a socket.
        let _ = setsockopt(&fd, sockopt::Linger, &linger { l_onoff: 0, l_linger: 0 });
        drop(fd);
        if let Some(debt) = debt {
            debt.0.fetch_sub(1, Ordering::Relaxed);
        }
        state = self::state();
        state.closed += 1;
    }
}
