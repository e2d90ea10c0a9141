//! The main thread's event loop: file descriptors on one epoll, each with the closure that serves it.
//!
//! It carries what is rare and must not disturb a vCPU: signals, timers, sockets of devices without an outstanding
//! request, eventfds that are watched rather than given to KVM. Sources are added before [`EventLoop::run`], which
//! returns when [`Stop`] is requested; a source leaves when its handler says so.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmm_sys_util::eventfd::EventFd;

use crate::outcome::Stop;

/// Events taken from the kernel by one system call; more wait for the next.
const BATCH: usize = 32;

/// The token of the [`Stop`]; sources count up from the next.
const STOP_TOKEN: u64 = 0;

/// What epoll refused.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// No epoll instance: the host is out of descriptors or memory.
    #[error("cannot create an epoll instance")]
    Create(#[source] io::Error),
    /// The descriptor cannot be watched, for example because it is a regular file.
    #[error("cannot watch file descriptor {fd}")]
    Add {
        /// The number of the refused descriptor.
        fd: i32,
        /// epoll_ctl's error.
        #[source]
        source: io::Error,
    },
    /// epoll_wait failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// Called with what happened; `Break` removes and closes the source.
type Handler = Box<dyn FnMut(EpollFlags) -> ControlFlow<()>>;

struct Source {
    fd: OwnedFd,
    handler: Handler,
}

/// See the [module](self).
pub struct EventLoop {
    epoll: Epoll,
    sources: HashMap<u64, Source>,
    next_token: u64,
}

impl EventLoop {
    /// A loop without sources.
    ///
    /// # Errors
    /// [`EventsError::Create`].
    pub fn new() -> Result<Self, EventsError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| EventsError::Create(errno.into()))?;
        Ok(EventLoop { epoll, sources: HashMap::new(), next_token: STOP_TOKEN + 1 })
    }

    /// Watches `fd` until `handler` returns `Break` or the loop is dropped; either closes `fd`.
    ///
    /// `interest` is epoll's: level-triggered unless it has `EPOLLET`; empty for hang-up and error only, which are
    /// always reported. A level-triggered handler has to take away the cause (read the data, or return `Break`),
    /// else it is called again at once. `fd` is owned so that its number cannot come to mean something else meanwhile:
    /// a caller that uses it too keeps a duplicate (`as_fd().try_clone_to_owned()`, [`duplicate`] for an eventfd).
    ///
    /// # Errors
    /// [`EventsError::Add`] where epoll cannot watch this kind of file.
    pub fn add<H>(&mut self, fd: OwnedFd, interest: EpollFlags, handler: H) -> Result<(), EventsError>
    where
        H: FnMut(EpollFlags) -> ControlFlow<()> + 'static,
    {
        let token = self.next_token;
        self.watch(&fd, interest, token)?;
        self.next_token += 1;
        self.sources.insert(token, Source { fd, handler: Box::new(handler) });
        Ok(())
    }

    /// Number of sources being watched.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Serves the sources until `stop` is requested, by a handler or by another thread.
    ///
    /// # Errors
    /// [`EventsError::Add`] or [`EventsError::Wait`]: the host's resources ran out.
    pub fn run(&mut self, stop: &Stop) -> Result<(), EventsError> {
        self.watch(stop, EpollFlags::EPOLLIN, STOP_TOKEN)?;
        let mut events = [EpollEvent::empty(); BATCH];
        while !stop.requested() {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(EventsError::Wait(errno.into())),
            };
            for event in events.iter().take(count) {
                if stop.requested() {
                    break;
                }
                self.dispatch(event.data(), event.events());
            }
        }
        // Fails only if the descriptor were not watched, and it is.
        let _ = self.epoll.delete(stop);
        Ok(())
    }

    fn watch(&self, fd: impl AsFd, interest: EpollFlags, token: u64) -> Result<(), EventsError> {
        let number = fd.as_fd().as_raw_fd();
        self.epoll
            .add(fd, EpollEvent::new(interest, token))
            .map_err(|errno| EventsError::Add { fd: number, source: errno.into() })
    }

    fn dispatch(&mut self, token: u64, what: EpollFlags) {
        // Absent: the Stop's token, or a source removed since the kernel reported it.
        let Some(source) = self.sources.get_mut(&token) else { return };
        if (source.handler)(what).is_break()
            && let Some(source) = self.sources.remove(&token)
        {
            // Explicit, since epoll forgets an open file only when its last duplicate is closed.
            let _ = self.epoll.delete(source.fd);
        }
    }
}

