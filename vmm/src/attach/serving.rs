//! The thread that serves one device for as long as its link holds: the process's own requests, its hang-up, and the
//! guest's end of an INTx interrupt. It may wait for its device, and does so at no other device's cost.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use outrigger_protocol::client::{Client, Step};
use outrigger_protocol::pci::INTX_IRQ;
use vmm_sys_util::eventfd::EventFd;

use super::death::Cause;
use super::device::Device;
use super::link::Link;
use super::ping::Ping;
use crate::control::processes::DeviceProcess;
use crate::irq::IrqError;

/// Stack of the thread that runs a [`Service`], in bytes. Pages that it does not touch cost nothing.
pub const STACK: usize = 128 << 10;

/// How many rounds a device is served before its interrupts are looked at.
const ROUNDS: u32 = 16;

const LEFT_OVER: u64 = 2;
const RESAMPLE: u64 = 3;
const PROCESS: u64 = 4;
const ORDER: u64 = 5;
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

/// A device and the descriptors that its thread polls.
pub struct Service {
    device: Arc<Device>,
    link: Arc<Link>,
    resample: Option<EventFd>,
    /// None: a process that does not answer is noticed when the guest accesses the device.
    ping: Option<Ping>,
    epoll: Epoll,
}

/// Why a device's thread no longer serves a link.
#[derive(Debug, PartialEq, Eq)]
pub enum Interruption<'a> {
    /// The link is lost.
    Lost(&'a Cause),
    /// Somebody has an order for the thread.
    Ordered,
}

impl Service {
    /// Watches the sockets of `link`, which serves `device`.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new(device: Arc<Device>, link: Arc<Link>) -> Result<Self, ServiceError> {
        let resample = device.resample()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        let service = Self { device, link, resample, ping: None, epoll };
        service.watch()?;
        Ok(service)
    }

    /// Asks now and then whether the process still answers, and notices when it is stopped.
    ///
    /// # Errors
    /// If the system has no memory left.
    pub fn ping(mut self, process: Option<Arc<DeviceProcess>>) -> Result<Self, ServiceError> {
        if let Some(process) = &process {
            let added = self.epoll.add(process.changed(), EpollEvent::new(EpollFlags::EPOLLIN, PROCESS));
            added.map_err(io::Error::from)?;
        }
        self.ping = Some(Ping::new(process));
        Ok(self)
    }

    /// Ends [`run`](Self::run) when `bell` becomes readable.
    ///
    /// # Errors
    /// If the system has no memory left.
    pub fn take_orders(self, bell: impl AsFd) -> Result<Self, ServiceError> {
        self.epoll.add(bell, EpollEvent::new(EpollFlags::EPOLLIN, ORDER)).map_err(io::Error::from)?;
        Ok(self)
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

    /// Serves the device until its link is lost, or there is an order.
    pub fn run(&mut self) -> Interruption<'_> {
        let mut events = [EpollEvent::empty(); 6];
        // Messages that came while the device was attached made their edge then.
        let mut step = Step::Again;
        loop {
            let was_full = matches!(step, Step::NoRoom(_));
            let count = match self.epoll.wait(&mut events, self.timeout(step)) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // Unheard of: a device that cannot be watched cannot be kept.
                Err(errno) => {
                    self.link.fail(Cause::Broken(format!("watching it: {}", errno.desc())));
                    0
                }
            };
            let (mut hung_up, mut ordered) = (false, false);
            for event in &events[..count] {
                match event.data() {
                    RESAMPLE => self.end_interrupt(),
                    ORDER => ordered = true,
                    // Looked at below.
                    PROCESS => {}
                    _ => hung_up |= event.events().intersects(GONE),
                }
            }
            // A failure is the link's.
            for _ in 0..ROUNDS {
                step = self.link.post(Client::serve_step).unwrap_or(Step::Idle);
                if step != Step::Again {
                    break;
                }
            }
            if hung_up {
                self.link.fail(Cause::HungUp);
            }
            if let Some(ping) = &mut self.ping {
                ping.check(&self.link);
            }
            if self.link.lost().is_some() {
                break;
            }
            if ordered {
                return Interruption::Ordered;
            }
            if matches!(step, Step::NoRoom(_)) != was_full {
                self.watch_for_room(!was_full);
            }
        }
        Interruption::Lost(self.link.lost().expect("just seen, and it stays"))
    }

    /// How long there is nothing to do unless something happens.
    fn timeout(&self, step: Step) -> EpollTimeout {
        let step = match step {
            Step::Idle => None,
            Step::Again => return EpollTimeout::ZERO,
            Step::NoRoom(until) => Some(until),
        };
        let next = step.into_iter().chain(self.ping.as_ref().map(|ping| ping.next(&self.link))).min();
        next.map_or(EpollTimeout::NONE, |next| {
            let remaining = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            EpollTimeout::try_from(remaining).unwrap_or(EpollTimeout::MAX)
        })
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
