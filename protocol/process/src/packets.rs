//! Messages between a process and its copy, each with descriptors: a pair of connected sockets that keep messages apart (unix(7),
//! `SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, sendmsg,
    setsockopt, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

/// Most descriptors that a message can bring.
pub const MOST_DESCRIPTORS: usize = 64;

/// One end.
#[derive(Debug)]
pub struct Packets(OwnedFd);

impl Packets {
    /// Two ends.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(one), Self(other)))
    }

    /// The number of its descriptor, which a copy of this process is to keep.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// How long sending and receiving may take from now on.
    ///
    /// # Errors
    /// None is expected.
    pub fn set_deadline(&self, deadline: Duration) -> io::Result<()> {
        let seconds = i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX);
        let time = TimeVal::new(seconds, deadline.subsec_micros().into());
        setsockopt(&self.0, sockopt::ReceiveTimeout, &time)?;
        setsockopt(&self.0, sockopt::SendTimeout, &time)?;
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other end is closed, or takes nothing for as long as the deadline says.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        again(|| sendmsg::<()>(self.number(), &parts, control, MsgFlags::MSG_NOSIGNAL, None))?;
        Ok(())
    }

    /// Looks at the next message, and leaves it and its descriptors where they are. Returns its length, which may be more than
    /// there is room for; none: the other end is closed.
    ///
    /// # Errors
    /// Nothing comes for as long as the deadline says.
    pub fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        Ok(again(|| recv(self.number(), room, MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC))?)
    }

    /// Removes the next message, if there is one. Nothing is done with its descriptors.
    pub fn discard(&self) {
        // Without room for descriptors the kernel makes none.
        let _ = again(|| recv(self.number(), &mut [0], MsgFlags::MSG_DONTWAIT));
    }

    /// Takes the next message; returns its length, and what it has brought. None: the other end is closed.
    ///
    /// # Errors
    /// It does not fit; its descriptors do not, or this process can have no more (EMFILE); or nothing comes for as long as the deadline says.
    pub fn receive(&self, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut control = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(room)];
        let message = loop {
            match recvmsg::<()>(self.number(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        if message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(io::Error::other("the message is longer than there is room for"));
        }
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(Errno::EMFILE.into());
        }
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel has just made these descriptors, and they are nobody else's.
                fds.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        Ok((message.bytes, fds))
    }

    /// Whoever waits at either end is told that it is closed.
    pub fn close(&self) {
        // SAFETY: a system call on plain values.
        unsafe { libc::shutdown(self.number(), libc::SHUT_RDWR) };
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_their_descriptors_stay_apart_and_bounded() {
        let (ours, theirs) = Packets::pair().unwrap();
        let (file, mut room) = (tempfile::tempfile().unwrap(), [0; 8]);
        ours.send(b"one", &[file.as_fd(), file.as_fd()]).unwrap();
        ours.send(b"another", &[]).unwrap();
        assert_eq!(theirs.peek(&mut room).unwrap(), 3);
        let (length, fds) = theirs.receive(&mut room).unwrap();
        assert_eq!((&room[..length], fds.len()), (&b"one"[..], 2));
        assert_eq!(theirs.peek(&mut room[..2]).unwrap(), 7, "longer than there is room for");
        theirs.discard();
        ours.send(b"too many", &vec![file.as_fd(); MOST_DESCRIPTORS + 1]).unwrap();
        assert!(theirs.receive(&mut room).is_err());
        ours.send(b"a message that is too long", &[]).unwrap();
        assert!(theirs.receive(&mut room).is_err());
        theirs.set_deadline(Duration::from_millis(20)).unwrap();
        assert_eq!(theirs.peek(&mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        ours.close();
        assert_eq!(theirs.peek(&mut room).unwrap(), 0);
        assert!(theirs.send(b"x", &[]).is_err());
    }
}
