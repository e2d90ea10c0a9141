//! One connection: requests are read, met and answered in the order in which they came, for as long as client and server
//! want.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{Shutdown, shutdown};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::socket::{Outgoing, Socket, Wait};

use super::{Answer, DEADLINE, Head, LINGER, MAX_HEAD, Method, Refusal, parse};

/// The operations that a connection offers.
pub trait Operations {
    /// One that a request asks for.
    type Operation;

    /// The operation that a request is for, as its head says it: before the body is sent, where the client waits with that.
    ///
    /// # Errors
    /// There is no such path, or no such method for it.
    fn find(&self, method: &Method, path: &str) -> Result<Self::Operation, Refusal>;

    /// Does it, however long it takes.
    ///
    /// # Errors
    /// It cannot be done.
    fn perform(&self, operation: &Self::Operation, body: &[u8]) -> Result<Answer, Refusal>;

    /// Does what has to wait until the answer is on its way. Not called for what could not be done.
    fn conclude(&self, operation: &Self::Operation);
}

/// See the [module](self).
pub struct Connection {
    socket: Socket,
    stream: Arc<ForeignFd>,
    /// Bytes that were received and belong to a request that is not complete.
    buffer: Vec<u8>,
}

/// Why no further request is read.
enum End {
    /// The client has gone, or did not begin a request in time.
    Silent,
    /// There is something to tell it first.
    Refused(Refusal),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Silent
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Connection {
    /// Takes over an accepted connection.
    ///
    /// # Errors
    /// If it is no socket.
    pub fn new(stream: Arc<ForeignFd>) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(stream.clone(), DEADLINE)?, stream, buffer: Vec::new() })
    }

    /// Serves the connection until it ends.
    pub fn serve<O: Operations>(mut self, operations: &O) {
        loop {
            match self.serve_one(operations) {
                Ok(true) => {}
                Ok(false) => return self.close(),
                Err(End::Silent) => return,
                Err(End::Refused(refusal)) => {
                    // A client that does not take it has lost it.
                    let _ = self.send(&refusal.into(), true, true);
                    return self.close();
                }
            }
        }
    }

    /// Serves one request; whether another may follow.
    fn serve_one<O: Operations>(&mut self, operations: &O) -> Result<bool, End> {
        let deadline = Instant::now() + DEADLINE;
        let head = self.read_head(deadline)?;
        let with_body = head.method != Method::Head;
        let operation = match operations.find(&head.method, &head.path) {
            Ok(operation) => operation,
            Err(refusal) => {
                // A body that nobody wants is not waited for.
                let is_last = !head.keep_alive || head.body_length > 0;
                self.send(&refusal.into(), is_last, with_body)?;
                return Ok(!is_last);
            }
        };
        let body = self.read_body(&head, deadline)?;
        let performed = operations.perform(&operation, &body);
        let is_done = performed.is_ok();
        let sent = self.send(&performed.unwrap_or_else(Answer::from), !head.keep_alive, with_body);
        if is_done {
            operations.conclude(&operation);
        }
        sent?;
        Ok(head.keep_alive)
    }

    /// Reads the head of the next request, and takes it out of the buffer.
    fn read_head(&mut self, deadline: Instant) -> Result<Head, End> {
        loop {
            if let Some(head) = parse(&self.buffer)? {
                self.buffer.drain(..head.length);
                return Ok(head);
            }
            let room = MAX_HEAD.saturating_sub(self.buffer.len());
            if room == 0 {
                return Err(too_long(&self.buffer).into());
            }
            let begun = !self.buffer.is_empty();
            self.receive(room, begun, deadline)?;
        }
    }

    fn read_body(&mut self, head: &Head, deadline: Instant) -> Result<Vec<u8>, End> {
        let length = head.body_length;
        if head.expects_continue && self.buffer.len() < length {
            let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
            Outgoing::new([interim, &[], &[]], &[]).send(self.socket.as_fd(), deadline)?;
        }
        while self.buffer.len() < length {
            self.receive(length - self.buffer.len(), true, deadline)?;
        }
        let next = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, next))
    }

    /// Receives what is there, at most `room` bytes, of a request that has `begun` or not. Descriptors that come along are
    /// closed unseen.
    fn receive(&mut self, room: usize, begun: bool, deadline: Instant) -> Result<(), End> {
        let mut chunk = [0; 4096];
        let room = room.min(chunk.len());
        // Bytes that came while this process was stopped came in time; a byte now and then does not move the deadline.
        let wait = if Instant::now() < deadline { Wait::Until(deadline) } else { Wait::No };
        match self.socket.receive(&mut chunk[..room], wait) {
            Ok(received) if received.bytes > 0 => {
                self.buffer.extend_from_slice(&chunk[..received.bytes]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) && begun => {
                Err(Refusal::new(408, format!("the request was not complete after {} s", DEADLINE.as_secs())).into())
            }
            _ => Err(End::Silent),
        }
    }

    fn send(&self, answer: &Answer, is_last: bool, with_body: bool) -> Result<(), End> {
        let bytes = answer.to_bytes(is_last, with_body);
        Ok(Outgoing::new([&bytes, &[], &[]], &[]).send(self.socket.as_fd(), Instant::now() + DEADLINE)?)
    }

    /// Ends the connection so that the client still gets the last answer: a socket that is closed with bytes unread tells
    /// the other side of an error.
    fn close(mut self) {
        if shutdown(self.socket.as_fd().as_raw_fd(), Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut unread = [0; 4096];
        while Instant::now() < deadline
            && self.socket.receive(&mut unread, Wait::Until(deadline)).is_ok_and(|received| received.bytes > 0)
        {
        }
        self.stream.hang_up();
    }
}

/// The refusal of a head that fills all the room there is.
fn too_long(bytes: &[u8]) -> Refusal {
    if bytes.contains(&b'\n') {
        Refusal::new(431, format!("the head of a request has at most {MAX_HEAD} bytes"))
    } else {
        Refusal::new(414, format!("the request line does not fit in {MAX_HEAD} bytes"))
    }
}

#[cfg(test)]
mod tests;
