//! Telling a server how to signal interrupts.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use zerocopy::IntoBytes;

use super::error::ClientError;
use super::{Client, size_u32};
use crate::command::Command;
use crate::socket::MAX_FDS;
use crate::wire;

impl Client {
    /// Connects eventfds to vectors `start`, `start` + 1, … of an interrupt type, in as many messages as the server's
    /// `max_msg_fds` asks for. One deadline covers them all.
    pub fn set_irq_eventfds(&self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let most = usize::try_from(self.server.max_msg_fds).unwrap_or(usize::MAX).min(MAX_FDS);
        if most == 0 {
            let problem = "fds in one message";
            return Err(ClientError::Local { command: Command::DeviceSetIrqs, problem, value: 1, limit: 0 });
        }
        let (mut start, deadline) = (start, self.deadline_from_now());
        for chunk in fds.chunks(most) {
            let count = u32::try_from(chunk.len()).expect("a chunk has at most MAX_FDS fds");
            let flags = wire::IRQ_SET_DATA_EVENTFD | wire::IRQ_SET_ACTION_TRIGGER;
            self.set_irqs(deadline, index, flags, (start, count), chunk)?;
            start = start.wrapping_add(count);
        }
        Ok(())
    }

    /// Disconnects all vectors of an interrupt type.
    pub fn disable_irqs(&self, index: u32) -> Result<(), ClientError> {
        self.set_irq_state(index, wire::IRQ_SET_ACTION_TRIGGER, (0, 0))
    }

    /// Unmasks one vector (INTx after the guest's end of interrupt).
    pub fn unmask_irq(&self, index: u32, vector: u32) -> Result<(), ClientError> {
        self.set_irq_state(index, wire::IRQ_SET_ACTION_UNMASK, (vector, 1))
    }

    /// Has the server unmask one vector whenever `eventfd` is signalled, without a message; none: no more. A server that
    /// cannot do that refuses with `EINVAL`.
    pub fn set_unmask_eventfd(
        &self,
        index: u32,
        vector: u32,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ClientError> {
        let flags = wire::IRQ_SET_DATA_EVENTFD | wire::IRQ_SET_ACTION_UNMASK;
        self.set_irqs(self.deadline_from_now(), index, flags, (vector, 1), eventfd.as_slice())
    }

    /// Masks one vector.
    pub fn mask_irq(&self, index: u32, vector: u32) -> Result<(), ClientError> {
        self.set_irq_state(index, wire::IRQ_SET_ACTION_MASK, (vector, 1))
    }

    fn set_irq_state(&self, index: u32, action: u32, vectors: (u32, u32)) -> Result<(), ClientError> {
        self.set_irqs(self.deadline_from_now(), index, wire::IRQ_SET_DATA_NONE | action, vectors, &[])
    }

    fn set_irqs(
        &self,
        deadline: Instant,
        index: u32,
        flags: u32,
        (start, count): (u32, u32),
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let request = wire::IrqSet { argsz: size_u32::<wire::IrqSet>(), flags, index, start, count };
        self.request_until(deadline, Command::DeviceSetIrqs, [request.as_bytes(), &[]], fds, |_| Ok(()))
    }
}
