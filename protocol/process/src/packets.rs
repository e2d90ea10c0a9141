//! Messages between a process and its copy, each with descriptors: a pair of connected sockets that keep messages apart (unix(7),
//! `SOCK_SEQPACKET`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

/// Most descriptors that a message can bring.
pub const MOST_DESCRIPTORS: usize = 64;

/// A message that did not come, or not whole.
#[derive(Debug)]
pub struct Lost {
    /// The reason.
    pub error: io::Error,
    /// How much of it there is.
    pub length: usize,
    /// The first of its descriptors: those that there was room for.
    pub fds: Vec<OwnedFd>,
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        lost.error
    }
}

impl From<Errno> for Lost {
    fn from(errno: Errno) -> Self {
        Self { error: errno.into(), length: 0, fds: Vec::new() }
    }
}

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
    pub fn receive(&self, room: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Lost> {
        let mut control = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        // SAFETY: all zeros are a valid `msghdr`, of a message without parts.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), control.capacity());
        // SAFETY: the header names room that lives across the call, and has its size.
        let call = || Errno::result(unsafe { libc::recvmsg(self.number(), &raw mut header, libc::MSG_CMSG_CLOEXEC) });
        let length = usize::try_from(again(call)?).unwrap_or(0);
        // Those that came are taken before anything is said of those that did not: the kernel has made them.
        // SAFETY: the call has just filled the header and what it names.
        let fds = unsafe { take_descriptors(&header) };
        let lost = |error| Lost { error, length, fds: Vec::new() };
        let lost = match header.msg_flags {
            flags if flags & libc::MSG_TRUNC != 0 => {
                lost(io::Error::other("the message is longer than there is room for"))
            }
            flags if flags & libc::MSG_CTRUNC != 0 => lost(Errno::EMFILE.into()),
            _ => return Ok((length, fds)),
        };
        Err(Lost { fds, ..lost })
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The descriptors that a message has brought.
///
/// # Safety
/// `header` is as recvmsg(2) has just left it, and the descriptors are taken once.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has written whole parts, as many as the header says, and the caller's promise is that they are there.
    // The descriptors are new, and nobody else's.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(header);
        while let Some(known) = part.as_ref() {
            if (known.cmsg_level, known.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = known.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let numbers = libc::CMSG_DATA(part).cast::<RawFd>();
                let number = |index| numbers.add(index).read_unaligned();
                fds.extend((0..bytes / size_of::<RawFd>()).map(|index| OwnedFd::from_raw_fd(number(index))));
            }
            part = libc::CMSG_NXTHDR(header, part);
        }
    }
    fds
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
    use std::io::Read;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    /// Whoever sends too much does not fill the table of descriptors.
    #[test]
    fn descriptors_of_a_message_that_is_cut_are_closed() {
        for (count, length) in [(MOST_DESCRIPTORS + 1, 8), (3, 9)] {
            let (ours, theirs) = Packets::pair().unwrap();
            let (mut end, file) = std::io::pipe().unwrap();
            ours.send(&vec![b'x'; length], &vec![file.as_fd(); count]).unwrap();
            drop(file);
            let lost = theirs.receive(&mut [0; 8]).unwrap_err();
            assert_eq!((lost.length, lost.fds.len()), (8, count.min(MOST_DESCRIPTORS)));
            drop(lost);
            assert_eq!(poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], 10_000u16), Ok(1));
            assert_eq!(end.read(&mut [0]).unwrap(), 0);
        }
    }

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
        drop(ours);
        assert_eq!(theirs.peek(&mut room).unwrap(), 0);
        assert!(theirs.send(b"x", &[]).is_err());
    }
}
