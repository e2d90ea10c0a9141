//! ioregionfd, the side that asks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::scope;
use std::time::{Duration, Instant};

use common::raw::{longs, words};
use common::{PATIENCE, readable};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use outrigger_protocol::ioregionfd::{AccessError, Endpoint, Handler, Requester, Size, SocketError, SocketType};

const TYPES: [SocketType; 2] = [SocketType::Stream, SocketType::Seqpacket];
/// For a device that does not answer.
/// A deadline that is to pass. A thread that has something to do before it gets a processor within this time.
const SHORT: Duration = Duration::from_secs(1);

/// One who asks, and a raw device.
fn pair(kind: SocketType, deadline: Duration) -> (Requester, OwnedFd) {
    let (ours, theirs) = kind.pair().unwrap();
    (Requester::new(Arc::new(ours.into()), deadline).unwrap(), theirs)
}

fn take(device: &OwnedFd) -> Vec<u8> {
    assert!(readable(device, PATIENCE));
    let mut buffer = [0; 32];
    assert_eq!(recv(device.as_raw_fd(), &mut buffer, MsgFlags::empty()), Ok(32));
    buffer.to_vec()
}

fn give(device: &OwnedFd, bytes: &[u8]) {
    assert_eq!(send(device.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL), Ok(bytes.len()));
}

fn answer(data: u64) -> Vec<u8> {
    longs(&[data, 0, 0, 0])
}

/// Reads one register while `device` does what it does.
fn read_while(requester: &Requester, device: impl FnOnce() + Send) -> Result<u64, AccessError> {
    scope(|threads| {
        threads.spawn(device);
        requester.read(0, 0, Size::Eight)
    })
}

/// Every access fails at once, and nothing of it gets out.
fn assert_broken(requester: &Requester, device: &OwnedFd) {
    assert!(requester.is_broken());
    let start = Instant::now();
    assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::Broken)));
    assert!(matches!(requester.write(0, 0, Size::One, 0, true), Err(AccessError::Broken)));
    assert!(start.elapsed() < SHORT);
    let mut buffer = [0; 4096];
    while let Ok(length) = recv(device.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        if length == 0 {
            return;
        }
    }
    panic!("the connection is not shut down");
}

#[test]
fn what_is_no_connected_unix_socket_is_refused() {
    let (pipe, _write) = nix::unistd::pipe().unwrap();
    assert!(matches!(Requester::new(Arc::new(pipe.into()), SHORT), Err(SocketError::Unsupported)));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Requester::new(Arc::new(file.into()), SHORT), Err(SocketError::Unsupported)));
}

#[test]
fn an_answer_of_another_length_breaks_it() {
    for kind in TYPES {
        for length in [1, 8, 31, 33, 64] {
            let (requester, device) = pair(kind, PATIENCE);
            let result = read_while(&requester, || {
                take(&device);
                give(&device, &answer(1).repeat(2)[..length]);
            });
            assert!(matches!(result, Err(AccessError::Length(seen)) if seen == length.min(33)), "{result:?}");
            assert_broken(&requester, &device);
        }
    }
}

#[test]
fn an_answer_before_the_command_breaks_it_and_the_command_is_not_sent() {
    for kind in TYPES {
        for bytes in [&answer(1)[..], &[0]] {
            let (requester, device) = pair(kind, PATIENCE);
            give(&device, bytes);
            let result = requester.write(0, 0, Size::One, 1, true);
            assert!(matches!(result, Err(AccessError::Unasked)), "{result:?}");
            assert!(
                !readable(&device, Duration::ZERO) || recv(device.as_raw_fd(), &mut [0], MsgFlags::empty()) == Ok(0)
            );
            assert_broken(&requester, &device);
        }
    }
}

#[test]
fn an_answer_that_comes_twice_is_not_taken_for_the_next() {
    for kind in TYPES {
        let (requester, device) = pair(kind, PATIENCE);
        let first = read_while(&requester, || {
            take(&device);
            give(&device, &answer(1));
        });
        assert_eq!(first.unwrap(), 1);
        give(&device, &answer(2));
        let second = requester.read(0, 0, Size::One);
        assert!(matches!(second, Err(AccessError::Unasked)), "{second:?}");
        assert_broken(&requester, &device);
    }
}

