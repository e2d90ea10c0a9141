//! One access, decoded and checked.

use super::wire::{CMD_MASK, CMD_READ, CMD_WRITE, Command, RESP, SIZE_MASK, SIZE_SHIFT};

/// How many bytes an access reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// One byte.
    One,
    /// Two bytes.
    Two,
    /// Four bytes.
    Four,
    /// Eight bytes.
    Eight,
}

impl Size {
    /// All of them, by their number on the wire.
    pub const ALL: [Self; 4] = [Self::One, Self::Two, Self::Four, Self::Eight];

    /// The size of this many bytes, if there is one.
    pub const fn of(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        1 << self.exponent()
    }

    /// The part of a value that this many bytes hold.
    pub const fn truncate(self, value: u64) -> u64 {
        value & (u64::MAX >> (64 - 8 * self.bytes()))
    }

    const fn exponent(self) -> u32 {
        self as u32
    }
}

/// The operation of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a value.
    Read,
    /// Sets a value.
    Write {
        /// The value, no larger than the access.
        data: u64,
        /// Whether no answer is wanted.
        posted: bool,
    },
}

/// One access to a sub-region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The `user_data` that the sub-region was registered with.
    pub user_data: u64,
    /// From the start of the sub-region, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub size: Size,
    /// The operation.
    pub operation: Operation,
}

/// A malformed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Neither a read nor a write.
    #[error("there is no command {0}")]
    Operation(u32),
    /// Bits that must be zero are not.
    #[error("reserved bits are set: info {info:#x}, padding {padding:#x}")]
    Reserved {
        /// As it came.
        info: u32,
        /// As it came.
        padding: u32,
    },
}

impl Access {
    /// Whether the side that asked waits for a response.
    pub const fn is_answered(&self) -> bool {
        !matches!(self.operation, Operation::Write { posted: true, .. })
    }

    /// Reads a command. What lies above the size in the data of a write is dropped, and so is the data of a read.
    ///
    /// # Errors
    /// [`Malformed`].
    pub const fn decode(command: &Command) -> Result<Self, Malformed> {
        let &Command { info, padding, user_data, offset, data } = command;
        if info & !(CMD_MASK | SIZE_MASK | RESP) != 0 || padding != 0 {
            return Err(Malformed::Reserved { info, padding });
        }
        let size = Size::ALL[((info & SIZE_MASK) >> SIZE_SHIFT) as usize];
        let operation = match info & CMD_MASK {
            CMD_READ => Operation::Read,
            CMD_WRITE => Operation::Write { data: size.truncate(data), posted: info & RESP == 0 },
            other => return Err(Malformed::Operation(other)),
        };
        Ok(Self { user_data, offset, size, operation })
    }

    /// The command for this access; that for a read has the bit for a response, too.
    pub const fn encode(&self) -> Command {
        let (cmd, data) = match self.operation {
            Operation::Read => (CMD_READ, 0),
            Operation::Write { data, .. } => (CMD_WRITE, self.size.truncate(data)),
        };
        let resp = if self.is_answered() { RESP } else { 0 };
        let info = cmd | self.size.exponent() << SIZE_SHIFT | resp;
        Command { info, padding: 0, user_data: self.user_data, offset: self.offset, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(info: u32, padding: u32, data: u64) -> Result<Access, Malformed> {
        Access::decode(&Command { info, padding, user_data: 7, offset: 9, data })
    }

    #[test]
    fn a_reserved_bit_is_refused_each_by_itself() {
        for bit in 7..32 {
            assert_eq!(decode(1 << bit, 0, 0), Err(Malformed::Reserved { info: 1 << bit, padding: 0 }));
        }
        for bit in 0..32 {
            assert_eq!(decode(0, 1 << bit, 0), Err(Malformed::Reserved { info: 0, padding: 1 << bit }));
        }
    }

    #[test]
    fn there_are_reads_and_writes_and_nothing_else() {
        for cmd in 2..16 {
            assert_eq!(decode(cmd | 0x40, 0, 0), Err(Malformed::Operation(cmd)));
        }
    }

    #[test]
    fn the_fields_are_where_the_text_has_them() {
        let write = |data, posted| Operation::Write { data, posted };
        for (info, size, operation) in [
            (0x00, Size::One, Operation::Read),
            (0x50, Size::Two, Operation::Read),
            (0x61, Size::Four, write(0x5566_7788, false)),
            (0x31, Size::Eight, write(0x1122_3344_5566_7788, true)),
            (0x01, Size::One, write(0x88, true)),
        ] {
            let access = Access { user_data: 7, offset: 9, size, operation };
            assert_eq!(decode(info, 0, 0x1122_3344_5566_7788), Ok(access), "{info:#x}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for size in Size::ALL {
            assert_eq!(Size::of(size.bytes()), Some(size));
            let data = size.truncate(0x8877_6655_4433_2211);
            for operation in
                [Operation::Read, Operation::Write { data, posted: true }, Operation::Write { data, posted: false }]
            {
                let access = Access { user_data: u64::MAX, offset: 1 << 40, size, operation };
                assert_eq!(Access::decode(&access.encode()), Ok(access));
            }
        }
        assert_eq!([0, 3, 5, 16].map(Size::of), [None; 4]);
    }
}
