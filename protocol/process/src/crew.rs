//! Threads that a process makes at its start, for work that comes later.
//!
//! A device process gives up the right to make threads before it serves anybody, and needs them all the same: one for each
//! queue that a driver takes into service, others for each client. So it makes all of them while it may ([`enlist`]), has
//! each restrict itself, and makes no more ([`close`]). Work is handed to one that has none ([`spawn`]). In a process that
//! calls neither, each work gets a new thread.

mod post;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use nix::libc;

use post::Post;

/// The purpose of a thread, which decides what it has to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Moves the data of a queue.
    Queue,
    /// Executes register accesses that come by ioregionfd.
    Registers,
    /// Waits for a client to hang up, and interrupts the calls that it leaves blocked.
    HangUp,
    /// Closes what a peer has sent.
    Closing,
    /// Writes to standard error.
    Output,
    /// Waits for the signals that end the process.
    Signals,
}

/// Small: nothing is done there but system calls.
const SMALL_STACK: usize = 64 << 10;

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Queue, Self::Registers, Self::HangUp, Self::Closing, Self::Output, Self::Signals];

    /// The name of a thread that has no work.
    fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Registers => "registers",
            Self::HangUp => "hang-up",
            Self::Closing => "closing",
            Self::Output => "output",
            Self::Signals => "signals",
        }
    }

    fn builder(self, name: &str) -> Builder {
        let builder = Builder::new().name(name.to_owned());
        match self {
            Self::HangUp | Self::Closing | Self::Output => builder.stack_size(SMALL_STACK),
            Self::Queue | Self::Registers | Self::Signals => builder,
        }
    }
}

type Work = Box<dyn FnOnce() + Send>;
type Prepare = dyn Fn(Role) -> io::Result<()> + Send + Sync;

static CREW: Crew = Crew::new();

/// Makes `count` threads of this role, which wait for work.
///
/// # Errors
/// The system has no more threads, or the crew is closed.
pub fn enlist(role: Role, count: usize) -> io::Result<()> {
    CREW.enlist(role, count)
}

/// Has a thread of this role do `work`. If there is none without work, a new one does; once the crew is closed, the work
/// waits for one, up to as many works as there are threads. A panic ends the work, not an enlisted thread.
///
/// While it works, a thread has the name `name`; the kernel keeps 15 bytes of it.
///
/// # Errors
/// The system has no thread for it, or the closed crew has none: EAGAIN.
pub fn spawn(role: Role, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Job> {
    CREW.spawn(role, name, work)
}

/// Has each enlisted thread execute `prepare`, and makes no more threads from then on. Returns when all have done so.
///
/// # Errors
/// One of `prepare`'s, after all have ended; or EBUSY: a thread is not enlisted, or has work already and cannot prepare
/// itself. The crew is closed all the same.
pub fn close(prepare: impl Fn(Role) -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
    CREW.close(prepare)
}

/// Work that a thread does. Dropping this changes nothing about it.
#[derive(Debug)]
pub struct Job(Doer);

#[derive(Debug)]
enum Doer {
    /// Made for it.
    New(JoinHandle<()>),
    Enlisted(Arc<Outcome>),
}

/// The work has panicked, which has been reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a thread has panicked")]
pub struct Panicked;

impl Job {
    /// Waits for the end of the work. From then on, the thread takes other work.
    ///
    /// # Errors
    /// It has panicked.
    pub fn join(self) -> Result<(), Panicked> {
        match self.0 {
            Doer::New(thread) => thread.join().map_err(|_| Panicked),
            Doer::Enlisted(outcome) => outcome.wait(),
        }
    }
}

/// How a work of an enlisted thread has ended.
#[derive(Debug, Default)]
struct Outcome {
    result: Mutex<Option<Result<(), Panicked>>>,
    known: Condvar,
}

impl Outcome {
    fn set(&self, result: Result<(), Panicked>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.known.notify_all();
    }

    fn wait(&self) -> Result<(), Panicked> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *result {
                Some(result) => return result,
                None => result = self.known.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The threads of a process.
struct Crew([Post; Role::ALL.len()]);

impl Crew {
    const fn new() -> Self {
        Self([const { Post::new() }; Role::ALL.len()])
    }

    fn post(&self, role: Role) -> &Post {
        &self.0[role as usize]
    }

    fn enlist(&'static self, role: Role, count: usize) -> io::Result<()> {
        for _ in 0..count {
            self.post(role).enlist(|| {
                let serve = move || self.post(role).serve(role);
                role.builder(role.name()).spawn(serve).map(drop)
            })?;
        }
        Ok(())
    }

    fn spawn(&self, role: Role, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Job> {
        match self.post(role).hand_over(name, Box::new(work)) {
            Ok(outcome) => Ok(Job(Doer::Enlisted(outcome))),
            Err(Some(work)) => Ok(Job(Doer::New(role.builder(name).spawn(work)?))),
            Err(None) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        }
    }

    fn close(&self, prepare: impl Fn(Role) -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
        let prepare: Arc<Prepare> = Arc::new(prepare);
        // All of them, so that no thread is made, whatever becomes of this.
        let can = Role::ALL.map(|role| self.post(role).close(&prepare));
        can.into_iter().collect::<io::Result<()>>()?;
        let prepared = Role::ALL.map(|role| self.post(role).wait_until_prepared());
        prepared.into_iter().collect()
    }
}
