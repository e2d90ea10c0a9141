//! Lines for the user and the log on standard error, which may be a pipe that nobody reads.
//!
//! A line goes into a bounded queue and is written by a thread of its own, which alone may block in write(2). What finds
//! the queue full is dropped and counted, and the count is written as soon as there is room. The thread starts with the
//! first line, so that a program with nothing to say does not pay for it. Standard error is shared with the caller and
//! with other processes, so neither its flags nor a poll could keep a write from blocking. A program that may have no thread
//! yet holds its lines back meanwhile ([`hold`]).

use std::collections::VecDeque;
use std::fmt::{Arguments, Display};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

use crate::crew::{self, Role};

/// Bytes that wait to be written, at most; a log line that does not fit is dropped.
const ROOM: usize = 256 * 1024;
/// Bytes of what the user asked for that wait to be written, at most, log lines included.
const ROOM_FOR_USER: usize = 4 * ROOM;

static PROGRAM: OnceLock<&'static str> = OnceLock::new();
static QUEUE: Queue = Queue::new();
static WRITER: Once = Once::new();
static HELD: AtomicBool = AtomicBool::new(false);
/// The system gives this process no thread.
static WITHOUT_THREAD: AtomicBool = AtomicBool::new(false);

/// Makes [`log`] write to standard error by way of the queue, at level `warn` unless `RUST_LOG` says otherwise.
///
/// `program` is put before each line.
pub fn init(program: &'static str) {
    let _ = PROGRAM.set(program);
    let filter = env_logger::Env::default().default_filter_or("warn");
    let built = env_logger::Builder::from_env(filter)
        .format(move |line, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(line, "{program}: {level}: {}", record.args())
        })
        .target(env_logger::Target::Pipe(Box::new(LogLines)))
        .write_style(env_logger::WriteStyle::Never)
        .try_init();
    debug_assert!(built.is_ok(), "a program has one logger");
}

/// The program's name, as [`init`] was told.
#[must_use]
pub fn program() -> &'static str {
    PROGRAM.get().copied().unwrap_or("outrigger")
}

/// Tells the user something in one line, with the program's name before it.
pub fn tell(line: impl Display) {
    let program = program();
    push(format!("{program}: {line}\n").into_bytes(), ROOM_FOR_USER);
}

/// Writes text that the user asked for, as it is.
pub fn print(text: Arguments<'_>) {
    push(text.to_string().into_bytes(), ROOM_FOR_USER);
}

/// From now on, lines wait and no thread is started for them, until [`release`] or [`finish`].
pub fn hold() {
    HELD.store(true, Ordering::SeqCst);
}

/// Has everything written that waits.
pub fn release() {
    if HELD.swap(false, Ordering::SeqCst) && QUEUE.lock().has_lines() {
        start_writer();
    }
}

/// Forgets the lines that wait: in a process that is to write what comes, and not what its copy writes.
pub fn discard() {
    QUEUE.discard();
}

