//! The eventfds by which a device signals its client.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;

use super::device::Irq;

/// The client's eventfds, by interrupt type and vector.
///
/// Shared between the thread that serves the socket, which connects and disconnects them, and the threads that move
/// data, which fire them without taking a lock.
#[derive(Debug)]
pub struct Interrupts {
    vectors: Vec<Vec<ArcSwapOption<EventFd>>>,
}

impl Interrupts {
    pub(super) fn new(irqs: &[Irq]) -> Self {
        let vectors = irqs.iter().map(|irq| (0..irq.count).map(|_| ArcSwapOption::empty()).collect()).collect();
        Self { vectors }
    }

    /// Fires vector `vector` of interrupt type `irq` ([`crate::pci`]). Nothing happens while the client has not
    /// connected it.
    pub fn trigger(&self, irq: u32, vector: u32) {
        if let Some(slot) = self.slot(irq, vector)
            && let Some(eventfd) = slot.load().as_ref()
        {
            // The only failure is a counter at its maximum, which already stands for a pending interrupt.
            let _ = eventfd.write(1);
        }
    }

    /// Whether the client has connected any vector of this interrupt type, so that it is the one in use.
    pub fn is_connected(&self, irq: u32) -> bool {
        self.vectors.get(irq as usize).is_some_and(|vectors| vectors.iter().any(|slot| slot.load().is_some()))
    }

    pub(super) fn connect(&self, irq: u32, vector: u32, eventfd: Option<EventFd>) {
        if let Some(slot) = self.slot(irq, vector) {
            slot.store(eventfd.map(Arc::new));
        }
    }

    pub(super) fn disconnect_all(&self) {
        self.vectors.iter().flatten().for_each(|slot| slot.store(None));
    }

    fn slot(&self, irq: u32, vector: u32) -> Option<&ArcSwapOption<EventFd>> {
        self.vectors.get(irq as usize)?.get(vector as usize)
    }
}