/// A duplicate of `event` in the form that [`EventLoop::add`] takes.
///
/// # Errors
/// The host's, where it is out of descriptors.
pub fn duplicate(event: &EventFd) -> io::Result<OwnedFd> {
    let fd = event.try_clone()?.into_raw_fd();
    // SAFETY: into_raw_fd gave up the ownership of this open descriptor; nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Duration;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::outcome::Outcome;

    /// A loop, its stop, and a guard that ends it after two seconds so that a failing test doesn't hang.
    fn fixture() -> (EventLoop, Stop) {
        let stop = Stop::new().unwrap();
        let late = stop.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            late.request(Outcome::UserQuit);
        });
        (EventLoop::new().unwrap(), stop)
    }

    #[test]
    fn a_level_triggered_source_is_served_until_its_cause_is_gone() {
        let (mut events, stop) = fixture();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let calls = Rc::new(Cell::new(0));
        let (seen, reader, end) = (Rc::clone(&calls), event.try_clone().unwrap(), stop.clone());
        events
            .add(duplicate(&event).unwrap(), EpollFlags::EPOLLIN, move |what| {
                assert!(what.contains(EpollFlags::EPOLLIN));
                seen.set(seen.get() + 1);
                if seen.get() == 3 {
                    assert_eq!(reader.read().unwrap(), 7);
                    end.request(Outcome::PowerOff);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        event.write(7).unwrap();
        events.run(&stop).unwrap();
        assert_eq!((calls.get(), stop.outcome()), (3, Some(Outcome::PowerOff)));
    }

    #[test]
    fn an_edge_triggered_source_is_served_once_an_edge() {
        let (mut events, stop) = fixture();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let calls = Rc::new(Cell::new(0));
        let seen = Rc::clone(&calls);
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        events
            .add(duplicate(&event).unwrap(), edge, move |_| {
                seen.set(seen.get() + 1);
                ControlFlow::Continue(())
            })
            .unwrap();
        event.write(1).unwrap();
        let end = stop.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            end.request(Outcome::PowerOff);
        });
        events.run(&stop).unwrap();
        assert_eq!((calls.get(), stop.outcome()), (1, Some(Outcome::PowerOff)));
    }

    #[test]
    fn hang_up_is_reported_without_interest_and_break_removes_the_source() {
        let (mut events, stop) = fixture();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let end = stop.clone();
        events
            .add(theirs.as_fd().try_clone_to_owned().unwrap(), EpollFlags::empty(), move |what| {
                assert!(what.contains(EpollFlags::EPOLLHUP));
                end.request(Outcome::Reboot);
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(events.len(), 1);
        ours.write_all(b"data alone wakes nobody").unwrap();
        drop(ours);
        events.run(&stop).unwrap();
        assert_eq!(stop.outcome(), Some(Outcome::Reboot));
        assert!(events.is_empty());
        let mut rest = String::new();
        theirs.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "data alone wakes nobody");
    }

    #[test]
    fn a_removed_source_whose_duplicate_lives_is_not_reported_again() {
        let (mut events, stop) = fixture();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let end = stop.clone();
        let calls = Rc::new(Cell::new(0));
        let seen = Rc::clone(&calls);
        events
            .add(duplicate(&event).unwrap(), EpollFlags::EPOLLIN, move |_| {
                seen.set(seen.get() + 1);
                let end = end.clone();
                std::thread::spawn(move || end.request(Outcome::PowerOff));
                ControlFlow::Break(())
            })
            .unwrap();
        event.write(1).unwrap();
        events.run(&stop).unwrap();
        assert_eq!((calls.get(), stop.outcome()), (1, Some(Outcome::PowerOff)));
    }

    #[test]
    fn a_regular_file_is_refused_with_its_number() {
        let mut events = EventLoop::new().unwrap();
        let file: OwnedFd = File::open("/proc/self/exe").unwrap().into();
        let number = file.as_raw_fd();
        let refused = events.add(file, EpollFlags::EPOLLIN, |_| ControlFlow::Break(())).unwrap_err();
        assert!(matches!(refused, EventsError::Add { fd, .. } if fd == number), "{refused:?}");
    }

    #[test]
    fn a_stop_requested_beforehand_returns_at_once() {
        let stop = Stop::new().unwrap();
        stop.request(Outcome::PowerOff);
        EventLoop::new().unwrap().run(&stop).unwrap();
    }
}