/// Waits until everything is written, but not longer than `limit`: for the end of a program.
pub fn finish(limit: Duration) {
    release();
    let deadline = Instant::now() + limit;
    if WITHOUT_THREAD.load(Ordering::SeqCst) {
        return QUEUE.write_now(&io::stderr(), deadline);
    }
    let mut state = QUEUE.lock();
    while state.writing || state.has_lines() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        state = QUEUE.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn push(text: Vec<u8>, room: usize) {
    QUEUE.push(text, room);
    if !HELD.load(Ordering::SeqCst) {
        start_writer();
    }
}

fn start_writer() {
    WRITER.call_once(|| {
        // Without a thread the lines stay in the queue until the end; the program goes on.
        let made = crew::spawn(Role::Output, "output", || QUEUE.write_to(io::stderr()));
        WITHOUT_THREAD.store(made.is_err(), Ordering::SeqCst);
    });
}

/// Where the logger writes: each call brings one whole line.
struct LogLines;

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        push(line.to_vec(), ROOM);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Queue {
    state: Mutex<State>,
    /// Signalled when there is something to write, and when something has been written.
    changed: Condvar,
}

struct State {
    lines: VecDeque<Vec<u8>>,
    /// The sum of their lengths.
    bytes: usize,
    /// How many lines found no room.
    dropped: u64,
    /// The writer has taken lines and has not written all of them yet.
    writing: bool,
}

impl State {
    /// Whether there is anything to write, be it how many lines were dropped.
    fn has_lines(&self) -> bool {
        !self.lines.is_empty() || self.dropped > 0
    }
}

impl Queue {
    const fn new() -> Self {
        let state = State { lines: VecDeque::new(), bytes: 0, dropped: 0, writing: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, text: Vec<u8>, room: usize) {
        let mut state = self.lock();
        if text.len() > room.saturating_sub(state.bytes) {
            state.dropped += 1;
            return;
        }
        state.bytes += text.len();
        state.lines.push_back(text);
        drop(state);
        self.changed.notify_all();
    }

    /// Writes lines for as long as the process lives.
    fn write_to(&self, mut out: impl Write) {
        loop {
            let text = self.take();
            // Where standard error is closed, the exit status has to do.
            let _ = out.write_all(&text);
            let mut state = self.lock();
            state.writing = false;
            drop(state);
            self.changed.notify_all();
        }
    }

    fn discard(&self) {
        let mut state = self.lock();
        state.lines.clear();
        (state.bytes, state.dropped) = (0, 0);
    }

    /// Writes what waits, for as long as there is room for it.
    fn write_now(&self, out: &impl AsFd, deadline: Instant) {
        while self.lock().has_lines() {
            let line = self.take();
            let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
            // A pipe that has room has it for a line (pipe(7), `PIPE_BUF`).
            if !poll(&mut fds, left.unwrap_or(PollTimeout::ZERO)).is_ok_and(|ready| ready > 0) {
                return;
            }
            let _ = write(out, &line);
        }
    }

    /// Waits for lines and takes the first, or the count of those dropped once all that was kept is written.
    fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                return line;
            }
            if state.dropped > 0 {
                let dropped = std::mem::take(&mut state.dropped);
                state.writing = true;
                let program = program();
                let why = "standard error was not read in time";
                return format!("{program}: warning: {dropped} log lines dropped: {why}\n").into_bytes();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A queue whose writer's other end is a socket that the test reads when it likes.
    fn fixture() -> (&'static Queue, UnixStream) {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || queue.write_to(theirs));
        (queue, ours)
    }

    #[test]
    fn lines_arrive_in_order() {
        let (queue, mut reader) = fixture();
        for number in 0..1000 {
            queue.push(format!("{number:04}\n").into_bytes(), ROOM);
        }
        let mut text = [0; 5000];
        reader.read_exact(&mut text).unwrap();
        let expected: String = (0..1000).map(|number| format!("{number:04}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&text), expected);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let (queue, mut reader) = fixture();
        let line = vec![b'x'; 1000];
        let start = Instant::now();
        // A socket's buffer and the queue together hold less than this.
        let sent: u64 = 10_000;
        (0..sent).for_each(|_| queue.push(line.clone(), ROOM));
        assert!(start.elapsed() < Duration::from_secs(5), "no push waits for the reader");
        let dropped = queue.lock().dropped;
        assert!(dropped > 1000, "{dropped}");
        assert!(queue.lock().bytes <= ROOM);

        // Nothing is lost in silence: as many lines arrive as were kept, and then the count of the others.
        let mut text = String::new();
        let mut buffer = [0; 65536];
        while !text.contains("dropped") {
            let count = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        assert!(text.contains(&format!("{dropped} log lines dropped")), "{}", &text[text.len() - 200..]);
        assert_eq!(text.bytes().filter(|&byte| byte == b'x').count() as u64, (sent - dropped) * 1000);
    }

    #[test]
    fn where_no_thread_can_be_had_lines_are_written_at_the_end_for_as_long_as_somebody_reads() {
        let queue = Queue::new();
        for number in 0..3 {
            queue.push(format!("{number}\n").into_bytes(), ROOM);
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        queue.write_now(&ours, Instant::now() + Duration::from_secs(5));
        let mut text = [0; 6];
        theirs.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"0\n1\n2\n");
        let start = Instant::now();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 4096]).is_ok() {}
        queue.push(b"lost".to_vec(), ROOM);
        queue.write_now(&ours, Instant::now() + Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5));
        queue.discard();
        assert!(!queue.lock().has_lines() && queue.lock().bytes == 0);
    }

    #[test]
    fn what_the_user_asked_for_has_room_beside_log_lines() {
        let queue = Queue::new();
        queue.push(vec![b'x'; ROOM], ROOM);
        queue.push(vec![b'y'; 1], ROOM);
        assert_eq!(queue.lock().dropped, 1);
        queue.push(vec![b'z'; ROOM], ROOM_FOR_USER);
        assert_eq!(queue.lock().dropped, 1);
        queue.push(vec![b'z'; 3 * ROOM], ROOM_FOR_USER);
        assert_eq!(queue.lock().dropped, 2, "that is bounded, too");
    }
}
