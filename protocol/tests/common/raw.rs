//! A peer that speaks bytes: nothing here uses what it tests.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::PATIENCE;

pub const COMMAND: u32 = 0;
pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 0x10;
pub const ERROR: u32 = 0x20;

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_REGION_IO_FDS: u16 = 6;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const DMA_WRITE: u16 = 12;
pub const RESET: u16 = 13;
pub const WRITE_MULTI: u16 = 15;
pub const FEATURE: u16 = 16;
pub const MIG_DATA_READ: u16 = 17;
pub const MIG_DATA_WRITE: u16 = 18;
pub const JOURNAL_OFFER: u16 = 0x4f01;
pub const JOURNAL_TAKE: u16 = 0x4f02;
pub const VFIO_FILE: u16 = 0x4f03;
pub const VFIO_OPEN: u16 = 0x4f04;

/// Flags of `FEATURE`.
pub const GET: u32 = 1 << 16;
pub const SET: u32 = 1 << 17;
pub const PROBE: u32 = 1 << 18;

pub const EIO: u32 = 5;
pub const E2BIG: u32 = 7;
pub const EINVAL: u32 = 22;
pub const ENOENT: u32 = 2;
pub const EFAULT: u32 = 14;
pub const EEXIST: u32 = 17;
pub const ENOTTY: u32 = 25;
pub const ENOTSUP: u32 = 95;

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<File>,
}

impl Message {
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.payload[offset..offset + 4].try_into().unwrap())
    }

    pub fn u64_at(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.payload[offset..offset + 8].try_into().unwrap())
    }
}

/// The bytes of a message whose header tells the truth.
pub fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    message_of_size(id, command, flags, u32::try_from(16 + payload.len()).unwrap(), payload)
}

/// The bytes of a message whose header claims `size`.
pub fn message_of_size(id: u16, command: u16, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(command.to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

/// 32-bit fields, in host byte order.
pub fn words(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// 64-bit fields, in host byte order.
pub fn longs(fields: &[u64]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// The payload of a version message.
pub fn version(major: u16, minor: u16, json: &str) -> Vec<u8> {
    [&major.to_ne_bytes()[..], &minor.to_ne_bytes(), json.as_bytes(), &[0]].concat()
}

/// One end of a connection.
pub struct Raw {
    pub stream: UnixStream,
    next_id: u16,
}

impl Raw {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, next_id: 100 }
    }

    /// A client that has negotiated.
    pub fn client(stream: UnixStream) -> Self {
        let mut raw = Self::new(stream);
        let reply = raw.ask(VERSION, &version(0, 1, r#"{"capabilities":{"max_msg_fds":64}}"#), &[]);
        assert_eq!((reply.flags, reply.error), (REPLY, 0));
        raw
    }

    /// A server that has negotiated these capabilities (a JSON object), without a twin socket.
    pub fn server(stream: UnixStream, capabilities: &str) -> Self {
        let raw = Self::new(stream);
        let request = raw.receive().expect("a client starts with a version");
        assert_eq!((request.command, request.flags), (VERSION, COMMAND));
        raw.answer(&request, &version(0, 1, &format!("{{\"capabilities\":{capabilities}}}")), &[]);
        raw
    }

    /// Sends bytes, the descriptors with the first of them. False: the peer is gone.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) -> bool {
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            match self.stream.send_with_fds(&[&bytes[sent..]], fds) {
                Ok(n) => sent += n,
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends a command that the peer has room for.
    pub fn command(&mut self, command: u16, flags: u32, payload: &[u8], fds: &[RawFd]) -> u16 {
        self.next_id += 1;
        assert!(self.send(&message(self.next_id, command, flags, payload), fds), "the peer is gone");
        self.next_id
    }

    /// Sends a command and takes its reply.
    pub fn ask(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> Message {
        let id = self.command(command, COMMAND, payload, fds);
        let reply = self.receive().expect("a reply, not the end of the connection");
        assert_eq!((reply.id, reply.command, reply.flags & !ERROR), (id, command, REPLY));
        if reply.flags & ERROR != 0 {
            // Specification, "Header": "If an error occurs, the reply message must only include the reply header."
            assert!(reply.payload.is_empty() && reply.fds.is_empty());
        }
        reply
    }

    /// Sends a command that must succeed.
    #[track_caller]
    pub fn succeed(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> Message {
        let reply = self.ask(command, payload, fds);
        assert_eq!((reply.flags, reply.error), (REPLY, 0), "command {command} is refused");
        reply
    }

    /// Sends a command that must be refused with this errno.
    #[track_caller]
    pub fn refused(&mut self, errno: u32, command: u16, payload: &[u8], fds: &[RawFd]) {
        let reply = self.ask(command, payload, fds);
        assert_eq!((reply.flags, reply.error), (REPLY | ERROR, errno), "command {command}");
    }

    pub fn answer(&self, request: &Message, payload: &[u8], fds: &[RawFd]) -> bool {
        self.send(&message(request.id, request.command, REPLY, payload), fds)
    }

    /// The next message; `None`: the peer closed the connection.
    pub fn receive(&self) -> Option<Message> {
        let mut header = [0; 16];
        let mut fds = Vec::new();
        if !self.fill(&mut header, &mut fds) {
            return None;
        }
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        assert!(self.fill(&mut payload, &mut fds), "closed within a message");
        Some(Message { id: half(0), command: half(2), flags: word(8), error: word(12), payload, fds })
    }

    fn fill(&self, buffer: &mut [u8], fds: &mut Vec<File>) -> bool {
        let mut have = 0;
        while have < buffer.len() {
            let rest = &mut buffer[have..];
            let mut raw = [-1; 253];
            let mut iovec = [libc_iovec(rest)];
            // SAFETY: the vector describes `rest`, which outlives the call.
            match unsafe { self.stream.recv_with_fds(&mut iovec, &mut raw) } {
                Ok((n, count)) => {
                    // SAFETY: the kernel has just installed these descriptors.
                    fds.extend(raw[..count].iter().map(|&fd| unsafe { File::from_raw_fd(fd) }));
                    match n {
                        0 => return false,
                        n => have += n,
                    }
                }
                Err(error) if error.errno() == nix::libc::ECONNRESET => return false,
                Err(error) if error.errno() == nix::libc::EINTR => {}
                Err(error) => panic!("no message came: {error}"),
            }
        }
        true
    }

    /// The peer must close the connection; replies before that are thrown away.
    pub fn closed(mut self) {
        let mut sink = Vec::new();
        match self.stream.read_to_end(&mut sink) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    /// The connection must be alive and in step.
    #[track_caller]
    pub fn alive(&mut self) {
        let reply = self.succeed(GET_INFO, &words(&[16, 0, 0, 0]), &[]);
        assert_eq!(reply.payload.len(), 16);
    }
}

fn libc_iovec(buffer: &mut [u8]) -> nix::libc::iovec {
    nix::libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }
}

/// The number behind a descriptor.
pub fn fd(of: &impl AsRawFd) -> RawFd {
    of.as_raw_fd()
}
