//! The guest's console output on its way to a file, pipe or terminal that may be slow, full or gone.
//!
//! A vCPU only appends to a bounded buffer; a thread writes it out. If the buffer is full, a vCPU waits for room once,
//! for [`PATIENCE`] at most. After that, output is dropped until there is room again, and the count of lost bytes is
//! written in their place.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes that wait for a slow reader.
const CAPACITY: usize = 256 << 10;

/// How long a vCPU waits for room in a full buffer, and how long the end of a run waits for the rest to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long output is collected before it is written: a guest sends byte by byte.
const COLLECT: Duration = Duration::from_millis(2);

/// The writing end for the serial port, and the keeper of the thread. See the [module](self).
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Something was written, or the file failed.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Bytes dropped after `waiting`.
    lost: u64,
    /// A vCPU has waited in vain; the next doesn't.
    stalled: bool,
    /// Bytes that the thread has taken and not yet written.
    taken: usize,
    /// The file takes nothing more.
    failed: bool,
}

impl Output {
    /// Starts the thread that writes to `file`; `name` is what messages call it.
    ///
    /// # Errors
    /// The host's, where it cannot start a thread.
    pub fn to(file: OwnedFd, name: String) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), filled: Condvar::new(), drained: Condvar::new() });
        let writer = Arc::clone(&shared);
        // Never joined: it may be in a write that doesn't end, and ends with the process.
        std::thread::Builder::new()
            .name("console-output".into())
            .spawn(move || writer.write_out(&mut File::from(file), &name))?;
        Ok(Output(shared))
    }

    /// Waits until all is written, for `limit` at most. Returns the number of bytes that may still not be.
    pub fn finish(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let mut state = self.0.lock();
        while !state.failed && state.taken + state.waiting.len() > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            state = self.0.wait_drained(state, left);
        }
        state.taken + state.waiting.len()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if !state.stalled && state.waiting.len() + bytes.len() > CAPACITY {
            let deadline = Instant::now() + PATIENCE;
            while !state.failed && state.waiting.len() + bytes.len() > CAPACITY {
                let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                    state.stalled = true;
                    break;
                };
                state = self.0.wait_drained(state, left);
            }
        }
        if state.failed {
            // The user was told when it failed.
        } else if state.waiting.len() + bytes.len() > CAPACITY {
            state.lost += bytes.len() as u64;
        } else {
            if state.waiting.is_empty() {
                self.0.filled.notify_one();
            }
            state.waiting.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_drained<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.drained.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The thread.
    fn write_out(&self, file: &mut File, name: &str) {
        let mut bytes = Vec::new();
        loop {
            self.take(&mut bytes);
            if let Err(error) = write_all(file, &bytes) {
                log::warn!("console output to {name} ends here: {error}");
                let mut state = self.lock();
                *state = State { failed: true, ..State::default() };
                self.drained.notify_all();
                return;
            }
        }
    }

    /// Waits for output, and moves all of it into `bytes`, whose previous content has been written.
    fn take(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        let mut state = self.lock();
        state.taken = 0;
        self.drained.notify_all();
        while state.waiting.is_empty() {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        std::thread::sleep(COLLECT);
        let mut state = self.lock();
        std::mem::swap(&mut state.waiting, bytes);
        state.taken = bytes.len();
        state.stalled = false;
        let lost = std::mem::take(&mut state.lost);
        // There is room again.
        self.drained.notify_all();
        drop(state);
        if lost > 0 {
            let notice =
                format!("\r\n[outrigger: {lost} bytes of console output are lost: they were not read in time]\r\n");
            bytes.extend_from_slice(notice.as_bytes());
        }
    }
}

/// Writes all of `bytes`, also where another process made the file non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // An interrupted or failed poll is answered by the next write.
                let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn pipe() -> (std::io::PipeReader, OwnedFd) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader, writer.into())
    }

    #[test]
    fn output_arrives_in_order() {
        let (mut reader, writer) = pipe();
        let mut output = Output::to(writer, "a pipe".into()).unwrap();
        for byte in b"hello" {
            output.write_all(&[*byte]).unwrap();
        }
        let mut bytes = [0; 5];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!((&bytes, output.finish(PATIENCE)), (b"hello", 0));
    }

    #[test]
    fn a_reader_that_sleeps_costs_a_vcpu_one_wait_and_is_told_what_it_missed() {
        let (mut reader, writer) = pipe();
        let mut output = Output::to(writer, "a pipe".into()).unwrap();
        let block = [b'.'; 1024];
        let start = Instant::now();
        let count = 2048;
        for _ in 0..count {
            output.write_all(&block).unwrap();
        }
        // One wait, with time to spare for a busy machine; a wait for each block would take half an hour.
        assert!((PATIENCE..10 * PATIENCE).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert!(output.finish(PATIENCE) > 0, "the rest waits");

        let mut text = Vec::new();
        let mut part = vec![0; 65536];
        let notice = loop {
            let got = reader.read(&mut part).unwrap();
            text.extend_from_slice(&part[..got]);
            let seen = String::from_utf8_lossy(&text);
            if let Some((_, notice)) = seen.split_once("[outrigger: ")
                && notice.contains(']')
            {
                break notice.to_owned();
            }
        };
        let lost: usize = notice.split(' ').next().unwrap().parse().unwrap();
        let dots = text.iter().filter(|byte| **byte == b'.').count();
        assert_eq!(dots + lost, count * block.len(), "every byte is there or counted");

        output.write_all(b"after").unwrap();
        let mut after = [0; 5];
        loop {
            let got = reader.read(&mut part).unwrap();
            if part[..got].ends_with(b"after") {
                after.copy_from_slice(&part[got - 5..got]);
                break;
            }
        }
        assert_eq!(&after, b"after");
    }

    #[test]
    fn a_reader_that_left_ends_the_output_but_not_the_guest() {
        let (reader, writer) = pipe();
        let mut output = Output::to(writer, "a pipe".into()).unwrap();
        drop(reader);
        let start = Instant::now();
        for _ in 0..1024 {
            output.write_all(&[0; 1024]).unwrap();
        }
        assert_eq!(output.finish(PATIENCE), 0);
        assert!(start.elapsed() < PATIENCE);
    }

    #[test]
    fn a_non_blocking_file_loses_nothing() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut output = Output::to(writer.into(), "a socket".into()).unwrap();
        let collect = std::thread::spawn(move || {
            let mut all = vec![0; 1 << 20];
            reader.read_exact(&mut all).unwrap();
            all
        });
        let sent: Vec<u8> = (0..1 << 20).map(|index: u32| index.to_le_bytes()[0] ^ index.to_le_bytes()[1]).collect();
        for part in sent.chunks(100) {
            output.write_all(part).unwrap();
        }
        assert!(collect.join().unwrap() == sent);
    }
}
