//! One end of a connection that need not keep to anything.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use outrigger_protocol::wire::{FLAG_ERROR, FLAG_NO_REPLY, FLAG_TYPE_MASK, HEADER_SIZE, Header};
use zerocopy::FromBytes;

use crate::framing::Framing;

/// The longest message that either side may send: a transfer of 1 MiB.
pub const MAX_MESSAGE: usize = HEADER_SIZE + 16 + (1 << 20);

/// The longest first message: 4 KiB of JSON.
pub const MAX_VERSION: usize = HEADER_SIZE + 4 + 4096;

/// A message from the side under attack.
#[derive(Debug)]
pub struct Arrived {
    /// Its header.
    pub header: Header,
    /// The bytes after it.
    pub payload: Vec<u8>,
}

/// A socket, what came on it, and what was sent.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    received: VecDeque<u8>,
    /// How much came so far.
    pub bytes_received: usize,
    /// The descriptors that came and have not been taken.
    pub fds: Vec<OwnedFd>,
    /// The other side has closed, or does not receive.
    pub closed: bool,
    /// Takes nothing while it sends.
    pub deaf: bool,
    /// The bytes sent, as the other side must understand them.
    pub sent: Framing,
}

impl Peer {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).expect("a socket");
        let sent = Framing::new(MAX_VERSION, MAX_MESSAGE);
        Self { stream, received: VecDeque::new(), bytes_received: 0, fds: Vec::new(), closed: false, deaf: false, sent }
    }

    /// Sends what finds room within `patience`; false: not all of it, so that nothing more makes sense.
    pub fn send(&mut self, bytes: &[u8], fds: &[RawFd], patience: Duration) -> bool {
        let (mut done, deadline) = (0, Instant::now() + patience);
        while done < bytes.len() && !self.closed {
            let rights = [ControlMessage::ScmRights(fds)];
            let control = if done > 0 || fds.is_empty() { &rights[..0] } else { &rights[..] };
            let parts = [IoSlice::new(&bytes[done..])];
            match sendmsg::<()>(self.stream.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => {
                    self.sent.push(&bytes[done..done + sent]);
                    done += sent;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if Instant::now() < deadline && self.deaf => {
                    self.wait(PollFlags::POLLOUT, Duration::from_millis(1));
                }
                // The other side's bytes must go somewhere, or it may never receive.
                Err(Errno::EAGAIN) if Instant::now() < deadline => {
                    self.wait(PollFlags::POLLIN | PollFlags::POLLOUT, Duration::from_millis(1));
                    self.receive();
                }
                // Descriptors in flight are counted; the rest is tried without.
                Err(Errno::ETOOMANYREFS | Errno::EINVAL) if !control.is_empty() => return false,
                Err(Errno::EAGAIN) => return false,
                Err(_) => self.closed = true,
            }
        }
        !self.closed
    }

    /// Takes all that is there.
    pub fn receive(&mut self) {
        let mut buffer = vec![0; 16384];
        let mut control = cmsg_space!([RawFd; 253]);
        while !self.closed {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let bytes = match recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => {
                    for rights in message.cmsgs().expect("room for all descriptors") {
                        if let ControlMessageOwned::ScmRights(fds) = rights {
                            // SAFETY: the kernel has just installed these descriptors, and nobody else knows them.
                            self.fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                    }
                    message.bytes
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return,
                Err(_) => 0,
            };
            self.closed = bytes == 0;
            self.received.extend(&buffer[..bytes]);
            self.bytes_received += bytes;
        }
    }

    /// The next whole message. Panics if what came is not what a correct side would send.
    pub fn next_message(&mut self) -> Option<Arrived> {
        if self.received.len() < HEADER_SIZE {
            return None;
        }
        let start: Vec<u8> = self.received.range(..HEADER_SIZE).copied().collect();
        let header = Header::read_from_bytes(&start).expect("it is as long as a header");
        let size = header.message_size as usize;
        assert!((HEADER_SIZE..=MAX_MESSAGE).contains(&size), "a message of {size} bytes was sent to us");
        assert!(header.is_command() || header.is_reply(), "flags {:#x} were sent to us", header.flags);
        let known = FLAG_TYPE_MASK | FLAG_NO_REPLY | FLAG_ERROR;
        assert!(header.flags & !known == 0, "flags {:#x} were sent to us", header.flags);
        if self.received.len() < size {
            return None;
        }
        let payload = self.received.drain(..size).skip(HEADER_SIZE).collect();
        Some(Arrived { header, payload })
    }

    /// Whether what was received ends in the middle of a message.
    pub fn has_part_of_a_message(&self) -> bool {
        !self.received.is_empty()
    }

    /// Waits until there is something.
    pub fn wait(&self, events: PollFlags, patience: Duration) {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout);
    }

    /// Waits until there is something to receive, here or on another one.
    pub fn wait_with(&self, other: Option<&Self>, patience: Duration) {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        let streams = [Some(self), other].into_iter().flatten().filter(|peer| !peer.closed);
        let mut fds: Vec<_> = streams.map(|peer| PollFd::new(peer.stream.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, timeout);
    }

    /// Ends one direction or both.
    pub fn shutdown(&mut self, how: std::net::Shutdown) {
        let _ = self.stream.shutdown(how);
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
