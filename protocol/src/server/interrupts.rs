//! The eventfds by which a device signals its client.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmm_sys_util::eventfd::EventFd;

use super::device::Irq;
use crate::wire;

/// The client's eventfds, by interrupt type and vector.
///
/// Shared between the thread that serves the socket, which connects and disconnects them, and the threads that move
/// data, which fire them without taking a lock.
#[derive(Debug)]
pub struct Interrupts {
    types: Vec<InterruptType>,
}

#[derive(Debug)]
struct InterruptType {
    flags: u32,
    masked: AtomicBool,
    vectors: Vec<ArcSwapOption<EventFd>>,
}

impl Interrupts {
    pub(super) fn new(irqs: &[Irq]) -> Self {
        let types = irqs.iter().map(|irq| InterruptType {
            flags: irq.flags,
            masked: AtomicBool::new(false),
            vectors: (0..irq.count).map(|_| ArcSwapOption::empty()).collect(),
        });
        Self { types: types.collect() }
    }

    /// Fires vector `vector` of interrupt type `irq` ([`crate::pci`]).
    ///
    /// Nothing happens while the client has not connected the vector, nor while the type is masked: a device fires
    /// again from [`super::Device::unmasked`]. A type with `IRQ_AUTOMASKED` masks itself.
    pub fn trigger(&self, irq: u32, vector: u32) {
        let Some(kind) = self.types.get(irq as usize) else { return };
        let Some(slot) = kind.vectors.get(vector as usize) else { return };
        let Some(eventfd) = &*slot.load() else { return };
        if kind.flags & wire::IRQ_MASKABLE != 0 {
            let automasked = kind.flags & wire::IRQ_AUTOMASKED != 0;
            // Whoever finds it unmasked fires; `unmasked` runs after the flag is cleared, so no cause is lost.
            let was_masked = match automasked {
                true => kind.masked.swap(true, Ordering::SeqCst),
                false => kind.masked.load(Ordering::SeqCst),
            };
            if was_masked {
                return;
            }
        }
        // The only failure is a counter at its maximum, which already stands for a pending interrupt.
        let _ = eventfd.write(1);
    }

    /// Whether the client has connected any vector of this interrupt type, so that it is the one in use.
    pub fn is_connected(&self, irq: u32) -> bool {
        self.types.get(irq as usize).is_some_and(|kind| kind.vectors.iter().any(|slot| slot.load().is_some()))
    }

    pub(super) fn set_masked(&self, irq: u32, masked: bool) {
        if let Some(kind) = self.types.get(irq as usize) {
            kind.masked.store(masked, Ordering::SeqCst);
        }
    }

    pub(super) fn connect(&self, irq: u32, vector: u32, eventfd: Option<EventFd>) {
        if let Some(slot) = self.types.get(irq as usize).and_then(|kind| kind.vectors.get(vector as usize)) {
            slot.store(eventfd.map(Arc::new));
        }
    }

    pub(super) fn disconnect(&self, irq: u32) {
        if let Some(kind) = self.types.get(irq as usize) {
            kind.vectors.iter().for_each(|slot| slot.store(None));
            kind.masked.store(false, Ordering::SeqCst);
        }
    }

    pub(super) fn disconnect_all(&self) {
        (0..).zip(&self.types).for_each(|(irq, _)| self.disconnect(irq));
    }
}

/// Makes an eventfd of a descriptor from a client. `EINVAL`: it is something else, whose writes might block a device.
pub(super) fn checked_eventfd(fd: OwnedFd) -> Result<EventFd, Errno> {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    if link.to_str() != Some("anon_inode:[eventfd]") {
        return Err(Errno::EINVAL);
    }
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // SAFETY: ownership moves from `fd` to the new object.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}
