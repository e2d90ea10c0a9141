//! A connection on which both sides send as fast as they can, each byte of which the other side knows.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::mix;

/// Bytes that are sent together, and known by their number.
const PIECE: usize = 16 << 10;
/// Each direction has pieces of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// The host.
    Host,
    /// The guest.
    Guest,
}

fn piece(from: From, number: u64) -> Vec<u8> {
    let seed = mix(number << 1 | u64::from(from == From::Host));
    (0..PIECE as u64 / 8).flat_map(|word| mix(seed ^ word).to_le_bytes()).collect()
}

/// Sends pieces until so many are `enough`, and ends this direction. How many there were.
///
/// # Errors
/// The connection's.
pub fn send(mut stream: &TcpStream, from: From, enough: impl Fn(u64) -> bool) -> io::Result<u64> {
    let mut number = 0;
    while !enough(number) {
        stream.write_all(&piece(from, number))?;
        number += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(number)
}

/// Receives pieces until the other side ends its direction. How many there were.
///
/// # Errors
/// The connection's; or a byte is wrong.
pub fn receive(mut stream: &TcpStream, from: From) -> io::Result<u64> {
    let mut bytes = vec![0; PIECE];
    for number in 0.. {
        let mut have = 0;
        while have < PIECE {
            match stream.read(&mut bytes[have..]) {
                Ok(0) if have == 0 => return Ok(number),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let right = piece(from, number);
        if let Some(at) = (0..PIECE).find(|&at| bytes[at] != right[at]) {
            return Err(io::Error::other(format!(
                "byte {at} of piece {number} is {:#x} in place of {:#x}",
                bytes[at], right[at]
            )));
        }
    }
    unreachable!("a connection ends before 2^64 pieces")
}
