//! ioregionfd: a device that is told anything, and a side that asks which is answered anything.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use outrigger_protocol::ioregionfd::wire::{Command, MESSAGE_SIZE, Response};
use outrigger_protocol::ioregionfd::{
    Access, AccessError, Handler, Operation, Requester, ServeError, Size, SocketType, serve,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::allocations::count_this_thread;
use crate::checks::{Limits, checked};
use crate::input::{Input, MAX_STEPS};

/// Neither side allocates for the other; the rest is this peer's.
const LIMITS: Limits = Limits { total: 64 << 10, piece: 16 << 10, time: Duration::from_secs(5) };
const DEADLINE: Duration = Duration::from_millis(20);
/// A busy machine's delay.
const GRACE: Duration = Duration::from_secs(2);

/// The first byte of an input: the kind of socket, and which side.
pub const SEQPACKET: u8 = 1;
/// The side that asks, instead of the one that answers.
pub const ASKING: u8 = 2;

/// An input: a byte of these, then steps.
pub fn run(data: &[u8]) {
    count_this_thread();
    checked(LIMITS, || {
        let mut input = Input::new(data);
        let choice = input.number::<u8>();
        let kind = if choice & SEQPACKET == 0 { SocketType::Stream } else { SocketType::Seqpacket };
        if choice & ASKING == 0 { answering(input, kind) } else { asking(input, kind) }
    });
}

/// A log of executed accesses, with a value for each read.
#[derive(Default)]
struct Recorder(Vec<Access>);

impl Handler for Recorder {
    fn read(&mut self, user_data: u64, offset: u64, size: Size) -> u64 {
        self.0.push(Access { user_data, offset, size, operation: Operation::Read });
        value_of(self.0.len())
    }

    fn write(&mut self, user_data: u64, offset: u64, size: Size, data: u64) {
        // Whether it was posted is not for a device to know.
        self.0.push(Access { user_data, offset, size, operation: Operation::Write { data, posted: false } });
    }
}

fn value_of(nth: usize) -> u64 {
    0x0101_0101_0101_0101u64.wrapping_mul(nth as u64)
}

/// All is said before the device looks, so one thread does. The input is bytes, cut as it says.
fn answering(mut input: Input<'_>, kind: SocketType) {
    let (ours, theirs) = kind.pair().expect("a socket pair");
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        // Right in all that the input does not say otherwise: the low bits of a command, in a message of the right size.
        let (length, noise) = (input.number::<u8>(), input.number::<u8>());
        let mut command: Command = Command { info: input.number::<u8>().into(), ..Command::default() };
        command.info &= if noise & 1 == 0 { 0x71 } else { u32::MAX };
        command.info |= u32::from(noise & 2 != 0) << (7 + noise % 25);
        command.padding = u32::from(noise & 4 != 0);
        (command.user_data, command.offset, command.data) = (input.number(), input.number(), input.number());
        let mut bytes = command.as_bytes().repeat(3);
        bytes.truncate(match length {
            0 => MESSAGE_SIZE,
            length => length.into(),
        });
        // An empty packet is taken for the end.
        if send(ours.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) != Ok(bytes.len()) {
            break;
        }
        sent.push(bytes);
    }
    shutdown(ours.as_raw_fd(), Shutdown::Write).expect("it is connected");
    let mut device = Recorder::default();
    let result = serve(theirs.as_fd(), &mut device);
    drop(theirs);

    let (executed, answers, fault) = expected(&sent, kind);
    assert_eq!(device.0, executed);
    match (&result, fault) {
        (Ok(()), None) | (Err(ServeError::Malformed(_)), Some(Fault::Malformed)) => {}
        (Err(ServeError::Length(seen)), Some(Fault::Length(length))) => assert_eq!(*seen, length),
        // Nobody receives here, so answers may run out of room.
        (Err(ServeError::Unread), _) => return,
        other => panic!("{other:?}"),
    }
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match recv(ours.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length @ 1..) => received.extend_from_slice(&buffer[..length]),
            // Said once, by a socket that was closed with something unread.
            Err(Errno::ECONNRESET) => {}
            _ => break,
        }
    }
    assert_eq!(received, answers);
}

#[derive(Debug)]
enum Fault {
    Malformed,
    Length(usize),
}

