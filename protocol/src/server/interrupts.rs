//! The eventfds by which a device signals its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::EventFd;

use super::presence::Presence;
use crate::foreign::ForeignFd;
use crate::wire;

/// One interrupt type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Irq {
    /// How many vectors; zero: the device has no interrupts of this type.
    pub count: u32,
    /// `wire::IRQ_*`.
    pub flags: u32,
}

/// The client's eventfds, by interrupt type and vector.
///
/// Shared between the thread that serves the socket, which connects and disconnects them, and the threads that move
/// data, which fire them without taking a lock.
#[derive(Debug)]
pub struct Interrupts {
    types: Vec<InterruptType>,
    presence: Arc<Presence>,
}

#[derive(Debug)]
struct InterruptType {
    flags: u32,
    vectors: Vec<Vector>,
    /// How many of them have an eventfd.
    connected: AtomicUsize,
}

#[derive(Debug, Default)]
struct Vector {
    eventfd: ArcSwapOption<EventFd>,
    masked: AtomicBool,
}

impl Interrupts {
    pub(super) fn new(irqs: &[Irq]) -> Self {
        let types = irqs.iter().map(|irq| InterruptType {
            flags: irq.flags,
            vectors: (0..irq.count).map(|_| Vector::default()).collect(),
            connected: AtomicUsize::new(0),
        });
        Self { types: types.collect(), presence: Arc::new(Presence::new()) }
    }

    /// Fires vector `vector` of interrupt type `irq` ([`crate::pci`]).
    ///
    /// Nothing happens while the client has not connected the vector, nor while it is masked: a device fires again
    /// from [`super::Device::unmasked`]. A vector of a type with `IRQ_AUTOMASKED` masks itself.
    ///
    /// A client that makes its eventfd blocking and fills it stops this call, but only for as long as it is there.
    pub fn trigger(&self, irq: u32, vector: u32) {
        let Some(kind) = self.types.get(irq as usize) else { return };
        let Some(vector) = kind.vectors.get(vector as usize) else { return };
        self.interruptible(|| self.fire(kind, vector));
    }

    fn fire(&self, kind: &InterruptType, vector: &Vector) {
        let Some(eventfd) = &*vector.eventfd.load() else { return };
        if kind.flags & wire::IRQ_MASKABLE != 0 {
            let automasked = kind.flags & wire::IRQ_AUTOMASKED != 0;
            // The caller that finds it unmasked fires; `unmasked` runs after the flag is cleared, so no cause is lost.
            let was_masked = match automasked {
                true => vector.masked.swap(true, Ordering::SeqCst),
                false => vector.masked.load(Ordering::SeqCst),
            };
            if was_masked {
                return;
            }
        }
        loop {
            match eventfd.write(1) {
                Err(Errno::EINTR) if !self.presence.has_left() => {}
                // The only other failure is a counter at its maximum, which already stands for a pending interrupt.
                _ => return,
            }
        }
    }

    /// Makes a system call on a descriptor that the client shares, such as a doorbell, and that this client could make
    /// block for ever therefore: once the client has left, the call fails with EINTR.
    #[inline]
    pub fn interruptible<T>(&self, call: impl FnOnce() -> T) -> T {
        self.presence.call(call)
    }

    pub(super) fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// Whether the client has connected any vector of this interrupt type, so that it is the one in use.
    pub fn is_connected(&self, irq: u32) -> bool {
        self.types.get(irq as usize).is_some_and(|kind| kind.connected.load(Ordering::Acquire) > 0)
    }

    pub(super) fn set_masked(&self, irq: u32, vector: u32, masked: bool) {
        if let Some(vector) = self.vector(irq, vector) {
            vector.masked.store(masked, Ordering::SeqCst);
        }
    }

    pub(super) fn connect(&self, irq: u32, vector: u32, eventfd: Option<EventFd>) {
        let Some(kind) = self.types.get(irq as usize) else { return };
        let Some(vector) = kind.vectors.get(vector as usize) else { return };
        kind.replace(vector, eventfd);
    }

    pub(super) fn disconnect(&self, irq: u32) {
        let Some(kind) = self.types.get(irq as usize) else { return };
        for vector in &kind.vectors {
            kind.replace(vector, None);
            vector.masked.store(false, Ordering::SeqCst);
        }
    }

    fn vector(&self, irq: u32, vector: u32) -> Option<&Vector> {
        self.types.get(irq as usize)?.vectors.get(vector as usize)
    }

    pub(super) fn disconnect_all(&self) {
        (0..).zip(&self.types).for_each(|(irq, _)| self.disconnect(irq));
    }
}

impl InterruptType {
    /// An eventfd is counted before it is there, and until it is gone: who finds that there are none will find none.
    fn replace(&self, vector: &Vector, eventfd: Option<EventFd>) {
        if eventfd.is_some() {
            self.connected.fetch_add(1, Ordering::Release);
        }
        if vector.eventfd.swap(eventfd.map(Arc::new)).is_some() {
            self.connected.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Makes an eventfd of a descriptor from a client. `EINVAL`: it is something else, whose writes might block a device.
pub(super) fn checked_eventfd(fd: ForeignFd) -> Result<EventFd, Errno> {
    if !fd.is_eventfd() {
        return Err(Errno::EINVAL);
    }
    // From now on nothing waits for its closing.
    let fd = fd.into_owned();
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // SAFETY: it is an eventfd.
    Ok(unsafe { EventFd::from_owned_fd(fd) })
}
