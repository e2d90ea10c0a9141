//! The launcher as the VMM sees it: it is given one order after another, and its answers are waited for.
//!
//! An order is given up at the end of its device's time, and its answer is still to come then. What that brings is ended before
//! the next order is given, so no process lives that nobody knows of, and no answer is taken for another's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use outrigger_process::packets::{Lost, Packets};
use outrigger_process::pidfd::PidFd;

use super::order::{self, LONGEST, Outcome};
use super::{ANSWER, SpawnError};

/// Most descriptors of an answer: those of a process and of its socket, and of processes that could not be made otherwise.
pub(super) const MOST_ANSWERED: usize = 4;
/// How long a process that was killed may take to end. In milliseconds.
pub(super) const END: u16 = 1000;
/// How often one whose number alone is known is looked at within that time.
const LOOK: Duration = Duration::from_millis(10);
/// Errors of which too many descriptors, under way or here, or too little memory are the cause, and the launcher is not.
const SHORTAGES: [Errno; 4] = [Errno::ETOOMANYREFS, Errno::EMFILE, Errno::ENOBUFS, Errno::ENOMEM];

/// The launcher.
#[derive(Debug)]
pub(super) struct Orders {
    /// None: it has been given up.
    pub(super) socket: Option<Packets>,
    /// None: its end has been seen.
    pub(super) id: Option<Pid>,
    /// An answer is still to come, and when the launcher is given up if it does not.
    pub(super) owed: Option<Instant>,
}

impl Orders {
    /// Descriptors in the place of those of the next answer: without room for them they would be lost, and the process with them.
    pub(super) fn reserve(&self) -> io::Result<Vec<OwnedFd>> {
        let one = |socket: &Packets| socket.as_fd().try_clone_to_owned();
        self.socket.iter().flat_map(|socket| (0..MOST_ANSWERED).map(move |_| one(socket))).collect()
    }