/// The outcome for a device that takes the text by its word.
fn expected(sent: &[Vec<u8>], kind: SocketType) -> (Vec<Access>, Vec<u8>, Option<Fault>) {
    let stream = [sent.concat()];
    let pieces: Vec<&[u8]> = match kind {
        SocketType::Seqpacket => sent.iter().map(Vec::as_slice).collect(),
        SocketType::Stream => stream[0].chunks(MESSAGE_SIZE).collect(),
    };
    let (mut executed, mut answers) = (Vec::new(), Vec::new());
    for piece in pieces {
        let Ok(command) = Command::read_from_bytes(piece) else {
            return (executed, answers, Some(Fault::Length(piece.len())));
        };
        let Command { info, padding, user_data, offset, data } = command;
        if info >> 7 != 0 || padding != 0 || info & 0xf > 1 {
            return (executed, answers, Some(Fault::Malformed));
        }
        let size = Size::of(1 << (info >> 4 & 3)).expect("there is such a size");
        let keep = |value: u64| if size == Size::Eight { value } else { value % (1 << (8 * size.bytes())) };
        let write = info & 0xf == 1;
        let operation = if write { Operation::Write { data: keep(data), posted: false } } else { Operation::Read };
        executed.push(Access { user_data, offset, size, operation });
        if !write || info & 0x40 != 0 {
            let data = if write { 0 } else { keep(value_of(executed.len())) };
            answers.extend_from_slice(Response { data, pad: [0; 3] }.as_bytes());
        }
    }
    (executed, answers, None)
}

/// The peer's answer to a command.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Right,
    Bytes(u8),
    Nothing,
    Twice,
    HangUp,
}

fn asking(mut input: Input<'_>, kind: SocketType) {
    let mut steps = Vec::new();
    while !input.is_empty() && steps.len() < MAX_STEPS {
        let (access, answer, value) = (input.number::<u8>(), input.number::<u8>(), input.number::<u64>());
        let answer = match answer % 16 {
            0..8 => Answer::Right,
            8..11 => Answer::Bytes(value.to_le_bytes()[7]),
            11 => Answer::Nothing,
            12..15 => Answer::Twice,
            _ => Answer::HangUp,
        };
        steps.push((access, answer, value));
    }
    let (ours, theirs) = kind.pair().expect("a socket pair");
    let requester = Requester::new(Arc::new(ours.into()), DEADLINE).expect("a socket");
    std::thread::scope(|threads| {
        let steps = &steps;
        threads.spawn(move || {
            count_this_thread();
            for &(_, answer, value) in steps {
                if !answer_one(&theirs, answer, value) {
                    return;
                }
            }
        });
        let (mut broken, mut surplus) = (false, false);
        for &(access, answer, value) in steps {
            let size = Size::ALL[usize::from(access & 3)];
            let start = Instant::now();
            let result = match access >> 2 & 3 {
                0 | 1 => requester.read(1, 2, size).map(Some),
                2 => requester.write(1, 2, size, value, false).map(|()| None),
                _ => requester.write(1, 2, size, value, true).map(|()| None),
            };
            assert!(start.elapsed() < DEADLINE + GRACE, "{answer:?}");
            let posted = access >> 2 & 3 == 3;
            // Bytes beyond the one answer may be noticed with this access or any later one.
            surplus |= posted && !matches!(answer, Answer::Nothing | Answer::HangUp) || matches!(answer, Answer::Twice);
            match result {
                Ok(data) => {
                    assert!(!broken, "an access succeeded after one that failed");
                    let right = posted || matches!(answer, Answer::Right | Answer::Twice | Answer::Bytes(32));
                    assert!(surplus || right, "{answer:?} was taken for an answer");
                    if let Some(data) = data {
                        assert_eq!(size.truncate(data), data);
                        assert!(surplus || data == size.truncate(value));
                    }
                }
                Err(AccessError::Broken) => assert!(broken, "nothing failed before"),
                Err(_) => {
                    assert!(!broken, "a second failure");
                    broken = true;
                }
            }
            assert_eq!(requester.is_broken(), broken);
        }
        requester.close();
    });
}

/// Waits for a command, and answers. False: there are no more.
fn answer_one(fd: &OwnedFd, answer: Answer, value: u64) -> bool {
    if !matches!(recv(fd.as_raw_fd(), &mut [0; MESSAGE_SIZE], MsgFlags::empty()), Ok(MESSAGE_SIZE)) {
        return false;
    }
    let response = Response { data: value, pad: [value; 3] };
    let say = |bytes: &[u8]| send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT).is_ok();
    match answer {
        Answer::Right => say(response.as_bytes()),
        Answer::Bytes(length) => say(&response.as_bytes().repeat(8)[..length.into()]),
        Answer::Nothing => true,
        Answer::Twice => say(response.as_bytes()) && say(response.as_bytes()),
        Answer::HangUp => false,
    }
}