#[test]
fn an_answer_to_a_posted_write_breaks_it() {
    for kind in TYPES {
        let (requester, device) = pair(kind, PATIENCE);
        requester.write(0, 0, Size::One, 1, true).unwrap();
        take(&device);
        give(&device, &answer(0));
        assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::Unasked)));
        assert_broken(&requester, &device);
    }
}

#[test]
fn who_never_answers_is_given_up_at_the_deadline_and_a_late_answer_is_nobodys() {
    for kind in TYPES {
        let (requester, device) = pair(kind, SHORT);
        let start = Instant::now();
        let result = requester.read(0, 0, Size::One);
        assert!(matches!(result, Err(AccessError::TimedOut(SHORT))), "{result:?}");
        assert!((SHORT..PATIENCE / 2).contains(&start.elapsed()));
        // It cannot even be sent any more.
        assert!(send(device.as_raw_fd(), &answer(1), MsgFlags::MSG_NOSIGNAL).is_err());
        assert_broken(&requester, &device);
    }
}

#[test]
fn who_takes_no_posted_writes_is_given_up_at_the_deadline() {
    for kind in TYPES {
        let (requester, device) = pair(kind, SHORT);
        let error = (0..100_000).find_map(|i| requester.write(0, 0, Size::Four, i, true).err()).unwrap();
        assert!(matches!(error, AccessError::TimedOut(SHORT)), "{error:?}");
        assert_broken(&requester, &device);
    }
}

#[test]
fn a_device_that_leaves_breaks_it_before_during_and_instead_of_an_answer() {
    for kind in TYPES {
        let (requester, device) = pair(kind, PATIENCE);
        let result = read_while(&requester, move || {
            take(&device);
        });
        assert!(matches!(result, Err(AccessError::HungUp)), "{result:?}");
        assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::Broken)));

        let (requester, device) = pair(kind, PATIENCE);
        drop(device);
        let result = requester.write(0, 0, Size::One, 0, true);
        assert!(matches!(result, Err(AccessError::HungUp)), "{result:?}");
        assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::Broken)));
    }
}

/// The device made the socket pair, so it can have kept a copy of the end that it gave away.
#[test]
fn a_device_that_kept_our_end_cannot_make_us_wait_longer() {
    for kind in TYPES {
        for nonblocking in [false, true] {
            let (ours, _theirs) = kind.pair().unwrap();
            let copy = ours.try_clone().unwrap();
            let requester = Requester::new(Arc::new(ours.into()), SHORT).unwrap();
            setsockopt(&copy, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 0)).unwrap();
            let flags = if nonblocking { OFlag::O_NONBLOCK } else { OFlag::empty() };
            fcntl(&copy, FcntlArg::F_SETFL(flags)).unwrap();
            let start = Instant::now();
            assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::TimedOut(SHORT))));
            assert!(start.elapsed() < PATIENCE / 2);
        }
    }
}

#[test]
fn a_device_that_takes_its_answers_back_is_given_up_at_the_deadline() {
    let (ours, theirs) = SocketType::Seqpacket.pair().unwrap();
    let copy = ours.try_clone().unwrap();
    let requester = Requester::new(Arc::new(ours.into()), SHORT).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let result = scope(|threads| {
        threads.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = recv(copy.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_DONTWAIT);
            }
        });
        let result = requester.read(0, 0, Size::One);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    });
    assert!(matches!(result, Err(AccessError::TimedOut(_))), "{result:?}");
    drop(theirs);
}

#[test]
fn commands_are_as_the_text_has_them_in_each_width() {
    for kind in TYPES {
        let (requester, device) = pair(kind, PATIENCE);
        let value = 0xf1e2_d3c4_b5a6_9788_u64;
        for (size, bits) in Size::ALL.into_iter().zip([0x00, 0x10, 0x20, 0x30]) {
            let cut = value & (u64::MAX >> (64 - 8 * size.bytes()));
            let command = |info: u32, data| [words(&[info | bits, 0]), longs(&[9, 1 << 40, data])].concat();

            requester.write(9, 1 << 40, size, value, true).unwrap();
            assert_eq!(take(&device), command(0x01, cut));
            scope(|threads| {
                let reader = threads.spawn(|| requester.read(9, 1 << 40, size));
                assert_eq!(take(&device), command(0x40, 0));
                give(&device, &longs(&[value, 1, 2, 3]));
                assert_eq!(reader.join().unwrap().unwrap(), cut);
                let writer = threads.spawn(|| requester.write(9, 1 << 40, size, value, false));
                assert_eq!(take(&device), command(0x41, cut));
                assert!(!writer.is_finished());
                give(&device, &answer(0));
                writer.join().unwrap().unwrap();
            });
        }
    }
}

