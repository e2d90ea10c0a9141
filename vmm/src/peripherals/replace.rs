//! Planned replacement: another process takes over from one that works, and the guest notices a pause at most.
//!
//! The successor gets ready on the thread of whoever wishes it, while the predecessor serves the guest. Everything that
//! can be refused is refused there. The device's own thread then changes from one to the other.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;

use super::error::Problem;
use super::migration::{copy, migrates};
use super::peripheral::Peripheral;
use super::prepare::Ready;
use super::restart::Takeover;
use super::status::ServiceState;
use crate::attach::death::Cause;
use crate::config::Source;

/// A replacement that did not take place.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// There is no such device.
    #[error("there is no device in this slot")]
    NoDevice,
    /// A server that somebody else runs.
    #[error("its server was not started by outrigger, so outrigger cannot start another; restart it by hand")]
    NotOurs,
    /// Its state cannot be handed over.
    #[error("{0} keeps no journal and does not migrate, so its state cannot be handed over")]
    NoWay(String),
    /// Another one is under way, or the device is not served.
    #[error("the device is {0} now")]
    Busy(&'static str),
    /// The new process is of no use; the old one goes on.
    #[error("{0}; the device goes on with the process that it has")]
    Refused(String),
    /// The old process was gone when the new one failed.
    #[error("the new process failed when it took over: {0}; the device is restarted")]
    Failed(String),
}

/// The way to a device's thread.
pub(super) struct Orders {
    bell: EventFd,
    waiting: Mutex<Waiting>,
    /// Held by whoever is about to give one.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    order: Option<Order>,
    /// The thread has ended.
    closed: bool,
}

struct Order {
    ready: Ready,
    answer: Sender<Result<Duration, ReplaceError>>,
}

impl Orders {
    pub(super) fn new() -> Result<Self, Problem> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let bell = bell.map_err(|errno| Problem::Thread(errno.into()))?;
        Ok(Self { bell, waiting: Mutex::default(), turn: Mutex::default() })
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Nobody takes orders any more.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.order = None;
    }

    /// Gives an order; it is returned if nobody takes it.
    fn give(&self, order: Order) -> Result<(), Box<Order>> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Box::new(order));
        }
        waiting.order = Some(order);
        // Fails with EAGAIN only, and then the bell rings already.
        let _ = self.bell.write(1);
        Ok(())
    }

    fn take(&self) -> Option<Order> {
        // An error says that the bell was silent.
        let _ = self.bell.read();
        self.lock().order.take()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peripheral {
    /// Lets another process serve the device: of the same program, or of `program`. Returns how long accesses waited.
    ///
    /// # Errors
    /// See [`ReplaceError`].
    pub(super) fn replace(&self, program: Option<PathBuf>) -> Result<Duration, ReplaceError> {
        let _turn = match self.orders.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(ReplaceError::Busy("being replaced")),
        };
        let (state, source) = {
            let now = self.now();
            (now.state, now.source.clone())
        };
        if state != ServiceState::Serving {
            return Err(ReplaceError::Busy(state.name()));
        }
        let Source::Program { program: present, options, inherited, sandbox } = source else {
            return Err(ReplaceError::NotOurs);
        };
        let takeover = if self.kept.is_some() { Takeover::Journal } else { Takeover::Migration };
        let link = self.now().link.clone();
        if takeover == Takeover::Migration && !link.call(migrates).unwrap_or(false) {
            return Err(ReplaceError::NoWay(self.program_name()));
        }
        let source = Source::Program { program: program.unwrap_or(present), options, inherited, sandbox };
        let refused = |problem: Problem| ReplaceError::Refused(problem.to_string());
        let ready = self.get_ready(source, Instant::now() + self.config.restart_deadline()).map_err(refused)?;
        if takeover == Takeover::Migration && !ready.link.call(migrates).unwrap_or(false) {
            self.discard(&ready);
            return Err(refused(Problem::Other("does not migrate".to_owned())));
        }
        let (answer, answered) = channel();
        if let Err(refused) = self.orders.give(Order { ready, answer }) {
            self.discard(&refused.ready);
            return Err(ReplaceError::Busy(ServiceState::Withdrawn.name()));
        }
        answered.recv().unwrap_or(Err(ReplaceError::Busy(ServiceState::Withdrawn.name())))
    }

    /// Changes to a process that is ready. None: there is none, or it came too late; false: both are gone.
    pub(super) fn follow_order(&self) -> Option<bool> {
        let Order { ready, answer } = self.orders.take()?;
        if !ready.successor.is_next(&self.generations) {
            self.discard(&ready);
            let _ = answer.send(Err(ReplaceError::Busy(ServiceState::Restarting.name())));
            return None;
        }
        let begun = Instant::now();
        let end = begun + self.config.restart_deadline();
        let (link, process) = {
            let now = self.now();
            (now.link.clone(), now.process.clone())
        };
        // From here on accesses wait.
        link.retire();
        let takeover = if self.kept.is_some() { Takeover::Journal } else { Takeover::Migration };
        if takeover == Takeover::Migration {
            self.device.suspend();
            if let Err(problem) = copy(link.client(), ready.link.client(), end) {
                self.discard(&ready);
                let why = problem.to_string();
                let is_served = self.go_on_with(link.client(), end).is_ok();
                let error = if is_served { ReplaceError::Refused(why) } else { ReplaceError::Failed(why) };
                let _ = answer.send(Err(error));
                return Some(is_served);
            }
        }
        link.fail(Cause::Replaced);
        if let Some(process) = &process {
            // It finishes what it has begun, which may take as long as its storage does.
            if process.wait(self.config.restart_deadline() / 2).is_none() {
                process.signal(Signal::SIGKILL);
                if process.wait(end.saturating_duration_since(Instant::now())).is_none() {
                    self.discard(&ready);
                    let _ = answer.send(Err(ReplaceError::Failed("its predecessor does not end".to_owned())));
                    return Some(false);
                }
            }
            self.host.control.processes.remove(process);
        }
        let result = self.hand_over(ready, takeover, end);
        let outcome = match &result {
            Ok(()) => {
                self.now().replacements += 1;
                Ok(self.note_outage(begun))
            }
            Err(problem) => Err(ReplaceError::Failed(problem.to_string())),
        };
        // The caller may have given up.
        let _ = answer.send(outcome);
        Some(result.is_ok())
    }
}
