//! Requests and replies on one socket, and the server's requests that come in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use zerocopy::IntoBytes;

use super::error::ClientError;
use super::exported::ExportedMemory;
use super::requests::Backlog;
use super::step::Step;
use crate::codec::{Message, ReceiveError, Receiver};
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::socket::{Outgoing, Socket, Wait, is_local, wait_for, wait_for_either};
use crate::wire::{FLAG_ERROR, FLAG_NO_REPLY, HEADER_SIZE, Header, TYPE_COMMAND};

/// One socket. Whoever waits on it, for a reply or for room, also serves what the server asks meanwhile, so that
/// neither side can wait for the other for ever.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    receiver: Receiver,
    memory: Arc<ExportedMemory>,
    backlog: Backlog,
    deadline: Duration,
    /// The server does not take the replies that it is owed: until when it has to take some.
    stalled: Option<Instant>,
    next_id: u16,
    tolerated: Tolerated,
    /// Where the server's requests come that a reply on this socket may depend on.
    twin: Option<Arc<Twin>>,
    /// A call has left something to do on the twin.
    twin_left: bool,
}

/// The socket for the server's own requests.
#[derive(Debug)]
pub(super) struct Twin {
    pub(super) stream: Arc<ForeignFd>,
    connection: Mutex<Connection>,
}

/// For how long a call waits for its reply alone before it looks at the twin socket as well, which costs it another
/// system call from then on. Most replies are there long before.
const ALONE: Duration = Duration::from_millis(2);

/// Replies that nobody waits for, but that peers are known to send.
#[derive(Debug, Default)]
struct Tolerated {
    /// Posted writes: some servers answer them although no reply is wanted.
    posted: u64,
    /// The id and command of an error: see [`Connection::expect_payload_as_header`].
    misread: Option<(u16, u16)>,
}

impl Connection {
    pub(super) fn new(
        stream: Arc<ForeignFd>,
        memory: Arc<ExportedMemory>,
        limit: usize,
        deadline: Duration,
    ) -> io::Result<Self> {
        let socket = Socket::new(stream, deadline)?;
        let receiver = Receiver::new(limit, deadline);
        let (backlog, tolerated) = (Backlog::default(), Tolerated::default());
        Ok(Self {
            socket,
            receiver,
            memory,
            backlog,
            deadline,
            stalled: None,
            next_id: 0,
            tolerated,
            twin: None,
            twin_left: false,
        })
    }

