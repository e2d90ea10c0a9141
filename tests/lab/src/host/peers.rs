//! The far end of the guest's network: plain blocking sockets, a thread for each service and each connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::network::{ECHO, MESSAGE, SINK, SOURCE, UDP_COUNT, UDP_SINK};

const BUFFER: usize = 64 << 10;

/// Starts all services; they end with this process.
pub fn start() -> io::Result<()> {
    serve(SINK, sink)?;
    serve(SOURCE, source)?;
    serve(ECHO, echo)?;
    let packets = Arc::new(AtomicU64::new(0));
    let socket = UdpSocket::bind(("0.0.0.0", UDP_SINK))?;
    let counter = Arc::clone(&packets);
    thread::spawn(move || {
        let mut buffer = [0; 2 * MESSAGE];
        while socket.recv(&mut buffer).is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    serve(UDP_COUNT, move |stream| count(stream, &packets))
}

fn serve(port: u16, service: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let service = service.clone();
            // A guest that ends in the middle is noticed by what it did not print.
            thread::spawn(move || stream.and_then(service));
        }
    });
    Ok(())
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[0])
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let (buffer, mut left) = (vec![1; BUFFER], u64::from_le_bytes(size));
    while left > 0 {
        let part = left.min(BUFFER as u64);
        stream.write_all(&buffer[..usize::try_from(part).unwrap_or(BUFFER)])?;
        left -= part;
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}

fn count(mut stream: TcpStream, packets: &AtomicU64) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    stream.write_all(&packets.swap(0, Ordering::Relaxed).to_le_bytes())
}
