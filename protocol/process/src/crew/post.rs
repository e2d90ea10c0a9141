//! The threads of one role, and the work that waits for them.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::libc;

use super::{Outcome, Panicked, Prepare, Role, Work};

pub(super) struct Post {
    state: Mutex<State>,
    /// There is work, or the crew was closed: for the threads.
    called: Condvar,
    /// A thread has prepared itself: for the one that closes the crew.
    prepared: Condvar,
}

struct State {
    enlisted: usize,
    /// Of them: those that are at work.
    busy: usize,
    waiting: VecDeque<Handed>,
    /// A thread was made for work, and is not enlisted.
    has_others: bool,
    closed: bool,
    /// The step that each thread has still to take, once.
    prepare: Option<Arc<Prepare>>,
    /// How many have done so, and the first error.
    prepared: usize,
    failure: Option<io::Error>,
}

struct Handed {
    name: String,
    work: Work,
    outcome: Arc<Outcome>,
}

impl Post {
    pub(super) const fn new() -> Self {
        let state = State {
            enlisted: 0,
            busy: 0,
            waiting: VecDeque::new(),
            has_others: false,
            closed: false,
            prepare: None,
            prepared: 0,
            failure: None,
        };
        Self { state: Mutex::new(state), called: Condvar::new(), prepared: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `make` makes a thread that serves.
    pub(super) fn enlist(&self, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        make()?;
        state.enlisted += 1;
        Ok(())
    }

    /// Gives work to a thread, or gives it back: a new one has to be made. None: there is no thread for it.
    pub(super) fn hand_over(&self, name: &str, work: Work) -> Result<Arc<Outcome>, Option<Work>> {
        let mut state = self.lock();
        let idle = state.enlisted - state.busy;
        // A thread whose work has just told its end is about to take more.
        let most = if state.closed { state.enlisted } else { idle };
        if state.waiting.len() < most {
            let outcome = Arc::default();
            state.waiting.push_back(Handed { name: name.to_owned(), work, outcome: Arc::clone(&outcome) });
            drop(state);
            self.called.notify_one();
            return Ok(outcome);
        }
        state.has_others |= !state.closed;
        Err((!state.closed).then_some(work))
    }

    /// From now on, threads prepare themselves before they take work, and there will be no others.
    pub(super) fn close(&self, prepare: &Arc<Prepare>) -> io::Result<()> {
        let mut state = self.lock();
        let first = !std::mem::replace(&mut state.closed, true);
        if !first || state.has_others || state.busy > 0 || !state.waiting.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        state.prepare = Some(Arc::clone(prepare));
        drop(state);
        self.called.notify_all();
        Ok(())
    }

    pub(super) fn wait_until_prepared(&self) -> io::Result<()> {
        let state = self.lock();
        let waited = self.prepared.wait_while(state, |state| state.prepared < state.enlisted);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.prepare = None;
        state.failure.take().map_or(Ok(()), Err)
    }

    /// The life of an enlisted thread.
    pub(super) fn serve(&self, role: Role) {
        let mut is_prepared = false;
        let mut state = self.lock();
        loop {
            if let (false, Some(prepare)) = (is_prepared, &state.prepare) {
                let prepare = Arc::clone(prepare);
                drop(state);
                let result = catch_unwind(AssertUnwindSafe(|| prepare(role)));
                drop(prepare);
                state = self.lock();
                is_prepared = true;
                state.prepared += 1;
                if let Err(error) = result.unwrap_or_else(|_| Err(io::Error::other(Panicked))) {
                    state.failure.get_or_insert(error);
                }
                self.prepared.notify_all();
            } else if let Some(Handed { name, work, outcome }) = state.waiting.pop_front() {
                state.busy += 1;
                drop(state);
                let result = under_name(role, &name, || catch_unwind(AssertUnwindSafe(work)));
                state = self.lock();
                state.busy -= 1;
                // Only now, as other work may come as soon as this is known.
                outcome.set(result.map_err(|_| Panicked));
            } else {
                state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Gives the thread the work's name meanwhile, for who looks at a process's threads.
fn under_name<T>(role: Role, name: &str, work: impl FnOnce() -> T) -> T {
    if name == role.name() {
        return work();
    }
    rename(name);
    let result = work();
    rename(role.name());
    result
}

fn rename(name: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}
