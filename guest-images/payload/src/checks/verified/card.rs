//! A card that asks for the host's address. Packets may get lost when its process dies, but none may be wrong, and no buffer may be lost.

use super::super::hostile::instructions::fill;
use super::super::hostile::outcome::{Fault, Outcome, equal, holds, perhaps};
use super::super::hostile::target::{Target, VERSION_1};
use super::super::hostile::works::{HEADER, PROBE, is_answer, write_probe};
use super::{BUFFERS, Load, enable, intact, mark, queue};
use crate::memory::{read8, read16};
use crate::pci::NOTHING;

/// Receive buffers, and their bytes.
const RECEIVERS: u16 = 8;
const RECEIVER: u32 = 2048;
/// The packet to send.
const PACKET: u64 = BUFFERS + 0x8000;
/// Ethernet's shortest packet.
const SHORTEST: u32 = HEADER + 14;
/// An answer to a probe (RFC 826).
const ANSWER: u32 = HEADER + 42;
/// VIRTIO_NET_F_MAC and VIRTIO_NET_F_STATUS.
const FEATURES: u64 = 1 << 5 | 1 << 16;
const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Probes at the end of all, each of which may get lost.
const LAST_PROBES: u32 = 400;

/// The buffers, and what is under way.
pub struct Card {
    sending: bool,
    received: [u64; RECEIVERS as usize],
}

fn buffer(index: u16) -> u64 {
    BUFFERS + u64::from(index) * 0x1000
}

impl Card {
    fn offer(target: &mut Target, index: u16) {
        let at = buffer(index);
        fill(at, u64::from(RECEIVER) / 8, !0);
        mark(at + u64::from(RECEIVER));
        target.prepare(RECEIVE, index, &[(at, RECEIVER, true)]);
    }

    fn probe(&mut self, target: &mut Target) {
        write_probe(target, PACKET);
        let head = u64::from(HEADER);
        target.request(SEND, 0, &[(PACKET, HEADER, false), (PACKET + head, PROBE - HEADER, false)]);
        self.sending = true;
    }

    /// Takes the packets that are there; how many of them are answers.
    fn receive(&mut self, target: &mut Target) -> Result<u64, Fault> {
        let (mut answers, mut any) = (0, false);
        while target.queues[usize::from(RECEIVE)].unseen() > 0 {
            let used = target.queues[usize::from(RECEIVE)].look();
            let index = u16::try_from(used.head).unwrap_or(u16::MAX);
            holds("a receive buffer that was offered", index < RECEIVERS)?;
            let at = buffer(index);
            // Of no length: a buffer that a process took to its grave.
            if used.length > 0 {
                holds("length of a packet", (SHORTEST..=RECEIVER).contains(&used.length))?;
                equal("buffers of a packet", read16(at + 10), 1u16)?;
                intact(at + u64::from(RECEIVER))?;
                self.inspect(target, at, used.length, &mut answers)?;
            }
            self.received[usize::from(index)] += 1;
            Self::offer(target, index);
            any = true;
        }
        if any {
            target.queues[usize::from(RECEIVE)].show();
            target.ring(RECEIVE);
        }
        Ok(answers)
    }

    /// An answer is right to the last byte; others are the host's own affair.
    fn inspect(&self, target: &Target, at: u64, length: u32, answers: &mut u64) -> Outcome {
        let frame = at + u64::from(HEADER);
        if !is_answer(at) {
            let kind = u16::from_be(read16(frame + 12));
            // ARP, IPv4, IPv6: what a host says of its own accord.
            return holds("a packet of a known kind", matches!(kind, 0x0806 | 0x0800 | 0x86dd));
        }
        equal("length of an answer", length, ANSWER)?;
        for byte in 0..6 {
            let own = read8(target.config + byte);
            equal("who is answered", read8(frame + byte), own)?;
            equal("who has asked", read8(frame + 32 + byte), own)?;
            equal("who answers", read8(frame + 6 + byte), read8(frame + 22 + byte))?;
        }
        *answers += 1;
        Ok(())
    }
}

impl Load for Card {
    fn start(target: &mut Target) -> Result<Self, Fault> {
        let features = target.offered() & FEATURES;
        target.negotiate(features | VERSION_1)?;
        enable(target, queue(RECEIVE));
        enable(target, queue(SEND));
        target.ready();
        let mut card = Self { sending: false, received: [0; RECEIVERS as usize] };
        (0..RECEIVERS).for_each(|index| Self::offer(target, index));
        target.queues[usize::from(RECEIVE)].show();
        target.ring(RECEIVE);
        card.probe(target);
        Ok(card)
    }

    fn step(&mut self, target: &mut Target, last: bool) -> Result<Option<u64>, Fault> {
        let answers = self.receive(target)?;
        while target.queues[usize::from(SEND)].unseen() > 0 {
            let used = target.queues[usize::from(SEND)].look();
            holds("a packet that was sent", self.sending && used.head == 0)?;
            self.sending = false;
        }
        if !self.sending {
            if last {
                return Ok(None);
            }
            self.probe(target);
        }
        Ok(Some(answers))
    }

    /// All buffers are used again.
    fn finish(&mut self, target: &mut Target) -> Outcome {
        self.received = [0; RECEIVERS as usize];
        for _ in 0..LAST_PROBES {
            if self.received.iter().all(|&count| count > 0) {
                return equal("the device's vendor and number", u64::from(target.function.id() == NOTHING), 0u64);
            }
            self.probe(target);
            target.used(SEND)?;
            perhaps(|| target.queues[usize::from(RECEIVE)].unseen() > 0);
            self.receive(target)?;
        }
        equal(
            "receive buffers that are never used",
            self.received.iter().filter(|&&count| count == 0).count() as u64,
            0u64,
        )
    }

    /// An answer may get lost, but what is sent is sent.
    fn is_late(&mut self, target: &mut Target) -> Outcome {
        let sent = target.queues[usize::from(SEND)].unseen() > 0;
        holds("an interrupt for a packet that was sent", !self.sending || sent)
    }
}
