//! Loads on the network card. The host's side is [`crate::host`]'s `peers`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Instant;

use super::setup::Scale;
use super::{Spent, together};
use crate::figure::Figure;
use crate::network::{ECHO, HOST, MESSAGE, SINK, SOURCE, UDP_COUNT, UDP_SINK};

/// Bytes that one call moves.
const BUFFER: usize = 64 << 10;
const STREAM: usize = 128 << 20;
const ROUND_TRIPS: usize = 1500;
const PACKETS: usize = 8000;

/// Whether a figure is one of these.
pub fn measures(figure: &Figure) -> bool {
    figure.name.starts_with("tcp-") || figure.name.starts_with("udp-")
}

/// Runs the load of a figure.
pub fn measure(figure: &Figure, Scale { part, threads }: Scale) -> io::Result<Spent> {
    match figure.name {
        "tcp-to-host" => to_host(STREAM / part, threads),
        "tcp-to-guest" => to_guest(STREAM / part, threads),
        "tcp-rr" => round_trips(ROUND_TRIPS / part),
        "udp-to-host" => packets(PACKETS / part),
        name => Err(io::Error::other(format!("no load is called {name}"))),
    }
}

fn to_host(bytes: usize, threads: usize) -> io::Result<Spent> {
    let prepare = |_| {
        let mut stream = TcpStream::connect((HOST, SINK))?;
        let buffer = vec![1; BUFFER];
        stream.write_all(&buffer)?;
        Ok((stream, buffer))
    };
    together::run(threads, bytes, prepare, |(stream, buffer)| {
        for _ in 0..bytes / threads / BUFFER {
            stream.write_all(buffer)?;
        }
        // The last byte has to arrive, too.
        stream.shutdown(Shutdown::Write)?;
        stream.read_exact(&mut [0])
    })
}

fn to_guest(bytes: usize, threads: usize) -> io::Result<Spent> {
    let prepare = |_| Ok((TcpStream::connect((HOST, SOURCE))?, vec![0; BUFFER]));
    together::run(threads, bytes, prepare, |(stream, buffer)| {
        let bytes = bytes / threads;
        stream.write_all(&(bytes as u64).to_le_bytes())?;
        let mut received = 0;
        while received < bytes {
            match stream.read(buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => received += bytes,
            }
        }
        Ok(())
    })
}

fn round_trips(count: usize) -> io::Result<Spent> {
    let mut stream = TcpStream::connect((HOST, ECHO))?;
    stream.set_nodelay(true)?;
    let mut message = [1; MESSAGE];
    let mut exchange = |times| -> io::Result<()> {
        for _ in 0..times {
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
        }
        Ok(())
    };
    exchange(count / 10)?;
    let start = Instant::now();
    exchange(count)?;
    Ok(Spent::since(start, count))
}

/// Sends without waiting; counts what arrived.
fn packets(count: usize) -> io::Result<Spent> {
    let mut counter = TcpStream::connect((HOST, UDP_COUNT))?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((HOST, UDP_SINK))?;
    let start = Instant::now();
    for _ in 0..count {
        socket.send(&[1; MESSAGE])?;
    }
    counter.write_all(&[0])?;
    let mut arrived = [0; 8];
    counter.read_exact(&mut arrived)?;
    match usize::try_from(u64::from_le_bytes(arrived)) {
        Ok(arrived @ 1..) => Ok(Spent::since(start, arrived)),
        _ => Err(io::Error::other("no packet arrived")),
    }
}
