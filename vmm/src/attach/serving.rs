//! The thread that serves one device for as long as its link holds: the process's own requests, its hang-up, and the
//! guest's end of an INTx interrupt. It may wait for its device, and does so at no other device's cost.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use outrigger_protocol::client::{Client, Step};
use outrigger_protocol::pci::INTX_IRQ;
use vmm_sys_util::eventfd::EventFd;

use super::device::Device;
use super::link::{Cause, Link};
use crate::irq::IrqError;

/// Stack of the thread that runs a [`Service`], in bytes. Pages that it does not touch cost nothing.
pub const STACK: usize = 128 << 10;

/// How many rounds a device is served before its interrupts are looked at.
const ROUNDS: u32 = 16;

const LEFT_OVER: u64 = 2;
const RESAMPLE: u64 = 3;
const GONE: EpollFlags = EpollFlags::EPOLLHUP.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLERR);

/// A device that cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// No descriptor left.
    #[error("watching a device's sockets")]
    Watch(#[from] io::Error),
    /// No descriptor left.
    #[error(transparent)]
    Irq(#[from] IrqError),
}

/// What a device's thread watches.
pub struct Service {
    device: Arc<Device>,
    link: Arc<Link>,
    resample: Option<EventFd>,
    epoll: Epoll,
}

impl Service {
    /// Watches the sockets of `link`, which serves `device`.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new(device: Arc<Device>, link: Arc<Link>) -> Result<Self, ServiceError> {
        let resample = device.resample()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        let service = Self { device, link, resample, epoll };
        service.watch()?;
        Ok(service)
    }

    fn watch(&self) -> io::Result<()> {
        for (token, watched) in (0..).zip(self.link.client().watch()) {
            self.epoll.add(watched.fd, EpollEvent::new(interest(watched.requests), token))?;
        }
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(self.link.client().left_over(), EpollEvent::new(edge, LEFT_OVER))?;
        if let Some(resample) = &self.resample {
            // SAFETY: the descriptor is open for as long as `resample` is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(resample.as_raw_fd()) };
            self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, RESAMPLE))?;
        }
        Ok(())
    }

    /// Serves the device until its link is lost; returns why it is.
    pub fn run(&self) -> &Cause {
        let mut events = [EpollEvent::empty(); 4];
        // What came while the device was attached made its edge then.
        let mut step = Step::Again;
        loop {
            let was_full = matches!(step, Step::NoRoom(_));
            let count = match self.epoll.wait(&mut events, timeout(step)) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // Unheard of: a device that cannot be watched cannot be kept.
                Err(errno) => {
                    self.link.fail(Cause::Broken(format!("watching it: {}", errno.desc())));
                    0
                }
            };
            let mut hung_up = false;
            for event in &events[..count] {
                match event.data() {
                    RESAMPLE => self.end_interrupt(),
                    _ => hung_up |= event.events().intersects(GONE),
                }
            }
            // A failure is the link's.
            for _ in 0..ROUNDS {
                step = self.link.call(Client::serve_step).unwrap_or(Step::Idle);
                if step != Step::Again {
                    break;
                }
            }
            if hung_up {
                self.link.fail(Cause::HungUp);
            }
            if let Some(cause) = self.link.lost() {
                return cause;
            }
            if matches!(step, Step::NoRoom(_)) != was_full {
                self.watch_for_room(!was_full);
            }
        }
    }

    /// Lets the next wait end when a socket becomes writable, which otherwise happens with every message that the process
    /// takes.
    fn watch_for_room(&self, room: bool) {
        for (token, watched) in (0..).zip(self.link.client().watch()) {
            let mut interest = interest(watched.requests);
            interest.set(EpollFlags::EPOLLOUT, room);
            if let Err(errno) = self.epoll.modify(watched.fd, &mut EpollEvent::new(interest, token)) {
                self.link.fail(Cause::Broken(format!("watching it: {}", errno.desc())));
            }
        }
    }

    /// The guest has ended an interrupt: the device may assert it again.
    fn end_interrupt(&self) {
        let Some(Ok(_)) = self.resample.as_ref().map(EventFd::read) else { return };
        match self.link.call(|client| client.unmask_irq(INTX_IRQ, 0)) {
            Err(error) if !error.is_fatal() => self.device.warnings().warn(format_args!("unmasking INTx: {error}")),
            _ => {}
        }
    }
}

/// Edges: what arrives while a vCPU has the connection is served by that vCPU, not by spinning here.
fn interest(requests: bool) -> EpollFlags {
    let mut interest = EpollFlags::EPOLLET | EpollFlags::EPOLLRDHUP;
    interest.set(EpollFlags::EPOLLIN, requests);
    interest
}

fn timeout(step: Step) -> EpollTimeout {
    match step {
        Step::Idle => EpollTimeout::NONE,
        Step::Again => EpollTimeout::ZERO,
        Step::NoRoom(until) => {
            let remaining = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            EpollTimeout::try_from(remaining).unwrap_or(EpollTimeout::MAX)
        }
    }
}
