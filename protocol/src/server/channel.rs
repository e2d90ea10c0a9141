//! One socket to a client, shared by the thread that serves it and the threads that ask something of the client.
//!
//! A waiting thread reads the socket: the one that has the [`Reader`] receives for all, hands replies to those that wait
//! for them, and queues commands for the serving thread. So a device may wait for the client from within a request that
//! the client waits for, and from any other thread, without another thread having to run.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use zerocopy::IntoBytes;

use crate::codec::{Message, ReceiveError, Receiver};
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::socket::{Outgoing, Socket, Wait, is_local, wait_for};
use crate::wire::{FLAG_ERROR, HEADER_SIZE, Header, TYPE_COMMAND};

/// With this many bytes of commands queued, or this many descriptors, no more is received until some are executed.
const QUEUE_BYTES: usize = 4 << 20;
const QUEUE_FDS: usize = 256;
/// The cost of a queued command beside its payload.
const QUEUE_OVERHEAD: usize = 64;
/// How soon one who waits for room notices that nobody receives any more.
const RECHECK: Duration = Duration::from_millis(10);

/// Why a channel is of no use any more.
#[derive(Debug)]
pub(super) enum ChannelError {
    /// The bytes that came are no message, or nothing more comes.
    Receive(ReceiveError),
    /// Nothing can be sent.
    Send(io::Error),
    /// This message could not be sent for want of something on this host; nothing of it was, and the channel is in step.
    Unsent(Errno),
    /// A reply that nobody waits for, a type that does not exist, or a command where none may come.
    Unexpected { flags: u32 },
    /// A request was not answered in time.
    Unanswered(Command),
    /// The answer to a request makes no sense.
    Malformed { command: Command, problem: &'static str },
}

/// Why a request brought no result.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The client answered with an error, or could not be asked; the channel is in step.
    Refused(Errno),
    /// The channel must be closed.
    Fatal(ChannelError),
}

impl From<ChannelError> for RequestError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Unsent(errno) => Self::Refused(errno),
            error => Self::Fatal(error),
        }
    }
}

/// A socket with replies in both directions.
#[derive(Debug)]
pub(super) struct Channel {
    stream: Arc<ForeignFd>,
    /// Held while a message goes out, so that none gets into the middle of another.
    sending: Mutex<()>,
    state: Mutex<State>,
    /// The reader is free, a reply was handed over, or the queue has room again.
    changed: Condvar,
    deadline: Duration,
    takes_commands: bool,
}

/// The thread that has this receives.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) socket: Socket,
    pub(super) receiver: Receiver,
}

#[derive(Debug)]
struct State {
    /// Absent while somebody receives.
    reader: Option<Box<Reader>>,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    queued_fds: usize,
    waiting: Vec<Waiting>,
    /// How many threads sleep on [`Channel::changed`]: most of the time none, and waking none costs a system call too.
    sleepers: usize,
    closed: bool,
    next_id: u16,
}

/// A command that came while somebody waited for a reply.
#[derive(Debug)]
struct Queued {
    header: Header,
    payload: Vec<u8>,
    fds: Vec<ForeignFd>,
}

/// A request under way.
#[derive(Debug)]
struct Waiting {
    id: u16,
    command: Command,
    reply: Option<Result<Vec<u8>, Errno>>,
}

impl Channel {
    /// `stream` is the reader's socket. A reply must come within `deadline`.
    pub(super) fn new(stream: Arc<ForeignFd>, reader: Reader, deadline: Duration, takes_commands: bool) -> Self {
        let state = State {
            reader: Some(Box::new(reader)),
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_fds: 0,
            waiting: Vec::new(),
            sleepers: 0,
            closed: false,
            next_id: 0,
        };
        let (sending, state, changed) = (Mutex::new(()), Mutex::new(state), Condvar::new());
        Self { stream, sending, state, changed, deadline, takes_commands }
    }

