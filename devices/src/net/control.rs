//! The control queue (virtio 1.2, section 5.1.6.5, "Control Virtqueue").

use std::io;
use std::sync::Arc;

use outrigger_protocol::server::{Memory, MemoryError};
use virtio_bindings::virtio_net as spec;

use super::tap::Tap;
use crate::byte;
use crate::transport::chain::gather;
use crate::transport::{ActiveQueue, Chain, WorkerError};

const OK: u8 = byte(spec::VIRTIO_NET_OK);
const ERROR: u8 = byte(spec::VIRTIO_NET_ERR);
const CLASS_RX: u8 = byte(spec::VIRTIO_NET_CTRL_RX);
const CLASS_MAC: u8 = byte(spec::VIRTIO_NET_CTRL_MAC);
const CLASS_MQ: u8 = byte(spec::VIRTIO_NET_CTRL_MQ);
const MAC_TABLE_SET: u8 = byte(spec::VIRTIO_NET_CTRL_MAC_TABLE_SET);
const MQ_PAIRS_SET: u8 = byte(spec::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);

/// The control queue's worker.
#[derive(Debug)]
pub struct Control {
    /// The tap.
    pub tap: Arc<Tap>,
    /// How many queue pairs there are.
    pub pairs: u16,
}

impl Control {
    /// Answers commands until told to stop.
    pub fn serve(self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        let mut chain = Chain::new();
        while !active.stopping() {
            while let Some(head) = active.queue.pop(&mut chain)? {
                let Some(last) = chain.writable().last() else {
                    return Err(WorkerError::host("malformed command")(io::Error::other("no room for its status")));
                };
                let answer = self.command(active.queue.memory(), &chain)?;
                active.queue.memory().write(last.address.saturating_add(u64::from(last.length - 1)), &[answer])?;
                active.queue.push(head, 1);
                active.publish()?;
                if active.stopping() {
                    return Ok(());
                }
            }
            if !active.queue.want_doorbell()? {
                active.wait()?;
            }
        }
        Ok(())
    }

    fn command(&self, memory: &Memory, chain: &Chain) -> Result<u8, MemoryError> {
        let mut bytes = [0; 4];
        gather(memory, chain.readable().iter().copied(), &mut bytes)?;
        let [class, command, low, high] = bytes;
        Ok(match (class, command) {
            // A tap delivers everything; filters would only spare the guest work, and it may not rely on them.
            (CLASS_RX, _) | (CLASS_MAC, MAC_TABLE_SET) => OK,
            (CLASS_MQ, MQ_PAIRS_SET) if chain.readable_bytes() >= 4 => {
                let pairs = u16::from_le_bytes([low, high]);
                match (1..=self.pairs).contains(&pairs).then(|| self.tap.attach(pairs)) {
                    Some(Ok(())) => OK,
                    Some(Err(errno)) => {
                        log::warn!("net: {}: cannot use {pairs} queue pairs: {errno}", self.tap.name());
                        ERROR
                    }
                    None => ERROR,
                }
            }
            _ => ERROR,
        })
    }
}