    /// Changes how long the server may take, from the next message on.
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
        self.receiver.set_patience(deadline);
    }

    /// From now on serves the twin as well while it waits.
    pub(super) fn serve_beside(&mut self, twin: &Arc<Twin>, stream: &Arc<ForeignFd>) -> io::Result<()> {
        self.socket = Socket::ticking(Arc::clone(stream), ALONE)?;
        self.twin = Some(Arc::clone(twin));
        Ok(())
    }

    /// Sends a command and waits for its reply until `deadline`, which `read` makes sense of: `Err` is a description of what is wrong
    /// with it.
    pub(super) fn request<T>(
        &mut self,
        deadline: Instant,
        command: Command,
        parts: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(Message<'_>) -> Result<T, &'static str>,
    ) -> Result<T, ClientError> {
        let id = self.send(command, 0, parts, fds, deadline)?;
        let malformed = |problem| ClientError::Malformed { command, problem };
        let mut alone = true;
        loop {
            let wait = match self.flush_until_readable(command, deadline)? {
                Wait::Until(_) if self.twin.is_some() && alone => Wait::Tick,
                Wait::Until(_) if self.twin.is_some() => {
                    self.wait(command, PollFlags::POLLIN, deadline)?;
                    Wait::No
                }
                wait => wait,
            };
            let message = match self.receiver.receive(&mut self.socket, wait) {
                Ok(Some(message)) => message,
                Ok(None) => {
                    alone = false;
                    continue;
                }
                Err(source) => return Err(receive_error(command, source, self.deadline)),
            };
            let header = message.header;
            if header.is_reply() && (header.message_id, header.command) == (id, command as u16) {
                if header.flags & FLAG_ERROR == 0 {
                    return read(message).map_err(malformed);
                }
                let errno = i32::try_from(header.error).map_or(Errno::UnknownErrno, Errno::from_raw);
                return Err(ClientError::Refused { command, errno });
            }
            if header.is_command() {
                self.backlog.answer(&message, &self.memory);
            } else {
                self.tolerated.take(&header).map_err(malformed)?;
            }
            // Bytes that are there already are received without looking at the clock.
            if Instant::now() >= deadline {
                return Err(ClientError::TimedOut { command, deadline: self.deadline });
            }
        }
    }

    /// Sends a command whose reply nobody wants.
    pub(super) fn post(&mut self, command: Command, parts: [&[u8]; 2], deadline: Instant) -> Result<(), ClientError> {
        self.send(command, FLAG_NO_REPLY, parts, &[], deadline)?;
        self.tolerated.posted += 1;
        Ok(())
    }

    /// Whether there is something for [`Connection::settle`] to do.
    pub(super) fn is_unsettled(&self) -> bool {
        self.receiver.has_whole() || !self.backlog.is_empty()
    }

    /// Serves what was received along with a reply, which no poll would tell of, and sends what is owed; never waits.
    pub(super) fn settle(&mut self) -> Result<Step, ClientError> {
        let command = Command::DmaRead;
        loop {
            self.serve_buffered(command)?;
            if !self.flush(command)? {
                return Ok(self.stalled.map_or(Step::Again, Step::NoRoom));
            }
            if !self.receiver.has_whole() {
                return Ok(Step::Idle);
            }
        }
    }

    /// Serves what the server has sent while nobody waited: receives once, and never waits.
    pub(super) fn serve_step(&mut self) -> Result<Step, ClientError> {
        // More requests are taken only when there is room for their replies.
        if self.backlog.is_full() && !self.flush(Command::DmaRead)? && self.backlog.is_full() {
            return Ok(self.stalled.map_or(Step::Again, Step::NoRoom));
        }
        let some = self.serve_once(Command::DmaRead)?;
        let step = self.settle()?;
        Ok(if some { step.and(Step::Again) } else { step })
    }

    /// Changes the largest message that is taken, when it has been negotiated.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.receiver.set_limit(limit);
    }

    /// After a command that the server refused as unknown: some servers do not skip its payload but take the first
    /// bytes of it as the next header, and refuse that as well.
    pub(super) fn expect_payload_as_header(&mut self, payload: &[u8]) {
        if let [a, b, c, d, ..] = *payload {
            self.tolerated.misread = Some((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])));
        }
    }

    fn send(
        &mut self,
        command: Command,
        flags: u32,
        parts: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<u16, ClientError> {
        self.next_id = self.next_id.wrapping_add(1);
        let size = HEADER_SIZE + parts[0].len() + parts[1].len();
        let header = Header {
            message_id: self.next_id,
            command: command as u16,
            message_size: u32::try_from(size).expect("commands are split by max_data_xfer_size"),
            flags: TYPE_COMMAND | flags,
            error: 0,
        };
        let mut outgoing = Outgoing::new([header.as_bytes(), parts[0], parts[1]], fds);
        loop {
            // Replies that wait go first, but not into the middle of this message.
            if (outgoing.sent() > 0 || self.flush(command)?) && self.try_send(command, &mut outgoing)? {
                return Ok(header.message_id);
            }
            self.wait_for_room(command, deadline)?;
        }
    }

    fn try_send(&self, command: Command, outgoing: &mut Outgoing<'_>) -> Result<bool, ClientError> {
        outgoing.try_send(self.socket.as_fd()).map_err(|source| match outgoing.sent() {
            0 if is_local(&source) => ClientError::Unsent { command, source },
            _ => self.io_error(command, source),
        })
    }

    /// Waits until the server takes more. It may be about to ask for something itself, and wait for us to receive that
    /// first: so we do.
    fn wait_for_room(&mut self, command: Command, deadline: Instant) -> Result<(), ClientError> {
        let ready = self.poll_unsent(command, deadline)?;
        if ready.contains(PollFlags::POLLIN) {
            self.serve_once(command)?;
        }
        Ok(())
    }

    /// Waits for room, and for something to receive unless too many replies wait already.
    fn poll_unsent(&mut self, command: Command, deadline: Instant) -> Result<PollFlags, ClientError> {
        if Instant::now() >= deadline {
            return Err(ClientError::TimedOut { command, deadline: self.deadline });
        }
        let mut events = PollFlags::POLLOUT;
        events.set(PollFlags::POLLIN, !self.backlog.is_full());
        self.wait(command, events, deadline)
    }

    /// Waits for `events`, and serves the twin meanwhile.
    fn wait(&mut self, command: Command, events: PollFlags, deadline: Instant) -> Result<PollFlags, ClientError> {
        let Some(twin) = self.twin.clone() else {
            return wait_for(self.socket.as_fd(), events, deadline).map_err(|source| self.io_error(command, source));
        };
        loop {
            let ready = wait_for_either(self.socket.as_fd(), events, twin.stream.lend(), deadline);
            let [ready, requests] = ready.map_err(|source| self.io_error(command, source))?;
            let step = if requests.is_empty() { None } else { twin.try_serve()? };
            self.twin_left |= step.is_some_and(|step| step != Step::Idle);
            if !ready.is_empty() {
                return Ok(ready);
            }
            if Instant::now() >= deadline {
                return Err(ClientError::TimedOut { command, deadline: self.deadline });
            }
            if !requests.is_empty() && !matches!(step, Some(Step::Idle | Step::Again)) {
                // Another thread is at it, or the server takes no replies: no time for a poll that returns at once.
                match wait_for(self.socket.as_fd(), events, deadline.min(Instant::now() + ALONE)) {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    other => return other.map_err(|source| self.io_error(command, source)),
                }
            }
        }
    }

    /// Whether a call has left something to do on the twin, since this was last asked.
    pub(super) fn take_twin_left(&mut self) -> bool {
        std::mem::take(&mut self.twin_left)
    }

    /// Sends replies until none is left or there is something to receive; returns how to wait for it.
    fn flush_until_readable(&mut self, command: Command, deadline: Instant) -> Result<Wait, ClientError> {
        loop {
            if self.receiver.has_whole() && !self.backlog.is_full() {
                return Ok(Wait::No);
            }
            if self.flush(command)? {
                return Ok(Wait::Until(deadline));
            }
            if self.poll_unsent(command, deadline)?.contains(PollFlags::POLLIN) {
                return Ok(Wait::No);
            }
        }
    }

    /// Sends what the server takes; true when it is owed nothing more. It has to take something within the deadline.
    fn flush(&mut self, command: Command) -> Result<bool, ClientError> {
        if self.backlog.is_empty() {
            return Ok(true);
        }
        let before = self.backlog.unsent();
        let all = self.backlog.flush(self.socket.as_fd()).map_err(|source| self.io_error(command, source))?;
        if all || self.backlog.unsent() < before {
            self.stalled = None;
        }
        if !all {
            let now = Instant::now();
            if *self.stalled.get_or_insert(now + self.deadline) <= now {
                return Err(ClientError::TimedOut { command, deadline: self.deadline });
            }
        }
        Ok(all)
    }

    /// Receives once, without waiting, and serves all that is whole then.
    fn serve_once(&mut self, command: Command) -> Result<bool, ClientError> {
        let some = self.receiver.read_ahead(&mut self.socket, Wait::No);
        let some = some.map_err(|source| receive_error(command, source, self.deadline))?;
        self.serve_buffered(command)?;
        Ok(some)
    }

    fn serve_buffered(&mut self, command: Command) -> Result<(), ClientError> {
        while !self.backlog.is_full() {
            let message = match self.receiver.buffered() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(source) => return Err(receive_error(command, source, self.deadline)),
            };
            if message.header.is_command() {
                self.backlog.answer(&message, &self.memory);
            } else {
                let header = message.header;
                self.tolerated.take(&header).map_err(|problem| ClientError::Malformed { command, problem })?;
            }
        }
        Ok(())
    }

    fn io_error(&self, command: Command, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::TimedOut => ClientError::TimedOut { command, deadline: self.deadline },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Disconnected(command),
            _ => ClientError::Io { command, source },
        }
    }
}