#[test]
fn another_thread_can_end_the_wait() {
    for kind in TYPES {
        let (requester, device) = pair(kind, PATIENCE);
        let start = Instant::now();
        let result = read_while(&requester, || {
            take(&device);
            requester.close();
        });
        assert!(matches!(result, Err(AccessError::HungUp)), "{result:?}");
        assert!(start.elapsed() < PATIENCE / 2);
        assert_broken(&requester, &device);
    }
}

/// A vCPU thread is sent signals all the time.
#[test]
fn signals_neither_end_a_wait_nor_prolong_it() {
    use std::os::unix::thread::JoinHandleExt;

    use nix::sys::pthread::pthread_kill;
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let deadline = Duration::from_millis(300);
    let (requester, device) = pair(SocketType::Stream, deadline);
    let start = Instant::now();
    let reader = std::thread::spawn(move || requester.read(0, 0, Size::One));
    take(&device);
    while !reader.is_finished() {
        pthread_kill(reader.as_pthread_t(), Signal::SIGUSR1).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = reader.join().unwrap();
    assert!(matches!(result, Err(AccessError::TimedOut(_))), "{result:?}");
    assert!((deadline..PATIENCE / 2).contains(&start.elapsed()));
}

/// The device was in time. Who asks was stopped for longer than the deadline, by a shell or here by a handler that takes its time.
#[test]
fn an_answer_that_came_while_the_asking_thread_was_stopped_counts() {
    use std::os::unix::thread::JoinHandleExt;

    use nix::sys::pthread::pthread_kill;
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn stops(_: i32) {
        std::thread::sleep(SHORT * 3);
    }
    let action = SigAction::new(SigHandler::Handler(stops), SaFlags::empty(), SigSet::empty());
    // SAFETY: all that the handler does is nanosleep, which is async-signal-safe, and no other test uses the signal.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    for kind in TYPES {
        let (requester, device) = pair(kind, SHORT);
        let reader = std::thread::spawn(move || requester.read(0, 0, Size::Eight));
        take(&device);
        pthread_kill(reader.as_pthread_t(), Signal::SIGUSR2).unwrap();
        give(&device, &answer(7));
        assert!(matches!(reader.join().unwrap(), Ok(7)));
    }
}

/// Two registers and a count of writes.
#[derive(Default)]
struct Registers([u64; 2], u64);

impl Handler for Registers {
    fn read(&mut self, user_data: u64, offset: u64, _size: Size) -> u64 {
        if user_data == 1 { self.1 } else { self.0[usize::try_from(offset / 8).unwrap()] }
    }

    fn write(&mut self, _user_data: u64, offset: u64, _size: Size, data: u64) {
        self.0[usize::try_from(offset / 8).unwrap()] = data;
        self.1 += 1;
    }
}

#[test]
fn both_sides_together_with_threads_each_of_which_reads_what_it_wrote() {
    for kind in TYPES {
        let endpoint = Endpoint::start("registers", kind, Registers::default()).unwrap();
        let fd = endpoint.as_fd().try_clone_to_owned().unwrap();
        let requester = Requester::new(Arc::new(fd.into()), PATIENCE).unwrap();
        scope(|threads| {
            for thread in 0..2 {
                let requester = &requester;
                threads.spawn(move || {
                    for i in 0..2000_u64 {
                        // Posted writes are in order with the read behind them.
                        requester.write(0, thread * 8, Size::Eight, !i, true).unwrap();
                        requester.write(0, thread * 8, Size::Eight, i, i % 2 == 0).unwrap();
                        assert_eq!(requester.read(0, thread * 8, Size::Eight).unwrap(), i);
                    }
                });
            }
        });
        assert_eq!(requester.read(1, 0, Size::Eight).unwrap(), 8000);
        drop(endpoint);
        assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::HungUp)));
        assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::Broken)));
    }
}
