//! ioregionfd, the side that answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use common::raw::{longs, words};
use common::{PATIENCE, readable};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, send, sendmsg, shutdown};
use outrigger_protocol::ioregionfd::{Endpoint, Handler, Malformed, ServeError, Size, SocketType, serve};

const TYPES: [SocketType; 2] = [SocketType::Stream, SocketType::Seqpacket];

/// An access to the device: (user data, offset, bytes, written).
type Seen = (u64, u64, usize, Option<u64>);

/// Reads have the bits of all their arguments.
struct Recorder(Sender<Seen>);

impl Handler for Recorder {
    fn read(&mut self, user_data: u64, offset: u64, size: Size) -> u64 {
        self.0.send((user_data, offset, size.bytes(), None)).unwrap();
        0xf1e2_d3c4_b5a6_9788 ^ offset
    }

    fn write(&mut self, user_data: u64, offset: u64, size: Size, data: u64) {
        self.0.send((user_data, offset, size.bytes(), Some(data))).unwrap();
    }
}

/// A device that is served in a thread, and the raw end of its socket.
struct Device {
    fd: OwnedFd,
    seen: Receiver<Seen>,
    thread: JoinHandle<Result<(), ServeError>>,
}

impl Device {
    fn start(kind: SocketType) -> Self {
        let (fd, theirs) = kind.pair().unwrap();
        let (sender, seen) = channel();
        let thread = std::thread::spawn(move || serve(theirs.as_fd(), &mut Recorder(sender)));
        Self { fd, seen, thread }
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL), Ok(bytes.len()));
    }

    /// The answer that comes.
    fn answer(&self) -> Vec<u8> {
        assert!(readable(&self.fd, PATIENCE));
        let mut buffer = [0; 100];
        let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        buffer[..length].to_vec()
    }

    /// How serving ended, by itself; and what was executed.
    fn ended(self) -> (Result<(), ServeError>, Vec<Seen>) {
        let result = self.thread.join().unwrap();
        (result, self.seen.try_iter().collect())
    }

    fn left(self) -> (Result<(), ServeError>, Vec<Seen>) {
        shutdown(self.fd.as_raw_fd(), Shutdown::Write).unwrap();
        self.ended()
    }
}

fn command(info: u32, user_data: u64, offset: u64, data: u64) -> Vec<u8> {
    [words(&[info, 0]), longs(&[user_data, offset, data])].concat()
}

/// A posted write of four bytes.
fn posted(data: u32) -> Vec<u8> {
    command(0x21, 3, 8, data.into())
}

#[test]
fn a_packet_of_another_length_ends_it_and_is_not_executed() {
    for length in [1, 31, 33, 64, 96, 1000] {
        let device = Device::start(SocketType::Seqpacket);
        device.send(&posted(1));
        device.send(&posted(2).into_iter().cycle().take(length).collect::<Vec<_>>());
        let (result, seen) = device.ended();
        assert!(matches!(result, Err(ServeError::Length(seen)) if seen == length.min(256)), "{result:?}");
        assert_eq!(seen, [(3, 8, 4, Some(1))]);
    }
}

#[test]
fn a_stream_that_ends_within_a_command_is_an_error_and_nothing_is_made_of_the_part() {
    for length in [1, 4, 31] {
        let device = Device::start(SocketType::Stream);
        device.send(&[posted(1), posted(2)].concat()[..32 + length]);
        let (result, seen) = device.left();
        assert!(matches!(result, Err(ServeError::Length(part)) if part == length), "{result:?}");
        assert_eq!(seen, [(3, 8, 4, Some(1))]);
    }
}

#[test]
fn a_command_that_means_nothing_ends_it_and_is_not_executed() {
    let reserved = |info, padding| Malformed::Reserved { info, padding };
    for kind in TYPES {
        for (info, padding, problem) in [
            (0x80, 0, reserved(0x80, 0)),
            (0x8000_0001, 0, reserved(0x8000_0001, 0)),
            (0x21, 1, reserved(0x21, 1)),
            (0x42, 0, Malformed::Operation(2)),
            (0x4f, 0, Malformed::Operation(15)),
        ] {
            let device = Device::start(kind);
            device.send(&posted(1));
            device.send(&[words(&[info, padding]), longs(&[0, 0, 0])].concat());
            let (result, seen) = device.ended();
            assert!(matches!(result, Err(ServeError::Malformed(seen)) if seen == problem), "{result:?}");
            assert_eq!(seen, [(3, 8, 4, Some(1))]);
        }
    }
}

#[test]
fn who_takes_no_answers_is_given_up() {
    for kind in TYPES {
        let device = Device::start(kind);
        // Until the device no longer receives.
        let read = command(0x40, 0, 0, 0);
        while send(device.fd.as_raw_fd(), &read, MsgFlags::MSG_NOSIGNAL) == Ok(read.len()) {
            if device.thread.is_finished() {
                break;
            }
        }
        assert!(matches!(device.ended().0, Err(ServeError::Unread)));
    }
}

#[test]
fn what_is_no_socket_is_refused() {
    let (pipe, _write) = nix::unistd::pipe().unwrap();
    let result = serve(pipe.as_fd(), &mut Recorder(channel().0));
    assert!(matches!(result, Err(ServeError::Socket(_))), "{result:?}");
}