impl Twin {
    pub(super) fn new(stream: Arc<ForeignFd>, connection: Connection) -> Self {
        Self { stream, connection: Mutex::new(connection) }
    }

    /// As [`Connection::set_deadline`].
    pub(super) fn set_deadline(&self, deadline: Duration) {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).set_deadline(deadline);
    }

    /// [`Connection::serve_step`], when it is this thread's turn.
    pub(super) fn serve_step(&self) -> Result<Step, ClientError> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).serve_step()
    }

    /// The same, unless another thread is at it.
    fn try_serve(&self) -> Result<Option<Step>, ClientError> {
        match self.connection.try_lock() {
            Ok(mut connection) => connection.serve_step().map(Some),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().serve_step().map(Some),
            Err(TryLockError::WouldBlock) => Ok(None),
        }
    }
}

impl Tolerated {
    fn take(&mut self, header: &Header) -> Result<(), &'static str> {
        if !header.is_reply() {
            return Err("a message that is neither command nor reply");
        }
        if header.command == Command::RegionWrite as u16 && self.posted > 0 {
            self.posted -= 1;
            return Ok(());
        }
        let is_error = header.flags & FLAG_ERROR != 0;
        if is_error && self.misread.take_if(|misread| *misread == (header.message_id, header.command)).is_some() {
            return Ok(());
        }
        Err("a reply to something else")
    }
}

fn receive_error(command: Command, source: ReceiveError, deadline: Duration) -> ClientError {
    match source {
        ReceiveError::TimedOut => ClientError::TimedOut { command, deadline },
        ReceiveError::Closed | ReceiveError::Truncated { .. } => ClientError::Disconnected(command),
        source => ClientError::Receive { command, source },
    }
}
