//! Where messages begin and end in a stream of bytes: written a second time, to compare with.

use outrigger_protocol::wire::{HEADER_SIZE, Header};
use zerocopy::FromBytes;

/// The headers in the bytes so far.
#[derive(Debug)]
pub struct Framing {
    /// Of whole messages, in order.
    pub whole: Vec<Header>,
    /// The size in a header was not legal: nothing after it counts.
    pub broken: bool,
    first: usize,
    limit: usize,
    partial: Vec<u8>,
    missing: usize,
}

impl Framing {
    /// The first message has at most `first` bytes, the others `limit`.
    pub fn new(first: usize, limit: usize) -> Self {
        Self { whole: Vec::new(), broken: false, first, limit, partial: Vec::new(), missing: 0 }
    }

    /// Of the commands so far, the ids and numbers of those that want a reply.
    pub fn to_answer(&self) -> Vec<(u16, u16)> {
        let commands = self.whole.iter().filter(|header| header.is_command() && !header.no_reply());
        commands.map(|header| (header.message_id, header.command)).collect()
    }

    /// More bytes came.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.broken {
            if self.partial.len() < HEADER_SIZE {
                let now = bytes.len().min(HEADER_SIZE - self.partial.len());
                self.partial.extend(&bytes[..now]);
                bytes = &bytes[now..];
                if self.partial.len() < HEADER_SIZE {
                    return;
                }
                let size = self.header().message_size as usize;
                let limit = if self.whole.is_empty() { self.first } else { self.limit };
                if size < HEADER_SIZE || size > limit {
                    self.broken = true;
                    return;
                }
                self.missing = size - HEADER_SIZE;
            }
            let now = bytes.len().min(self.missing);
            self.missing -= now;
            bytes = &bytes[now..];
            if self.missing == 0 {
                self.whole.push(self.header());
                self.partial.clear();
            }
        }
    }

    fn header(&self) -> Header {
        Header::read_from_bytes(&self.partial).expect("it is as long as a header")
    }
}