    /// Waits for the next command, however long it takes; its payload goes to `payload`.
    pub(super) fn next_command(&self, payload: &mut Vec<u8>) -> Result<(Header, Vec<ForeignFd>), ChannelError> {
        let mut state = self.state();
        loop {
            if let Some(queued) = state.take_queued() {
                self.wake(&state);
                *payload = queued.payload;
                return Ok((queued.header, queued.fds));
            }
            if state.closed {
                return Err(ChannelError::Receive(ReceiveError::Closed));
            }
            let Some(mut reader) = state.reader.take() else {
                // The reading thread does so for a limited time.
                state = self.sleep(state, None);
                continue;
            };
            drop(state);
            let received = match reader.receive(Wait::Forever) {
                Ok(Some(message)) if message.header.is_command() => {
                    payload.clear();
                    payload.extend_from_slice(message.payload);
                    Ok(Some((message.header, message.fds)))
                }
                Ok(Some(message)) => self.state().dispatch(message, self.takes_commands).map(|()| None),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            state = self.state();
            state.reader = Some(reader);
            self.wake(&state);
            if let Some(command) = received? {
                return Ok(command);
            }
        }
    }

    /// Asks something of the client; `read` makes sense of the payload of its answer.
    pub(super) fn request<T>(
        &self,
        command: Command,
        parts: [&[u8]; 2],
        read: impl FnOnce(&[u8]) -> Result<T, &'static str>,
    ) -> Result<T, RequestError> {
        let deadline = Instant::now() + self.deadline;
        let id = self.state().expect_reply(command);
        let message_size = u32::try_from(HEADER_SIZE + parts[0].len() + parts[1].len());
        let message_size = message_size.expect("requests are split by max_data_xfer_size");
        let header = Header { message_id: id, command: command as u16, message_size, flags: TYPE_COMMAND, error: 0 };
        let sent = self.send(Outgoing::new([header.as_bytes(), parts[0], parts[1]], &[]), deadline);
        let result = sent.and_then(|()| self.await_reply(id, command, deadline));
        let reply = result.inspect_err(|_| self.state().forget(id))?;
        let malformed = |problem| ChannelError::Malformed { command, problem };
        Ok(read(&reply.map_err(RequestError::Refused)?).map_err(malformed)?)
    }

    /// Sends a whole message. While there is no room, what comes is received: the client may be waiting for that.
    pub(super) fn send(&self, mut outgoing: Outgoing<'_>, deadline: Instant) -> Result<(), ChannelError> {
        let _turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        while !outgoing.try_send(self.stream.lend()).map_err(|error| unsent(error, outgoing.sent()))? {
            self.wait_for_room(deadline)?;
        }
        Ok(())
    }

    /// The socket's number, valid while this is there.
    pub(super) fn number(&self) -> RawFd {
        self.stream.lend().as_raw_fd()
    }

    /// Ends both directions; whoever waits notices.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.stream.hang_up();
        self.changed.notify_all();
    }

    fn await_reply(
        &self,
        id: u16,
        command: Command,
        deadline: Instant,
    ) -> Result<Result<Vec<u8>, Errno>, ChannelError> {
        let mut state = self.state();
        loop {
            if let Some(reply) = state.take_reply(id) {
                return Ok(reply);
            }
            if state.closed {
                return Err(ChannelError::Receive(ReceiveError::Closed));
            }
            if Instant::now() >= deadline {
                return Err(ChannelError::Unanswered(command));
            }
            let reader = if state.is_full() { None } else { state.reader.take() };
            let Some(mut reader) = reader else {
                state = self.sleep(state, Some(deadline));
                continue;
            };
            drop(state);
            let received = match reader.receive(Wait::Until(deadline)) {
                Ok(Some(message)) => self.state().dispatch(message, self.takes_commands),
                Ok(None) => Ok(()),
                Err(ChannelError::Receive(ReceiveError::TimedOut)) => Err(ChannelError::Unanswered(command)),
                Err(error) => Err(error),
            };
            state = self.state();
            state.reader = Some(reader);
            self.wake(&state);
            received?;
        }
    }

