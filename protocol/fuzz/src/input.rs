//! Inputs: a sequence of steps, each a byte that says what it is and the fields it needs.
//!
//! Any bytes mean something, and an input that ends early goes on with zeros: so the fuzzer may cut and splice as it
//! likes. A zero is always the valid choice; another value is a mutation.

use arbitrary::Unstructured;
use outrigger_protocol::command::Command;
use outrigger_protocol::wire::{FLAG_NO_REPLY, HEADER_SIZE, Header, TYPE_COMMAND, TYPE_REPLY};
use zerocopy::IntoBytes;

/// [`Packet::command`] of [`Command::JournalOffer`].
pub const JOURNAL_OFFER: u8 = 0xf1;
/// [`Packet::command`] of [`Command::JournalTake`].
pub const JOURNAL_TAKE: u8 = 0xf2;
/// [`Packet::command`] of [`Command::VfioFile`].
pub const VFIO_FILE: u8 = 0xf3;
/// [`Packet::command`] of [`Command::VfioOpen`].
pub const VFIO_OPEN: u8 = 0xf4;
/// The most steps of one input.
pub const MAX_STEPS: usize = 64;
/// The most bytes of a payload that are in the input; more come from [`Packet::more`].
const MAX_PAYLOAD: usize = 2048;

const NO_REPLY: u8 = 1 << 0;
const MUTATED: u8 = 1 << 1;
const FDS: u8 = 1 << 2;
const CUTS: u8 = 1 << 3;
const MORE: u8 = 1 << 4;
const IMPATIENT: u8 = 1 << 5;

/// Reads an input.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// From its first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// Whether all of it has been read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next number of this type, little-endian.
    pub fn number<T: arbitrary::Arbitrary<'a>>(&mut self) -> T {
        self.0.arbitrary().expect("numbers are made of zeros at the end of an input")
    }

    /// Bytes with their length in front: at most `most`, and at most what there is.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.number::<u16>()).min(most).min(self.0.len());
        self.0.bytes(length).expect("there are as many")
    }

    /// All the rest.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}

/// A message, right in all that the input does not say otherwise.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// The command's number.
    pub command: u8,
    /// The bytes after the header.
    pub payload: Vec<u8>,
    /// Whether the sender wants no reply.
    pub no_reply: bool,
    /// The change to the header, if any.
    pub mutation: Option<Mutation>,
    /// Kinds of descriptors ([`crate::descriptors`]) that go along.
    pub fds: Vec<u8>,
    /// Where the message is cut into several sends.
    pub cuts: Vec<u16>,
    /// How many bytes follow the payload: a power of two, or none.
    pub more: u8,
    /// Whether to go on without waiting for the reply.
    pub impatient: bool,
}

/// A change to a header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mutation {
    id: u16,
    command: u16,
    size: u32,
    flags: u32,
    error: u32,
}

impl Mutation {
    /// A command where a reply would be right.
    pub fn to_command() -> Self {
        Self { flags: TYPE_REPLY ^ TYPE_COMMAND, ..Self::default() }
    }
}

impl Packet {
    /// The command as it is sent: ours lie beyond a byte.
    pub fn number(&self) -> u16 {
        match self.command {
            JOURNAL_OFFER => Command::JournalOffer as u16,
            JOURNAL_TAKE => Command::JournalTake as u16,
            VFIO_FILE => Command::VfioFile as u16,
            VFIO_OPEN => Command::VfioOpen as u16,
            command => command.into(),
        }
    }

    /// Reads one.
    pub fn decode(input: &mut Input<'_>) -> Self {
        let what: u8 = input.number();
        let command = input.number();
        let mutation = (what & MUTATED != 0).then(|| Mutation {
            id: input.number(),
            command: input.number(),
            size: input.number(),
            flags: input.number(),
            error: input.number(),
        });
        let fds = if what & FDS != 0 { input.bytes(255).to_vec() } else { Vec::new() };
        let cuts =
            if what & CUTS != 0 { (0..1 + input.number::<u8>() % 8).map(|_| input.number()).collect() } else { vec![] };
        let more = if what & MORE != 0 { input.number() } else { 0 };
        let payload = input.bytes(MAX_PAYLOAD).to_vec();
        let (no_reply, impatient) = (what & NO_REPLY != 0, what & IMPATIENT != 0);
        Self { command, payload, no_reply, mutation, fds, cuts, more, impatient }
    }

    /// As [`Packet::decode`] reads it, for the corpus.
    pub fn encode(&self) -> Vec<u8> {
        let flag = |set, flag| if set { flag } else { 0 };
        let what = flag(self.no_reply, NO_REPLY)
            | flag(self.mutation.is_some(), MUTATED)
            | flag(!self.fds.is_empty(), FDS)
            | flag(!self.cuts.is_empty(), CUTS)
            | flag(self.more > 0, MORE)
            | flag(self.impatient, IMPATIENT);
        let mut bytes = vec![what, self.command];
        if let Some(Mutation { id, command, size, flags, error }) = self.mutation {
            bytes.extend([id, command].map(u16::to_le_bytes).as_flattened());
            bytes.extend([size, flags, error].map(u32::to_le_bytes).as_flattened());
        }
        if !self.fds.is_empty() {
            bytes.extend(length(&self.fds));
            bytes.extend(&self.fds);
        }
        if !self.cuts.is_empty() {
            bytes.extend(u8::try_from(self.cuts.len() - 1).map(u8::to_le_bytes).expect("at most eight cuts"));
            bytes.extend(self.cuts.iter().flat_map(|cut| cut.to_le_bytes()));
        }
        if self.more > 0 {
            bytes.push(self.more);
        }
        bytes.extend(length(&self.payload));
        bytes.extend(&self.payload);
        bytes
    }

    /// The bytes on the wire; `id`, `command` and `flags` are what would be right.
    pub fn bytes(&self, id: u16, command: u16, flags: u32) -> Vec<u8> {
        let more = if self.more == 0 { 0 } else { 1usize << (self.more % 22) };
        let size = HEADER_SIZE + self.payload.len() + more;
        let change = self.mutation.unwrap_or_default();
        let header = Header {
            message_id: id ^ change.id,
            command: command ^ change.command,
            message_size: u32::try_from(size).expect("at most 2 MiB and a bit").wrapping_add(change.size),
            flags: (flags | if self.no_reply { FLAG_NO_REPLY } else { 0 }) ^ change.flags,
            error: change.error,
        };
        let mut bytes = Vec::with_capacity(size);
        bytes.extend(header.as_bytes());
        bytes.extend(&self.payload);
        bytes.resize(size, self.more);
        bytes
    }

    /// The parts it is sent in.
    pub fn parts<'a>(&self, bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = self.cuts.iter().map(|&cut| usize::from(cut) % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).filter(|part| !part.is_empty()).collect()
    }
}

/// The length in front of bytes.
pub fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).expect("seeds are small").to_le_bytes()
}
