//! The control queue (virtio 1.2, section 5.1.6.5, "Control Virtqueue").

use std::io;
use std::sync::Arc;

use outrigger_protocol::server::{Memory, MemoryError};
use virtio_bindings::virtio_net as spec;

use super::tap::Tap;
use crate::byte;
use crate::transport::chain::{gather, part};
use crate::transport::{ActiveQueue, Chain, WorkerError};

const OK: u8 = byte(spec::VIRTIO_NET_OK);
const ERROR: u8 = byte(spec::VIRTIO_NET_ERR);
const CLASS_RX: u8 = byte(spec::VIRTIO_NET_CTRL_RX);
const CLASS_MAC: u8 = byte(spec::VIRTIO_NET_CTRL_MAC);
const CLASS_MQ: u8 = byte(spec::VIRTIO_NET_CTRL_MQ);
const RX_PROMISC: u8 = byte(spec::VIRTIO_NET_CTRL_RX_PROMISC);
const RX_ALLMULTI: u8 = byte(spec::VIRTIO_NET_CTRL_RX_ALLMULTI);
const MAC_TABLE_SET: u8 = byte(spec::VIRTIO_NET_CTRL_MAC_TABLE_SET);
const MQ_PAIRS_SET: u8 = byte(spec::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);

/// Which of the card's words in the journal has the number of queue pairs in use; zero: the driver has not said.
pub const PAIRS_WORD: usize = 0;

/// The control queue's worker.
#[derive(Debug)]
pub struct Control {
    /// The tap.
    pub tap: Arc<Tap>,
    /// How many queue pairs there are.
    pub pairs: u16,
    /// Whether the driver can have more than one.
    pub multi_queue: bool,
}

impl Control {
    /// Answers commands until told to stop.
    pub fn serve(self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        let mut chain = Chain::new();
        while !active.stopping() {
            while let Some(head) = active.queue.pop(&mut chain)? {
                // First of what we write; a result, which none of these commands has, would come after it.
                let Some(ack) = chain.writable().first().map(|segment| segment.address) else {
                    return Err(WorkerError::host("malformed command")(io::Error::other("no room for its status")));
                };
                let answer = match self.command(active, &chain) {
                    Err(error @ MemoryError::Disconnected { .. }) => return Err(error.into()),
                    Err(_) => ERROR,
                    Ok(answer) => answer,
                };
                active.queue.memory().write_array(ack, [answer])?;
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

    fn command(&self, active: &ActiveQueue, chain: &Chain) -> Result<u8, MemoryError> {
        let memory = active.queue.memory();
        let mut bytes = [0; 4];
        gather(memory, chain.readable().iter().copied(), &mut bytes)?;
        let [class, command, low, high] = bytes;
        Ok(match (class, command) {
            // A tap delivers everything; filters would only spare the guest work, and it may not rely on them.
            (CLASS_RX, RX_PROMISC | RX_ALLMULTI) if chain.readable_bytes() >= 3 => OK,
            (CLASS_MAC, MAC_TABLE_SET) if is_mac_table(memory, chain)? => OK,
            (CLASS_MQ, MQ_PAIRS_SET) if self.multi_queue && chain.readable_bytes() >= 4 => {
                let pairs = u16::from_le_bytes([low, high]);
                match (1..=self.pairs).contains(&pairs).then(|| self.tap.attach(pairs)) {
                    Some(Ok(())) => {
                        active.keep(PAIRS_WORD, pairs.into());
                        OK
                    }
                    Some(Err(errno)) => {
                        active.warn(format_args!("net: {}: cannot use {pairs} queue pairs: {errno}", self.tap.name()));
                        ERROR
                    }
                    None => ERROR,
                }
            }
            _ => ERROR,
        })
    }
}

/// Whether the data of a command is two lists of addresses, each with its length first (virtio 1.2, section 5.1.6.5.2).
fn is_mac_table(memory: &Memory, chain: &Chain) -> Result<bool, MemoryError> {
    let mut at = 2;
    for _ in 0..2 {
        let mut entries = [0; 4];
        gather(memory, part(chain.readable(), at, 4), &mut entries)?;
        let end = u32::from_le_bytes(entries).checked_mul(6).and_then(|bytes| bytes.checked_add(at + 4));
        match end {
            Some(end) if end <= chain.readable_bytes() => at = end,
            _ => return Ok(false),
        }
    }
    Ok(true)
}
