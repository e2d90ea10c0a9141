//! An HTTP/1.1 client for one control socket. What listens there may be anything: waits and sizes are bounded.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long Outrigger may take to have room for a connection, and to take a request, in seconds.
const CONNECT: i64 = 5;
/// Longest reply in bytes. A status of 31 devices takes a tenth.
const MAX_REPLY: usize = 4 << 20;
/// Most fields in a reply's head.
const MAX_FIELDS: usize = 32;

/// A connection to a control socket.
pub(super) struct Connection(UnixStream);

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// HTTP status.
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Connection {
    /// Connects to `path`.
    ///
    /// # Errors
    /// The problem with it, in words.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let failed = |errno: Errno| match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => "no Outrigger listens on this socket".to_owned(),
            Errno::EAGAIN => "does not accept the connection".to_owned(),
            Errno::ENAMETOOLONG => "is longer than the path of a socket can be".to_owned(),
            errno => format!("cannot connect: {}", errno.desc()),
        };
        let address = UnixAddr::new(path).map_err(failed)?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        // It bounds the wait for a place in the queue of connections, too.
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(CONNECT)).map_err(failed)?;
        connect(socket.as_raw_fd(), &address).map_err(failed)?;
        Ok(Self(UnixStream::from(socket)))
    }

    /// Sends a request with a body of JSON, or none, and waits for its reply.
    ///
    /// # Errors
    /// The problem with the reply, in words.
    pub(super) fn ask(&mut self, method: &str, path: &str, body: &str, limit: Duration) -> Result<Reply, String> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        // One that turns us away does not read, but has answered.
        let _ = self.0.write_all(format!("{head}{body}").as_bytes());
        let deadline = Instant::now() + limit;
        let mut bytes = Vec::new();
        loop {
            if let Some(reply) = parse(&bytes)? {
                return Ok(reply);
            }
            if self.receive(&mut bytes, deadline)? == 0 {
                return Err("hung up without an answer".to_owned());
            }
        }
    }

    /// Waits until the other side has closed the connection, as its process does when it ends.
    ///
    /// # Errors
    /// It has not.
    pub(super) fn wait_for_end(&mut self, limit: Duration) -> Result<(), String> {
        match self.receive(&mut Vec::new(), Instant::now() + limit) {
            Ok(0) => Ok(()),
            Ok(_) => Err("answers what it was not asked".to_owned()),
            Err(_) => Err(format!("has not ended after {} s", limit.as_secs())),
        }
    }

    /// Adds what is there to `bytes`; zero: the end.
    fn receive(&mut self, bytes: &mut Vec<u8>, deadline: Instant) -> Result<usize, String> {
        let mut chunk = [0; 4096];
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err("does not answer".to_owned());
            }
            if bytes.len() > MAX_REPLY {
                return Err("answers without end".to_owned());
            }
            // Fails for a duration of zero only.
            let _ = self.0.set_read_timeout(Some(remaining));
            match self.0.read(&mut chunk) {
                Ok(count) => {
                    bytes.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // It had something of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                Err(error) => return Err(format!("cannot read the answer: {error}")),
            }
        }
    }
}

/// The reply that `bytes` begin with; none if it is not complete yet.
fn parse(bytes: &[u8]) -> Result<Option<Reply>, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut reply = httparse::Response::new(&mut fields);
    let head = match reply.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("does not speak HTTP: {error}")),
    };
    let field = reply.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = field.and_then(|field| std::str::from_utf8(field.value).ok()).and_then(|text| text.parse().ok());
    let length: usize = length.ok_or("answers without a Content-Length")?;
    if length > MAX_REPLY {
        return Err("answers without end".to_owned());
    }
    let status = reply.code.unwrap_or_default();
    Ok(bytes.get(head..head + length).map(|body| Reply { status, body: body.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_complete_when_its_body_is() {
        let text = b"HTTP/1.1 409 Conflict\r\nContent-Length: 3\r\n\r\nabcHTTP";
        for length in 0..text.len() - 4 {
            assert_eq!(parse(&text[..length]), Ok(None), "{length}");
        }
        assert_eq!(parse(text), Ok(Some(Reply { status: 409, body: b"abc".to_vec() })));
    }

    #[test]
    fn what_is_no_reply_is_told() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