    fn wait_for_room(&self, deadline: Instant) -> Result<(), ChannelError> {
        let now = Instant::now();
        if now >= deadline {
            return Err(ChannelError::Send(io::ErrorKind::TimedOut.into()));
        }
        let mut state = self.state();
        let reader = if state.is_full() { None } else { state.reader.take() };
        drop(state);
        let socket = self.stream.lend();
        let Some(mut reader) = reader else {
            // Somebody else receives, but may stop before there is room.
            return match wait_for(socket, PollFlags::POLLOUT, deadline.min(now + RECHECK)) {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => Err(ChannelError::Send(error)),
                _ => Ok(()),
            };
        };
        let received = wait_for(socket, PollFlags::POLLOUT | PollFlags::POLLIN, deadline).map_err(ChannelError::Send);
        let received = received.and_then(|ready| match ready.contains(PollFlags::POLLIN) {
            true => self.receive_ready(&mut reader),
            false => Ok(()),
        });
        let mut state = self.state();
        state.reader = Some(reader);
        self.wake(&state);
        received
    }

    /// Receives once, without waiting, and hands out what is whole then.
    fn receive_ready(&self, reader: &mut Reader) -> Result<(), ChannelError> {
        reader.receiver.read_ahead(&mut reader.socket, Wait::No).map_err(ChannelError::Receive)?;
        loop {
            let mut state = self.state();
            if state.is_full() {
                return Ok(());
            }
            match reader.receiver.buffered().map_err(ChannelError::Receive)? {
                Some(message) => state.dispatch(message, self.takes_commands)?,
                None => return Ok(()),
            }
        }
    }

    fn sleep<'a>(&self, mut state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        state.sleepers += 1;
        let mut state = match until {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let remaining = until.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.sleepers -= 1;
        state
    }

    fn wake(&self, state: &State) {
        if state.sleepers > 0 {
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unsent(error: io::Error, sent: usize) -> ChannelError {
    match error.raw_os_error() {
        Some(errno) if sent == 0 && is_local(&error) => ChannelError::Unsent(Errno::from_raw(errno)),
        _ => ChannelError::Send(error),
    }
}

impl Reader {
    fn receive(&mut self, wait: Wait) -> Result<Option<Message<'_>>, ChannelError> {
        self.receiver.receive(&mut self.socket, wait).map_err(ChannelError::Receive)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.queued_bytes >= QUEUE_BYTES || self.queued_fds >= QUEUE_FDS
    }

    fn take_queued(&mut self) -> Option<Queued> {
        let queued = self.queue.pop_front()?;
        self.queued_bytes -= queued.payload.len() + QUEUE_OVERHEAD;
        self.queued_fds -= queued.fds.len();
        Some(queued)
    }

    /// Hands a message to whom it is for.
    fn dispatch(&mut self, message: Message<'_>, takes_commands: bool) -> Result<(), ChannelError> {
        let header = message.header;
        let payload = message.payload.to_vec();
        if header.is_command() && takes_commands {
            self.queued_bytes += payload.len() + QUEUE_OVERHEAD;
            self.queued_fds += message.fds.len();
            self.queue.push_back(Queued { header, payload, fds: message.fds });
            return Ok(());
        }
        let key = (header.message_id, header.command);
        let mine = |w: &&mut Waiting| (w.id, w.command as u16) == key && w.reply.is_none() && header.is_reply();
        let waiting = self.waiting.iter_mut().find(mine);
        let waiting = waiting.ok_or(ChannelError::Unexpected { flags: header.flags })?;
        waiting.reply = Some(match header.flags & FLAG_ERROR {
            0 => Ok(payload),
            _ => Err(i32::try_from(header.error).map_or(Errno::UnknownErrno, Errno::from_raw)),
        });
        Ok(())
    }

    /// Notes a request under an id that no other one under way has.
    fn expect_reply(&mut self, command: Command) -> u16 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            let id = self.next_id;
            if self.waiting.iter().all(|waiting| waiting.id != id) {
                self.waiting.push(Waiting { id, command, reply: None });
                return id;
            }
        }
    }

    fn take_reply(&mut self, id: u16) -> Option<Result<Vec<u8>, Errno>> {
        let position = self.waiting.iter().position(|waiting| waiting.id == id && waiting.reply.is_some())?;
        self.waiting.swap_remove(position).reply
    }

    fn forget(&mut self, id: u16) {
        self.waiting.retain(|waiting| waiting.id != id);
    }
}