    /// Gives an order, and waits for what comes of it until `end`. `room` is let go when the answer comes.
    pub(super) fn give(
        &mut self,
        order: &[u8],
        fds: &[BorrowedFd<'_>],
        room: Vec<OwnedFd>,
        end: Instant,
    ) -> Result<(Outcome, Vec<OwnedFd>), SpawnError> {
        if self.owed.is_some() {
            self.wait(end)?;
            match self.take() {
                Ok((outcome, fds)) => dispose(&outcome, fds),
                Err(error) if error.is_final() => return Err(error),
                Err(_) => {}
            }
        }
        let Some(socket) = &self.socket else { return Err(self.give_up()) };
        match socket.send(order, fds) {
            Ok(()) => {}
            Err(error) if is_shortage(&error) => return Err(SpawnError::Watch(error)),
            Err(_) => return Err(self.give_up()),
        }
        self.owed = Some(Instant::now() + ANSWER);
        self.wait(end)?;
        drop(room);
        self.take()
    }

    /// Waits for the answer that is owed. A launcher that owes it for too long is given up.
    fn wait(&mut self, end: Instant) -> Result<(), SpawnError> {
        let (Some(socket), Some(owed)) = (&self.socket, self.owed) else { return Ok(()) };
        match is_ready(socket.as_fd(), end.min(owed)) {
            true => Ok(()),
            false if end < owed => Err(SpawnError::Late),
            false => Err(self.give_up()),
        }
    }

    /// Takes the answer that has come.
    fn take(&mut self) -> Result<(Outcome, Vec<OwnedFd>), SpawnError> {
        self.owed = None;
        let Some(socket) = &self.socket else { return Err(self.give_up()) };
        match receive(socket) {
            (Some(outcome), fds, None) => Ok((outcome, fds)),
            (outcome, fds, Some(error)) if is_shortage(&error) => {
                if let Some(outcome) = outcome {
                    dispose(&outcome, fds);
                }
                Err(SpawnError::Watch(error))
            }
            _ => Err(self.give_up()),
        }
    }

    /// Ends the launcher, and what it has started just too late.
    pub(super) fn give_up(&mut self) -> SpawnError {
        let socket = self.socket.take();
        self.owed = None;
        if let Some(id) = self.id {
            // It is this process's child and has not been waited for, so the number is its own.
            _ = kill(id, Signal::SIGKILL);
            if has_ended(id) {
                self.id = None;
            }
        }
        if let Some(socket) = socket {
            while is_ready(socket.as_fd(), Instant::now()) {
                let (Some(outcome), fds, _) = receive(&socket) else { break };
                dispose(&outcome, fds);
            }
        }
        SpawnError::NoLauncher
    }
}

/// Takes an answer that has come: the outcome, if it is one; the descriptors that there is room for; why that is not all.
fn receive(socket: &Packets) -> (Option<Outcome>, Vec<OwnedFd>, Option<io::Error>) {
    let mut message = [0; LONGEST];
    let (length, fds, error) = match socket.receive(&mut message) {
        Ok((length, fds)) => (length, fds, None),
        Err(Lost { error, length, fds }) => (length, fds, Some(error)),
    };
    (order::decode(&message[..length]), fds, error)
}

/// Ends the processes of an answer that nobody waits for.
fn dispose(outcome: &Outcome, fds: Vec<OwnedFd>) {
    let mut fds = fds.into_iter();
    if let Ok(id) = *outcome {
        match (fds.next(), i32::try_from(id)) {
            (Some(process), _) => PidFd::from(process).end(END),
            (None, Ok(id @ 1..)) => _ = has_ended(Pid::from_raw(id)),
            (None, _) => {}
        }
        drop(fds.next());
    }
    fds.map(PidFd::from).for_each(|process| process.end(END));
}

/// Kills a child of this process, and nobody else, by its number; whether it has ended in time.
fn has_ended(id: Pid) -> bool {
    let end = Instant::now() + Duration::from_millis(END.into());
    while waitpid(id, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
        if Instant::now() > end {
            return false;
        }
        _ = kill(id, Signal::SIGKILL);
        thread::sleep(LOOK);
    }
    true
}

/// Whether there is something to read, until `end`.
fn is_ready(socket: BorrowedFd<'_>, end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is not spent spinning.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return false,
            Err(errno) if errno != Errno::EINTR => return false,
            Ok(0) | Err(_) => {}
            Ok(_) => return true,
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| SHORTAGES.contains(&Errno::from_raw(errno)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use outrigger_process::packets::MOST_DESCRIPTORS;

    use super::*;

    /// A launcher, and its end of the socket.
    fn pair() -> (Orders, Packets) {
        let (ours, theirs) = Packets::pair().unwrap();
        (Orders { socket: Some(ours), id: None, owed: None }, theirs)
    }

    #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
    fn child() -> (u32, PidFd) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        (child.id(), PidFd::open(child.id()).unwrap())
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[test]
    fn a_process_whose_answer_does_not_fit_does_not_live() {
        let (mut orders, launcher) = pair();
        let (id, process) = child();
        let fds = vec![process.as_fd(); MOST_DESCRIPTORS + 1];
        launcher.send(&order::encode(&Ok(id)), &fds).unwrap();
        let error = orders.give(b"order", &[], Vec::new(), far()).unwrap_err();
        assert!(matches!(error, SpawnError::Watch(_)), "{error}");
        assert!(process.take_status().is_err(), "it was not waited for");
        // Without any descriptor.
        let (id, process) = child();
        dispose(&Ok(id), Vec::new());
        assert!(process.take_status().is_err(), "it was not waited for");
        // Somebody else's.
        dispose(&Ok(1), Vec::new());
        dispose(&Ok(0), Vec::new());
    }

    #[test]
    fn an_answer_that_comes_late_is_that_to_no_other_order_and_its_process_does_not_live() {
        let (mut orders, launcher) = pair();
        for _ in 0..2 {
            let error = orders.give(b"one", &[], Vec::new(), Instant::now()).unwrap_err();
            assert!(matches!(error, SpawnError::Late) && !error.is_final(), "{error}");
        }
        let (id, process) = child();
        launcher.send(&order::encode(&Ok(id)), &[process.as_fd(), process.as_fd()]).unwrap();
        launcher.send(&order::encode(&Ok(7)), &[]).unwrap();
        assert_eq!(orders.give(b"two", &[], Vec::new(), far()).unwrap().0, Ok(7));
        assert!(process.take_status().is_err(), "it was not waited for");
        let mut order = [0; 8];
        for sent in [b"one", b"two"] {
            let (length, _) = launcher.receive(&mut order).unwrap();
            assert_eq!(&order[..length], sent);
        }
    }

    #[test]
    fn a_launcher_that_owes_an_answer_for_too_long_is_given_up_with_what_it_has_started() {
        let (mut orders, launcher) = pair();
        orders.owed = Some(Instant::now());
        assert!(orders.give(b"order", &[], Vec::new(), far()).unwrap_err().is_final());
        assert!(launcher.send(b"late", &[]).is_err());
        let (mut orders, launcher) = pair();
        let (id, process) = child();
        launcher.send(&order::encode(&Ok(id)), &[process.as_fd(), process.as_fd()]).unwrap();
        orders.give_up();
        assert!(process.take_status().is_err(), "it was not waited for");
        assert!(orders.give(b"order", &[], Vec::new(), far()).unwrap_err().is_final());
    }
}
