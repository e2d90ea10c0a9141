//! Standard input, on its way to the serial port: a thread that may wait as it likes.
//!
//! A pipe or file is read no faster than the guest reads its serial port, and its end is simply the end of input. A
//! terminal is always read, since Ctrl-A x must work when the guest hangs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::keys::{Key, Keys};
use crate::console::serial::{Received, Serial};
use crate::console::terminal::Terminal;
use crate::control::outcome::{Outcome, Stop};

/// Typed ahead of a guest that doesn't read; more is dropped.
const TYPE_AHEAD: usize = 64 << 10;

/// How often a process in the background asks whether it has the terminal again, in milliseconds.
const BACKGROUND_POLL: u16 = 500;

/// The thread's state.
struct Input {
    source: File,
    /// The terminal that `source` is, if it is one.
    terminal: Option<Arc<Terminal>>,
    serial: Arc<Serial>,
    room: OwnedFd,
    stop: Stop,
    keys: Keys,
    queue: VecDeque<Received>,
    overrun: bool,
}

/// The state of the source after a look at it.
enum Source {
    Open,
    /// The terminal belongs to another process group for now.
    Background,
    Ended,
}

/// Starts to read `source` for `serial`, until `stop` is requested.
///
/// # Errors
/// The host's, where it cannot start a thread or is out of descriptors.
pub fn start(source: OwnedFd, terminal: Option<Arc<Terminal>>, serial: Arc<Serial>, stop: Stop) -> io::Result<()> {
    // SAFETY: a duplicate of an eventfd that is nobody else's.
    let room = unsafe { OwnedFd::from_raw_fd(serial.room().try_clone()?.into_raw_fd()) };
    let source = File::from(source);
    let (keys, queue) = (Keys::default(), VecDeque::new());
    let mut input = Input { source, terminal, serial, room, stop, keys, queue, overrun: false };
    // Never joined: where two processes read one terminal, it can be left waiting in a read.
    std::thread::Builder::new().name("console-input".into()).spawn(move || input.run())?;
    Ok(())
}

impl Input {
    fn run(&mut self) {
        let mut source = Source::Open;
        while !self.stop.requested() {
            let (readable, has_room) = self.wait(&source);
            if has_room {
                // Resets the counter; it is readable only when it isn't zero.
                let _ = self.serial.room().read();
            }
            source = match source {
                Source::Open if readable => self.read(),
                Source::Background => self.ask_for_terminal(),
                unchanged => unchanged,
            };
            self.deliver();
            if matches!(source, Source::Ended) && self.queue.is_empty() {
                log::debug!("console input ended");
                return;
            }
        }
    }

    /// Waits for input that is wanted, for room in the serial port, or for the end.
    fn wait(&self, source: &Source) -> (bool, bool) {
        let wanted = matches!(source, Source::Open) && (self.terminal.is_some() || self.queue.is_empty());
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![watch(self.stop.as_fd()), watch(self.room.as_fd())];
        if wanted {
            fds.push(watch(self.source.as_fd()));
        }
        let limit = match source {
            Source::Background => PollTimeout::from(BACKGROUND_POLL),
            _ => PollTimeout::NONE,
        };
        if poll(&mut fds, limit).is_err() {
            return (false, false);
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
        (ready(2), ready(1))
    }

    fn read(&mut self) -> Source {
        let mut bytes = [0; 4096];
        match self.source.read(&mut bytes) {
            Ok(0) => Source::Ended,
            Ok(count) => {
                for byte in bytes.iter().take(count) {
                    self.enqueue(*byte);
                }
                Source::Open
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Source::Open,
            Err(error) => match &self.terminal {
                // A terminal's answer to a process in the background that blocks SIGTTIN.
                Some(terminal) if error.raw_os_error() == Some(Errno::EIO as i32) && !terminal.is_foreground() => {
                    Source::Background
                }
                _ => {
                    log::warn!("console input ends here: {error}");
                    Source::Ended
                }
            },
        }
    }

    fn enqueue(&mut self, byte: u8) {
        if self.terminal.is_none() {
            self.queue.push_back(Received::Byte(byte));
            return;
        }
        for key in self.keys.press(byte) {
            match key {
                Key::Quit => self.stop.request(Outcome::UserQuit),
                Key::Line(received) if self.queue.len() < TYPE_AHEAD => self.queue.push_back(received),
                Key::Line(_) if !std::mem::replace(&mut self.overrun, true) => {
                    log::warn!("the guest doesn't read its serial port; what is typed now is lost");
                }
                Key::Line(_) => {}
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(received) = self.queue.front() {
            if !self.serial.receive(*received) {
                return;
            }
            self.queue.pop_front();
            self.overrun = false;
        }
    }

    fn ask_for_terminal(&self) -> Source {
        match &self.terminal {
            Some(terminal) if terminal.is_foreground() => {
                terminal.set_raw();
                Source::Open
            }
            _ => Source::Background,
        }
    }
}

/// A duplicate of standard input.
pub(super) fn stdin() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    let fd: BorrowedFd<'_> = stdin.as_fd();
    fd.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use nix::pty::openpty;

    use super::*;
    use crate::machine::bus::BusDevice;

    fn serial() -> Arc<Serial> {
        Arc::new(Serial::new(Box::new(io::sink())).unwrap())
    }

    /// Reads the guest's side of the port until `count` bytes came, for two seconds at most.
    fn read_guest(serial: &Serial, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut got = Vec::new();
        while got.len() < count && Instant::now() < deadline {
            let mut byte = [0];
            serial.read(5, &mut byte);
            if byte[0] & 1 == 0 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            serial.read(0, &mut byte);
            got.push(byte[0]);
        }
        got
    }

    #[test]
    fn a_pipe_is_read_as_fast_as_the_guest_reads_and_its_end_does_not_end_the_run() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (serial, stop) = (serial(), Stop::new().unwrap());
        start(reader.into(), None, Arc::clone(&serial), stop.clone()).unwrap();
        // Ctrl-A is an ordinary byte in a pipe.
        let sent: Vec<u8> = (0..=255).cycle().take(20_000).chain(*b"\x01x").collect();
        let text = sent.clone();
        std::thread::spawn(move || writer.write_all(&text).unwrap());
        assert!(read_guest(&serial, sent.len()) == sent);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!stop.requested());
    }

    #[test]
    fn ctrl_a_x_quits_although_the_guest_reads_nothing() {
        let pty = openpty(None, None).unwrap();
        let terminal = Arc::new(Terminal::open(&pty.slave).unwrap().unwrap());
        let (serial, stop) = (serial(), Stop::new().unwrap());
        start(pty.slave, Some(terminal), serial, stop.clone()).unwrap();
        let mut user = File::from(pty.master);
        // Not raw, so that each line reaches the reader as a whole.
        for _ in 0..100 {
            user.write_all(b"typed ahead\n").unwrap();
        }
        user.write_all(b"\x01x\n").unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        while !stop.requested() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(stop.outcome(), Some(Outcome::UserQuit));
    }

    #[test]
    fn an_empty_input_ends_the_thread_but_not_the_run() {
        let null = File::open("/dev/null").unwrap();
        let (serial, stop) = (serial(), Stop::new().unwrap());
        start(null.into(), None, Arc::clone(&serial), stop.clone()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Arc::strong_count(&serial) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(Arc::strong_count(&serial), 1, "the thread has ended");
        assert!(!stop.requested());
    }
}