#[test]
fn descriptors_that_come_along_are_closed() {
    for kind in TYPES {
        let device = Device::start(kind);
        let (pipe, write) = nix::unistd::pipe().unwrap();
        let fds = [write.as_raw_fd()];
        let bytes = command(0x40, 0, 0, 0);
        let rights = [ControlMessage::ScmRights(&fds)];
        let parts = [std::io::IoSlice::new(&bytes)];
        sendmsg::<()>(device.fd.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        drop(write);
        device.answer();
        // The end that writes is closed everywhere.
        assert_eq!(nix::unistd::read(&pipe, &mut [0]), Ok(0));
    }
}

#[test]
fn reads_are_answered_with_the_value_and_zeroes_in_each_width() {
    for kind in TYPES {
        let device = Device::start(kind);
        for (info, bytes, value) in
            [(0x00, 1, 0x88), (0x10, 2, 0x9788), (0x20, 4, 0xb5a6_9788), (0x30, 8, 0xf1e2_d3c4_b5a6_9788)]
        {
            // With the bit for a response and without; data means nothing.
            for info in [info, info | 0x40] {
                device.send(&command(info, u64::MAX, 1 << 48, !0));
                assert_eq!(device.seen.recv().unwrap(), (u64::MAX, 1 << 48, bytes, None));
                let value = if bytes == 8 { value ^ 1 << 48 } else { value };
                assert_eq!(device.answer(), longs(&[value, 0, 0, 0]));
            }
        }
        let (result, _) = device.left();
        assert!(result.is_ok(), "{result:?}");
    }
}

#[test]
fn writes_are_answered_if_they_are_not_posted_and_cut_to_their_width() {
    for kind in TYPES {
        let device = Device::start(kind);
        let data = 0x1122_3344_5566_7788;
        for (info, bytes, value) in [(0x01, 1, 0x88), (0x11, 2, 0x7788), (0x21, 4, 0x5566_7788), (0x31, 8, data)] {
            device.send(&command(info, 5, 6, data));
            device.send(&command(info | 0x40, 5, 6, data));
            // The one answer is there only when both are done.
            assert_eq!(device.answer(), longs(&[0, 0, 0, 0]));
            let seen: Vec<_> = device.seen.try_iter().collect();
            assert_eq!(seen, [(5, 6, bytes, Some(value)); 2]);
            assert!(!readable(&device.fd, std::time::Duration::ZERO));
        }
    }
}

#[test]
fn commands_that_a_stream_joins_or_cuts_are_the_same_commands_in_order() {
    let device = Device::start(SocketType::Stream);
    let all: Vec<_> = (0..100).flat_map(posted).collect();
    // All lengths from 1 to 99, so also several commands at once and any part of one.
    let mut rest = &all[..];
    for length in (1..100).cycle() {
        let (now, later) = rest.split_at(length.min(rest.len()));
        device.send(now);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    let (result, seen) = device.left();
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(seen, (0..100).map(|data| (3, 8, 4, Some(data))).collect::<Vec<_>>());
}

#[test]
fn who_leaves_before_the_answer_has_left() {
    for kind in TYPES {
        let device = Device::start(kind);
        device.send(&command(0x40, 0, 0, 0));
        let Device { fd, seen, thread } = device;
        drop(fd);
        assert!(thread.join().unwrap().is_ok());
        assert!(seen.try_iter().count() <= 1);
    }
}

#[test]
fn an_endpoint_that_is_dropped_is_dead_for_who_kept_the_other_end() {
    for kind in TYPES {
        let (sender, seen) = channel();
        let endpoint = Endpoint::start("registers", kind, Recorder(sender)).unwrap();
        let fd = endpoint.as_fd().try_clone_to_owned().unwrap();
        send(fd.as_raw_fd(), &command(0x40, 1, 2, 0), MsgFlags::empty()).unwrap();
        assert!(readable(&fd, PATIENCE));
        drop(endpoint);
        // The thread is gone, and with it the handler.
        assert_eq!(seen.iter().collect::<Vec<_>>(), [(1, 2, 1, None)]);
        assert_eq!(send(fd.as_raw_fd(), &posted(1), MsgFlags::MSG_NOSIGNAL), Err(Errno::EPIPE));
        let mut buffer = [0; 64];
        assert_eq!(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()), Ok(32));
        assert_eq!(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()), Ok(0));
    }
}

#[test]
fn an_endpoint_hangs_up_on_who_sends_what_means_nothing() {
    let endpoint = Endpoint::start("registers", SocketType::Seqpacket, Recorder(channel().0)).unwrap();
    send(endpoint.as_fd().as_raw_fd(), &[0; 7], MsgFlags::empty()).unwrap();
    assert_eq!(recv(endpoint.as_fd().as_raw_fd(), &mut [0; 64], MsgFlags::empty()), Ok(0));
}

#[test]
fn an_endpoint_hangs_up_when_its_handler_panics() {
    struct Panics;
    impl Handler for Panics {
        fn read(&mut self, _user_data: u64, _offset: u64, _size: Size) -> u64 {
            panic!("as the test wants");
        }
        fn write(&mut self, _user_data: u64, _offset: u64, _size: Size, _data: u64) {}
    }
    let endpoint = Endpoint::start("registers", SocketType::Stream, Panics).unwrap();
    send(endpoint.as_fd().as_raw_fd(), &command(0, 0, 0, 0), MsgFlags::empty()).unwrap();
    assert_eq!(recv(endpoint.as_fd().as_raw_fd(), &mut [0; 64], MsgFlags::empty()), Ok(0));
}
